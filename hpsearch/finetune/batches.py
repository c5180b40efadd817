"""Which examples make up an optimizer step, and how they are cut into micro-batches.

The order of an epoch depends on the seed and the epoch alone, so trials of one study see their examples in one
order, whatever their batch size. Optimizer batches are consecutive runs of it, exactly `batch_size` long but for
the last of an epoch, which takes what remains.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.finetune.seeds import derived_seed
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedExamples

PADDING = 0
"""Any id will do: real positions never look at later ones, and padding has no weight."""

MOST_KEPT_TOKENS = 4_000_000
"""Of a split whose micro-batches are kept: at most about 160 MB on the device."""

MOST_PADDING = 1 / 8
"""Padding in a micro-batch, in token budgets, beyond which another one is opened: about what opening one costs."""


_kept: WeakKeyDictionary[TokenisedExamples, tuple[tuple[int, Layout], tuple[MicroBatch, ...]]]
_kept = WeakKeyDictionary()


@functools.lru_cache(maxsize=32)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int32]:
    """The examples' places in the order of one epoch (from 0), [count]."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).numpy().astype(np.int32)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps: ceil(count / batch_size)."""
    return -(-count // batch_size)


def optimizer_batch(seed: int, step: int, count: int, batch_size: int) -> list[int]:
    """The places of the examples of one optimizer step (from 0, over all epochs)."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    places: list[int] = epoch_order(seed, epoch, count)[place * batch_size : (place + 1) * batch_size].tolist()
    return places


@dataclass(frozen=True, slots=True)
class Share:
    """What one member reads in an optimizer step, or what is evaluated."""

    examples: Sequence[TokenisedExample]
    prompts: bool
    """Whether predictions of prompt tokens count too."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a micro-batch holds of one share; its rows lie side by side."""

    share: int
    """Its place among the shares."""
    tokens: tuple[int, int]
    """[start, end) in the flattened ids."""
    predictions: tuple[int, int]
    """[start, end) among the counted predictions."""


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
    tokens: Tensor
    """int64, [B * T]: a number for each token of a share, the same however the share is cut."""
    parts: tuple[Part, ...]
    lengths: tuple[int, ...] = ()
    """Of the sequences in a packed row."""
    positions: Tensor | None = None
    """int64, [1, T], in a packed row."""

    def repeated(self, times: int) -> MicroBatch:
        """The same rows again and again, each time for another reader; a batch of one share."""
        if times == 1:
            return self
        rows = 1 if self.lengths else times
        size, start = self.ids.numel(), torch.arange(times, device=self.ids.device).unsqueeze(1)
        part = self.parts[0]
        return MicroBatch(
            ids=self.ids.repeat(rows, times // rows),
            places=(self.places + start * size).flatten(),
            targets=self.targets.repeat(times),
            completion=self.completion.repeat(times),
            tokens=self.tokens.repeat(times),
            parts=tuple(
                Part(
                    part.share,
                    (each * size, (each + 1) * size),
                    (each * len(self.places), (each + 1) * len(self.places)),
                )
                for each in range(times)
            ),
            lengths=self.lengths * times,
            positions=None if self.positions is None else self.positions.repeat(1, times),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """How examples are laid out for a model."""

    packs: bool
    """In one row without padding, or a row for each, padded to the longest."""
    device: torch.device
    """Where the tensors go."""


@dataclass(frozen=True, slots=True)
class _Row:
    share: int
    place: int
    """In the share."""
    example: TokenisedExample


def micro_batches(shares: Sequence[Share], token_budget: int, layout: Layout) -> Iterator[MicroBatch]:
    """Cut examples into micro-batches.

    Padded rows are of like lengths, whosever they are. Packed ones need not be, so a share that fits into one
    micro-batch stays whole: each further part of it would be adapted by products of its own.

    Args:
        shares: Read together, each by its own member.
        token_budget: Tokens of a micro-batch, padding included; a longer example is one by itself.
        layout: Packed or padded, and where.
    """
    rows = [
        _Row(number, place, example)
        for number, share in enumerate(shares)
        for place, example in enumerate(share.examples)
    ]
    rows.sort(key=lambda row: (row.share if layout.packs else 0, -len(row.example)))
    lengths = [len(row.example) for row in rows]
    if layout.packs:
        cuts = _packed_cuts(lengths, [row.share for row in rows], token_budget)
    else:
        cuts = _padded_cuts(lengths, token_budget)
    for start, end in cuts:
        yield _collated(sorted(rows[start:end], key=lambda row: row.share), shares, layout)


def _packed_cuts(lengths: Sequence[int], owners: Sequence[int], token_budget: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) within the budget; one ends early where that keeps the next owner's whole."""
    start = tokens = 0
    whole = {owner: sum(length for length, _ in same) for owner, same in _by_owner(lengths, owners)}
    for place, (length, owner) in enumerate(zip(lengths, owners, strict=True)):
        is_new = place > start and owners[place - 1] != owner
        needed = whole[owner] if is_new and whole[owner] <= token_budget else length
        if place > start and tokens + needed > token_budget:
            yield start, place
            start, tokens = place, 0
        tokens += length
    yield start, len(lengths)


def _by_owner(lengths: Sequence[int], owners: Sequence[int]) -> Iterator[tuple[int, Iterator[tuple[int, int]]]]:
    return itertools.groupby(zip(lengths, owners, strict=True), key=lambda pair: pair[1])


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


def kept_micro_batches(examples: TokenisedExamples, token_budget: int, layout: Layout) -> Iterable[MicroBatch]:
    """The micro-batches of a whole split, prompts counted, which stay on the device for the next time.

    Only the last kind that was asked for is kept, as long as the split lives; a very large split's are not.
    """
    shares = (Share(examples, prompts=True),)
    if len(examples.split.ids) > MOST_KEPT_TOKENS:
        return micro_batches(shares, token_budget, layout)
    kind = token_budget, layout
    known = _kept.get(examples)
    if known is None or known[0] != kind:
        with torch.inference_mode(mode=False):  # usable anywhere, whoever asked first
            known = kind, tuple(micro_batches(shares, token_budget, layout))
        _kept[examples] = known
    return known[1]


def _collated(rows: Sequence[_Row], shares: Sequence[Share], layout: Layout) -> MicroBatch:
    """Rows of a share lie side by side."""
    starts = np.array([row.example.start for row in rows])
    lengths = np.array([len(row.example) for row in rows])
    prompts = np.array([shares[row.share].prompts for row in rows])
    if layout.packs:
        row_of = np.repeat(np.arange(len(rows)), lengths)
        places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        widths, shape = lengths, (1, -1)
    else:
        width = lengths.max()
        row_of, places = np.repeat(np.arange(len(rows)), width), np.tile(np.arange(width), len(rows))
        widths, shape = np.full(len(rows), width), (len(rows), width)
    real = places < lengths[row_of]
    ids, completion = _read(rows, row_of, np.where(real, starts[row_of] + places, 0))
    ids[~real] = PADDING
    counted = real & (places > 0) & (completion | prompts[row_of])
    targets = counted.nonzero()[0]
    numbers = (np.array([row.place for row in rows])[row_of] << 32) + places

    def there(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(layout.device, non_blocking=True)

    return MicroBatch(
        ids=there(ids.reshape(shape)),
        places=there(targets - 1),
        targets=there(ids[targets]),
        completion=there(completion[targets]),
        tokens=there(numbers),
        parts=tuple(_parts(rows, widths, np.bincount(row_of[targets], minlength=len(rows)))),
        lengths=tuple(lengths.tolist()) if layout.packs else (),
        positions=there(places[None]) if layout.packs else None,
    )


def _read(
    rows: Sequence[_Row], row_of: NDArray[np.int64], sources: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens, and which are completions, given each one's row and its place in the split of that row's example."""
    splits = list(dict.fromkeys(row.example.split for row in rows))
    if len(splits) == 1:
        return splits[0].ids[sources].astype(np.int64), splits[0].completion[sources]
    ids, completion = np.empty(len(sources), np.int64), np.empty(len(sources), np.bool_)
    split_of = np.array([splits.index(row.example.split) for row in rows])[row_of]
    for number, split in enumerate(splits):
        own = split_of == number
        ids[own], completion[own] = split.ids[sources[own]], split.completion[sources[own]]
    return ids, completion


def _parts(rows: Sequence[_Row], tokens: NDArray[np.int64], predictions: NDArray[np.int64]) -> Iterator[Part]:
    """Runs of rows of one share, given what each row has."""
    ends = np.cumsum(tokens).tolist(), np.cumsum(predictions).tolist()
    start = (0, 0)
    for place, row in enumerate(rows):
        if place + 1 == len(rows) or rows[place + 1].share != row.share:
            end = ends[0][place], ends[1][place]
            yield Part(row.share, (start[0], end[0]), (start[1], end[1]))
            start = end
