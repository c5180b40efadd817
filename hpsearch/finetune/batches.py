"""Which examples make up an optimizer step, and how they are cut into micro-batches.

The order of an epoch depends on the seed and the epoch alone, so trials of one study see their examples in one
order, whatever their batch size. Optimizer batches are consecutive runs of it, exactly `batch_size` long but for
the last of an epoch, which takes what remains.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.finetune.packing import positions
from hpsearch.finetune.seeds import derived_seed
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedExamples

PADDING = 0
"""Any id will do: real positions never look at later ones, and padding has no weight."""

MOST_KEPT_TOKENS = 4_000_000
"""Of a split whose micro-batches are kept: at most 100 MB on the device."""

MOST_PADDING = 1 / 8
"""Padding in a micro-batch, in token budgets, beyond which another one is opened: about what opening one costs."""


_kept: WeakKeyDictionary[TokenisedExamples, tuple[tuple[int, Reading], tuple[MicroBatch, ...]]]
_kept = WeakKeyDictionary()


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
    """int64, [B, T]: padded at the right, or one packed row."""
    places: Tensor
    """int64, [M]: where the predictions are made, in the flattened [B * T]."""
    targets: Tensor
    """int64, [M]: the tokens to predict, each one position after its place."""
    completion: Tensor
    """bool, [M]: whether the target is a completion token."""
    lengths: tuple[int, ...] = ()
    """Of the sequences in a packed row."""
    positions: Tensor | None = None
    """int64, [1, T], in a packed row."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How examples are laid out for a model."""

    packs: bool
    """In one row without padding, or a row for each, padded to the longest."""
    prompts: bool
    """Whether predictions of prompt tokens count too."""
    device: torch.device
    """Where the tensors go."""


def micro_batches(examples: Sequence[TokenisedExample], token_budget: int, reading: Reading) -> Iterator[MicroBatch]:
    """Cut examples into micro-batches of like lengths, longest first.

    Args:
        examples: Of one split: an optimizer batch, or all of them.
        token_budget: Tokens of a micro-batch, padding included; a longer example is one by itself.
        reading: Packed or padded, what counts, and where.
    """
    ordered = sorted(examples, key=len, reverse=True)
    lengths = [len(example) for example in ordered]
    cuts, collate = (_packed_cuts, _packed) if reading.packs else (_padded_cuts, _padded)
    for start, end in cuts(lengths, token_budget):
        yield collate(ordered[start:end], reading)


def _packed_cuts(lengths: Sequence[int], token_budget: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) within the budget."""
    start = tokens = 0
    for place, length in enumerate(lengths):
        if place > start and tokens + length > token_budget:
            yield start, place
            start, tokens = place, 0
        tokens += length
    yield start, len(lengths)


def _padded_cuts(lengths: Sequence[int], token_budget: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of descending lengths, each within the budget and with little padding."""
    start = padding = 0
    for place, length in enumerate(lengths):
        longest = lengths[start]
        padding += longest - length
        if place > start and ((place - start + 1) * longest > token_budget or padding > MOST_PADDING * token_budget):
            yield start, place
            start, padding = place, 0
    yield start, len(lengths)


def kept_micro_batches(examples: TokenisedExamples, token_budget: int, reading: Reading) -> Iterable[MicroBatch]:
    """The micro-batches of a whole split, which stay on the device for the next time; a very large split's do not.

    Only the last kind that was asked for is kept, as long as the split lives.
    """
    if len(examples.split.ids) > MOST_KEPT_TOKENS:
        return micro_batches(examples, token_budget, reading)
    kind = token_budget, reading
    known = _kept.get(examples)
    if known is None or known[0] != kind:
        with torch.inference_mode(mode=False):  # usable anywhere, whoever asked first
            known = kind, tuple(micro_batches(examples, token_budget, reading))
        _kept[examples] = known
    return known[1]


def _padded(examples: Sequence[TokenisedExample], reading: Reading) -> MicroBatch:
    """Of one split, the longest first."""
    split, width = examples[0].split, len(examples[0])
    starts = np.array([example.start for example in examples])[:, None]
    ends = np.array([example.end for example in examples])[:, None]
    sources = starts + np.arange(width)
    real = sources < ends
    ids = np.where(real, split.ids.take(sources, mode="clip"), PADDING).astype(np.int64)
    completion = split.completion.take(sources, mode="clip")
    counted = real if reading.prompts else real & completion
    counted[:, 0] = False
    return MicroBatch(*_on_device(ids, counted, completion, reading.device))


def _packed(examples: Sequence[TokenisedExample], reading: Reading) -> MicroBatch:
    """Of one split, one after the other."""
    split = examples[0].split
    lengths = tuple(len(example) for example in examples)
    ids = np.concatenate([split.ids[example.start : example.end] for example in examples]).astype(np.int64)
    completion = np.concatenate([split.completion[example.start : example.end] for example in examples])
    counted = np.ones_like(completion) if reading.prompts else completion.copy()
    counted[np.cumsum([0, *lengths[:-1]])] = False
    on_device = _on_device(ids[None], counted, completion, reading.device)
    return MicroBatch(*on_device, lengths, positions(lengths).to(reading.device))


def _on_device(
    ids: NDArray[np.int64], counted: NDArray[np.bool_], completion: NDArray[np.bool_], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    targets = counted.ravel().nonzero()[0]
    batch = ids, targets - 1, ids.ravel()[targets], completion.ravel()[targets]
    ids_, places, wanted, said = (torch.from_numpy(each).to(device, non_blocking=True) for each in batch)
    return ids_, places, wanted, said
