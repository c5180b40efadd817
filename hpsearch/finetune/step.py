"""The gradients of one optimizer step, for any number of members at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpsearch.crash import hang_point
from hpsearch.errors import OutOfMemory
from hpsearch.finetune.batches import Layout, MicroBatch, Share, micro_batches
from hpsearch.finetune.loss import total_weight, weighted_nll
from hpsearch.finetune.model import LoadedModel
from hpsearch.finetune.precision import precision
from hpsearch.finetune.tokenised import TokenisedExample
from hpsearch.finetune.weights import FullWeights, LoraWeights, Weights, full_training, lora_training
from hpsearch.watchdog import mark

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """What one member learns from in its next step."""

    weights: Weights
    step: int
    """How many it has made."""
    examples: Sequence[TokenisedExample]
    """Its optimizer batch, at most `batch_size`."""
    prompt_loss_weight: float

    @functools.cached_property
    def weight(self) -> float:
        """sum(w) of the batch."""
        return total_weight(self.examples, self.prompt_loss_weight)

    @functools.cached_property
    def tokens(self) -> int:
        """Of the batch."""
        return sum(map(len, self.examples))


def gradients(loaded: LoadedModel, turns: Sequence[Turn], token_budget: int) -> Tensor:
    """Set the gradient of each member's loss on its own trained parameters, and no others.

    Rows of different members share products with the frozen base and nothing else, so a member's gradient is the one
    that it would have alone, up to the order of sums.

    Args:
        loaded: The base model.
        turns: Of members with adapters on it, or of one member with a model of its own.
        token_budget: Tokens of a micro-batch.

    Returns:
        sum(w * nll) of each turn: float64, [turns].
    """
    totals = torch.zeros(len(turns), dtype=torch.float64, device=loaded.device)
    for turn in turns:
        turn.weights.clear_gradients()
    shares = [Share(turn.examples, turn.prompt_loss_weight > 0, turn.weights.reads_alike) for turn in turns]
    for number, batch in enumerate(micro_batches(shares, token_budget, Layout(loaded.anatomy.packs, loaded.device))):
        mark()
        hang_point()
        weights = _weights(turns, batch)
        with _training(turns, batch, number) as model:
            with precision(loaded.device):
                loss, nll = weighted_nll(model, loaded.anatomy, batch, torch.cat(weights))
            loss.backward()  # type: ignore[no-untyped-call]
        for part, own in zip(batch.parts, weights, strict=True):
            counted = nll[slice(*part.predictions)] * own
            totals[part.share] += counted.sum(dtype=torch.float64) * turns[part.share].weight
    return totals


def forward_only(loaded: LoadedModel, turn: Turn) -> Tensor:
    """The loss of one turn in one micro-batch, each token by itself, with all that its gradient would need."""
    layout = Layout(loaded.anatomy.packs, loaded.device)
    (batch,) = micro_batches([Share(turn.examples, turn.prompt_loss_weight > 0, once=False)], 10**9, layout)
    with _training([turn], batch, 0) as model, precision(loaded.device):
        loss, _ = weighted_nll(model, loaded.anatomy, batch, torch.cat(_weights([turn], batch)))
    return loss


def _weights(turns: Sequence[Turn], batch: MicroBatch) -> list[Tensor]:
    """Of the predictions of each part, w / sum(w): the gradients of all micro-batches add up to the batch's."""
    weights = []
    for part in batch.parts:
        turn, own = turns[part.share], slice(*part.predictions)
        each = torch.where(batch.completion[own], 1 / turn.weight, turn.prompt_loss_weight / turn.weight)
        weights.append(each * batch.counts[own])
    return weights


def _training(turns: Sequence[Turn], batch: MicroBatch, number: int) -> AbstractContextManager[Any]:
    first = turns[0]
    if isinstance(first.weights, FullWeights):
        return full_training(first.weights, first.step, number)
    members = [(turn.weights, turn.step) for turn in turns if isinstance(turn.weights, LoraWeights)]
    return lora_training(members, batch)


def in_less_memory(compute: Callable[[int], T], token_budget: int) -> tuple[T, int]:
    """Compute under a token budget, halved as often as memory runs out; what came out, and the budget that worked.

    Raises:
        OutOfMemory: Memory ran out even with single sequences (every sequence has more tokens than the budget).
    """
    while True:
        try:
            return compute(token_budget), token_budget
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler: the traceback held the failed attempt's tensors.
        if token_budget <= 1:
            raise OutOfMemory
        token_budget //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or in the process.

    PyTorch's CPU allocator, CUDA and its libraries, which take memory beside PyTorch's, say so by text only. On a part
    of a GPU (MIG), PyTorch itself fails while it words the error: NVML does not tell there what it asks for
    (https://github.com/pytorch/pytorch/issues/112377).
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "can't allocate memory",
    "error: out of memory",
    "_STATUS_ALLOC_FAILED",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)
