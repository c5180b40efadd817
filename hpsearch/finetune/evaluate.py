"""The validation loss, under a contract that makes values comparable.

Completion tokens only, token-weighted over the whole split, nothing dropped out, the same examples in the same
order with the same truncation for every trial, whatever its hyperparameters. Sums are float64.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hpsearch.finetune.batches import Layout, MicroBatch, Share, kept_micro_batches, micro_batches
from hpsearch.finetune.lora import AdaptedLinear, Adapters, MemberRows, activated
from hpsearch.finetune.loss import scores
from hpsearch.finetune.model import Anatomy
from hpsearch.finetune.precision import precision
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedExamples
from hpsearch.watchdog import mark

CONTRACT_VERSION = 1
"""Raise it with any change that moves values."""


class Abandoned(Exception):
    """Nobody waits for the evaluation any more."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split found."""

    loss: float
    """Nats per completion token."""
    bits_per_byte: float
    """Bits of all completion tokens per byte of completion text."""
    token_accuracy: float
    prompt_loss: float | None
    """Nats per prompt token; None when there are none."""
    tokens: int
    """Completion tokens."""
    text_bytes: int
    """Bytes of completion text."""


@dataclass(frozen=True)
class Reader:
    """A model in eval mode and on its device, and who reads with it."""

    model: Any
    layers: Mapping[str, AdaptedLinear] = field(default_factory=dict)
    """Its adaptable layers."""
    adapters: Sequence[Adapters] = ({},)
    """Of each that reads; without any, it is the model itself."""


def evaluate(
    reader: Reader,
    anatomy: Anatomy,
    examples: Sequence[TokenisedExample],
    token_budget: int,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[Evaluation]:
    """Evaluate adapters on one model, as many in one pass as the budget allows; one evaluation for each.

    Args:
        reader: The model, and whose adapters.
        anatomy: The model's.
        examples: Of a split, each with at least one completion token.
        token_budget: Tokens of a micro-batch, padding included.
        goes_on: Whether somebody still waits for it, asked at every micro-batch.

    Raises:
        Abandoned: Nobody does.
    """
    device = reader.model.device
    layout = Layout(anatomy.packs, device)
    if isinstance(examples, TokenisedExamples):
        batches = kept_micro_batches(examples, token_budget, layout)
    else:
        batches = micro_batches([Share(examples, prompts=True)], token_budget, layout)
    # Completion nll, completion hits, completion tokens, prompt nll, prompt tokens: one transfer at the end.
    sums = torch.zeros(len(reader.adapters), 5, dtype=torch.float64, device=device)
    with torch.inference_mode(), precision(device):
        for batch in batches:
            at_once = max(1, token_budget // batch.ids.numel())
            for start in range(0, len(reader.adapters), at_once):
                mark()
                if not goes_on():
                    raise Abandoned
                readers = slice(start, start + at_once)
                sums[readers] += _sums(reader, reader.adapters[readers], anatomy, batch)
    text_bytes = sum(example.completion_bytes for example in examples)
    return [_evaluation(each, text_bytes) for each in sums.tolist()]


def _sums(reader: Reader, adapters: Sequence[Adapters], anatomy: Anatomy, batch: MicroBatch) -> Tensor:
    """Over one micro-batch, by reader: [len(adapters), 5]."""
    batch = batch.repeated(len(adapters))
    parts = [MemberRows(own, *part.tokens) for own, part in zip(adapters, batch.parts, strict=True) if own]
    with activated(reader.layers, parts):
        chunks = zip(*scores(reader.model, anatomy, batch), strict=True)
        nll, hits, completion = (torch.cat(chunk).view(len(adapters), -1) for chunk in chunks)
    # `where`, not a product: an infinite prompt loss must not make the completions' NaN.
    measured = [
        torch.where(completion, nll, 0).double(),
        (hits & completion).double(),
        completion.double(),
        torch.where(completion, 0, nll).double(),
        (~completion).double(),
    ]
    counts = batch.counts.view(len(adapters), -1)
    return torch.stack([(each * counts).sum(1) for each in measured], dim=1)


def _evaluation(sums: Sequence[float], text_bytes: int) -> Evaluation:
    nll, hits, tokens, prompt_nll, prompt_tokens = sums
    return Evaluation(
        nll / tokens,
        nll / math.log(2) / max(text_bytes, 1),
        hits / tokens,
        prompt_nll / prompt_tokens if prompt_tokens else None,
        round(tokens),
        text_bytes,
    )


def evaluation_contract(
    *, validation: str, model: str, tokenizer: str, max_length: int, chat_template: str, precision: str
) -> str:
    """SHA-256 of what is evaluated how; values of different contracts are never ranked together.

    Args:
        validation: Fingerprint of the validation examples.
        model: Fingerprint of the base model.
        tokenizer: Fingerprint of the tokenizer.
        max_length: Tokens, after what the model can read.
        chat_template: `auto` or `plain`.
        precision: Of the matrix products: a loss in bfloat16 is not one in float32.
    """
    terms = [CONTRACT_VERSION, validation, model, tokenizer, max_length, chat_template, precision]
    return hashlib.sha256(json.dumps(terms).encode()).hexdigest()
