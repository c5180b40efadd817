"""Which examples make up an optimizer step, and how they are cut into micro-batches.

The order of an epoch depends on the seed and the epoch alone, so trials of one study see their examples in one
order, whatever their batch size. Optimizer batches are consecutive runs of it, exactly `batch_size` long but for
the last of an epoch, which takes what remains.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.finetune.seeds import derived_seed
from hpsearch.finetune.tokens import TokenisedExample

PADDING = 0
"""Any id will do: real positions never look at later ones, and padding has no weight."""

MOST_PADDING = 1 / 8
"""Padding in a micro-batch, in token budgets, beyond which another one is opened: about what opening one costs."""


@functools.lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The examples' places in the order of one epoch (from 0)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return tuple(torch.randperm(count, generator=generator).tolist())


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps: ceil(count / batch_size)."""
    return -(-count // batch_size)


def optimizer_batch(seed: int, step: int, count: int, batch_size: int) -> tuple[int, ...]:
    """The places of the examples of one optimizer step (from 0, over all epochs)."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    return epoch_order(seed, epoch, count)[place * batch_size : (place + 1) * batch_size]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass reads, and which predictions of it count. M = counted predictions."""

    ids: Tensor
    """int64, [B, T], right-padded."""
    places: Tensor
    """int64, [M]: where the predictions are made, in the flattened [B * T]."""
    targets: Tensor
    """int64, [M]: the tokens to predict, each one position after its place."""
    completion: Tensor
    """bool, [M]: whether the target is a completion token."""


def micro_batches(
    examples: Sequence[TokenisedExample], token_budget: int, *, prompts: bool, device: torch.device
) -> Iterator[MicroBatch]:
    """Cut examples into padded micro-batches of like lengths, longest first.

    Args:
        examples: Of one optimizer batch, or of the validation split.
        token_budget: Tokens of a micro-batch, padding included; a longer example is one by itself.
        prompts: Whether predictions of prompt tokens count too.
        device: Where the tensors go.
    """
    ordered = sorted(examples, key=len, reverse=True)
    for start, end in _cuts([len(example) for example in ordered], token_budget):
        yield _collate(ordered[start:end], prompts=prompts, device=device)


def _cuts(lengths: Sequence[int], token_budget: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of descending lengths, each within the budget and with little padding."""
    start = padding = 0
    for place, length in enumerate(lengths):
        longest = lengths[start]
        padding += longest - length
        if place > start and ((place - start + 1) * longest > token_budget or padding > MOST_PADDING * token_budget):
            yield start, place
            start, padding = place, 0
    yield start, len(lengths)


def _collate(examples: Sequence[TokenisedExample], *, prompts: bool, device: torch.device) -> MicroBatch:
    width = len(examples[0])
    ids = torch.full((len(examples), width), PADDING, dtype=torch.int64)
    counted = torch.zeros((len(examples), width), dtype=torch.bool)
    completion = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = example.ids
        completion[row, : len(example)] = example.completion
        counted[row, 1 : len(example)] = True if prompts else example.completion[1:]
    targets = counted.flatten().nonzero().squeeze(1)
    return MicroBatch(
        ids.to(device, non_blocking=True),
        (targets - 1).to(device, non_blocking=True),
        ids.flatten()[targets].to(device, non_blocking=True),
        completion.flatten()[targets].to(device, non_blocking=True),
    )
