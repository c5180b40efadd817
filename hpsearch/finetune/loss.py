"""The training loss: sum(w * nll) / sum(w) over one optimizer batch, exact under any micro-batching.

w is 1 on completion tokens, the prompt loss weight on prompt tokens and 0 on padding. The normaliser is known before
the first micro-batch runs, so the parts add up to the whole. All sums are float32 or better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hpsearch.finetune.batches import MicroBatch
from hpsearch.finetune.model import Anatomy, hidden_states
from hpsearch.finetune.tokens import TokenisedExample

LARGEST_LOGITS = 2**27
"""Elements of logits held at a time (512 MiB): a large vocabulary's are computed in chunks, again for the gradient."""


def total_weight(examples: Sequence[TokenisedExample], prompt_loss_weight: float) -> float:
    """sum(w) of an optimizer batch."""
    completion = sum(example.completion_tokens for example in examples)
    prompt = sum(example.prompt_tokens for example in examples)
    return completion + prompt_loss_weight * prompt


def weighted_nll(model: Any, anatomy: Anatomy, batch: MicroBatch, prompt_loss_weight: float) -> Tensor:
    """sum(w * nll) of a micro-batch, in nats: a float32 scalar with a gradient."""
    weights = torch.where(batch.completion, 1.0, prompt_loss_weight)
    if not anatomy.splits:
        logits = model(input_ids=batch.ids, use_cache=False).logits.flatten(0, 1).index_select(0, batch.places)
        return (F.cross_entropy(logits.float(), batch.targets, reduction="none") * weights).sum()
    head = model.get_output_embeddings()
    states = hidden_states(model, batch.ids).flatten(0, 1).index_select(0, batch.places)

    def part(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return (F.cross_entropy(head(states).float(), targets, reduction="none") * weights).sum()

    rows = _rows_at_a_time(head)
    if len(states) <= rows:
        return part(states, batch.targets, weights)
    chunks = zip(torch.split(states, rows), torch.split(batch.targets, rows), torch.split(weights, rows), strict=True)
    parts = [checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).sum()


def scores(model: Any, anatomy: Anatomy, batch: MicroBatch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(nll, whether the target was the most likely token, whether it is a completion token), chunk by chunk, each [m].

    For evaluation: call it without gradients.
    """
    if not anatomy.splits:
        logits = model(input_ids=batch.ids, use_cache=False).logits.flatten(0, 1).index_select(0, batch.places)
        yield (*_scored(logits, batch.targets), batch.completion)
        return
    head = model.get_output_embeddings()
    states = hidden_states(model, batch.ids).flatten(0, 1).index_select(0, batch.places)
    rows = _rows_at_a_time(head)
    for chunk, targets, completion in zip(
        torch.split(states, rows), torch.split(batch.targets, rows), torch.split(batch.completion, rows), strict=True
    ):
        yield (*_scored(head(chunk), targets), completion)


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets


def _rows_at_a_time(head: Any) -> int:
    return max(1, LARGEST_LOGITS // int(head.weight.shape[0]))
