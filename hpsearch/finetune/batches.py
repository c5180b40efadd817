"""How examples are cut into micro-batches: what one forward pass reads, and which predictions of it count."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.finetune.packing import Group
from hpsearch.finetune.prefixes import Alike, alike, beginnings
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedExamples

PADDING = 0
"""Any id will do: real positions never look at later ones, and padding has no weight."""

MOST_KEPT_TOKENS = 4_000_000
"""Of a split whose micro-batches are kept: at most about 230 MB on the device."""

MOST_PADDING = 1 / 8
"""Padding in a micro-batch, in token budgets, beyond which another one is opened: about what opening one costs."""

SHARED_COST = 8
"""A shared token is kept once, but its keys and values once for each sequence: at most this part of what it keeps."""

_kept: WeakKeyDictionary[TokenisedExamples, tuple[tuple[int, Layout], tuple[MicroBatch, ...]]]
_kept = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Share:
    """What one member reads in an optimizer step, or what is evaluated."""

    examples: Sequence[TokenisedExample]
    prompts: bool
    """Whether predictions of prompt tokens count too."""
    once: bool = True
    """Whether what examples begin with in common may be read once: where all of them drop the same there."""


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
    counts: Tensor
    """int64, [M]: of how many examples the prediction is, which begin alike."""
    tokens: Tensor
    """int64, [B * T]: a number for each token from what its sequence says up to it (`prefixes.beginnings`)."""
    parts: tuple[Part, ...]
    groups: tuple[Group, ...] = ()
    """Of the sequences in a packed row."""
    positions: Tensor | None = None
    """int64, [1, T], in a packed row."""

    def repeated(self, times: int) -> MicroBatch:
        """The same rows again and again, each time for another reader; a batch of one share."""
        if times == 1:
            return self
        rows = 1 if self.groups else times
        size, start = self.ids.numel(), torch.arange(times, device=self.ids.device).unsqueeze(1)
        part = self.parts[0]
        return MicroBatch(
            ids=self.ids.repeat(rows, times // rows),
            places=(self.places + start * size).flatten(),
            targets=self.targets.repeat(times),
            completion=self.completion.repeat(times),
            counts=self.counts.repeat(times),
            tokens=self.tokens.repeat(times),
            parts=tuple(
                Part(
                    part.share,
                    (each * size, (each + 1) * size),
                    (each * len(self.places), (each + 1) * len(self.places)),
                )
                for each in range(times)
            ),
            groups=self.groups * times,
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
    group: int = 0
    """Of its share: rows that begin alike."""
    shared: int = 0
    """Tokens that all of the group begin with."""


def micro_batches(shares: Sequence[Share], token_budget: int, layout: Layout) -> Iterator[MicroBatch]:
    """Cut examples into micro-batches.

    Padded rows are of like lengths, whosever they are. Packed ones need not be, so a share that fits into one
    micro-batch stays whole: each further part of it would be adapted by products of its own. Packed rows of one share
    that begin alike lie side by side, and have their beginning once in each micro-batch.

    Args:
        shares: Read together, each by its own member.
        token_budget: Tokens of a micro-batch, padding included; a longer example is one by itself.
        layout: Packed or padded, and where.
    """
    if layout.packs:
        rows = [row for number, share in enumerate(shares) for row in _grouped(number, share)]
        rows.sort(key=lambda row: (row.share, row.group, -len(row.example)))
        cuts = _packed_cuts(rows, token_budget)
    else:
        rows = [
            _Row(number, place, example)
            for number, share in enumerate(shares)
            for place, example in enumerate(share.examples)
        ]
        rows.sort(key=lambda row: -len(row.example))
        cuts = _padded_cuts([len(row.example) for row in rows], token_budget)
    for start, end in cuts:
        yield _collated(sorted(rows[start:end], key=lambda row: row.share), shares, layout)


def _grouped(number: int, share: Share) -> Iterator[_Row]:
    examples = share.examples
    groups = alike(examples) if share.once else [Alike(0, tuple(range(len(examples))))]
    for group, each in enumerate(groups):
        for place in each.places:
            yield _Row(number, place, examples[place], group, each.shared)


def _packed_cuts(rows: Sequence[_Row], token_budget: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) within the budget; one ends early where that keeps the next share whole."""
    costs = [len(row.example) - row.shared + row.shared // SHARED_COST for row in rows]
    opens = [not place or _group(rows[place - 1]) != _group(row) for place, row in enumerate(rows)]
    whole: dict[int, int] = {}
    for row, cost, is_first in zip(rows, costs, opens, strict=True):
        whole[row.share] = whole.get(row.share, 0) + cost + is_first * row.shared
    start = tokens = 0
    for place, (row, cost, is_first) in enumerate(zip(rows, costs, opens, strict=True)):
        needed = cost + is_first * row.shared
        if place > start:
            is_new = rows[place - 1].share != row.share
            ahead = whole[row.share] if is_new and whole[row.share] <= token_budget else needed
            if tokens + ahead > token_budget:
                yield start, place
                start, tokens, needed = place, 0, cost + row.shared
        tokens += needed
    yield start, len(rows)


def _group(row: _Row) -> tuple[int, int]:
    return row.share, row.group


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
    """Rows of a share lie side by side, and in it those of a group."""
    lengths = np.array([len(row.example) for row in rows])
    prompts = np.array([shares[row.share].prompts for row in rows])
    if layout.packs:
        runs, groups = _laid_out(rows)
        shape = (1, -1)
    else:
        width = int(lengths.max())
        runs, groups, shape = [(place, 0, width, 1) for place in range(len(rows))], (), (len(rows), width)
    owners, firsts, widths, counts = (np.array(each) for each in zip(*runs, strict=True))
    run_of = np.repeat(np.arange(len(runs)), widths)
    ends = np.cumsum(widths)
    row_of, places = owners[run_of], np.arange(ends[-1]) - (ends - widths - firsts)[run_of]
    real = places < lengths[row_of]
    read, marks = _read(rows, lengths)
    source = (np.cumsum(lengths) - lengths)[row_of] + np.where(real, places, 0)
    ids, completion, numbers = read[source], marks[source], beginnings(read, lengths)[source]
    ids[~real] = PADDING
    counted = real & (places > 0) & (completion | prompts[row_of])
    targets = counted.nonzero()[0]
    # A token is predicted where the one before it stands: for the first behind a beginning, at the end of that.
    before = np.where(places == firsts[run_of], _last_shared(runs)[run_of], np.arange(len(ids)) - 1)
    placed = places if layout.packs else places[:0]
    predicted = before[targets], ids[targets], completion[targets], counts[run_of[targets]]
    sent = _sent([ids, *predicted, numbers, placed], layout.device)
    shares_read = [rows[owner].share for owner in owners]
    return MicroBatch(
        ids=sent[0].view(shape),
        places=sent[1],
        targets=sent[2],
        completion=sent[3].bool(),
        counts=sent[4],
        tokens=sent[5],
        parts=tuple(_parts(shares_read, widths, np.bincount(run_of[targets], minlength=len(runs)))),
        groups=groups,
        positions=sent[6].unsqueeze(0) if layout.packs else None,
    )


def _sent(arrays: Sequence[NDArray[Any]], device: torch.device) -> Sequence[Tensor]:
    """The arrays, flat and as int64, on the device, by one transfer that a GPU doesn't make anybody wait for."""
    together = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]).astype(np.int64, copy=False))
    if device.type == "cuda":  # from memory that may be paged out, a transfer waits for the work before it
        together = together.pin_memory()
    return torch.split(together.to(device, non_blocking=True), [array.size for array in arrays])


Run = tuple[int, int, int, int]
"""Tokens of one row that lie side by side: (row, its first token here, how many, rows that they stand for)."""


def _laid_out(rows: Sequence[_Row]) -> tuple[list[Run], tuple[Group, ...]]:
    """Of each group what it shares, then what each row has of its own; one row of a group shares with nobody."""
    runs: list[Run] = []
    groups: list[Group] = []
    for _, members in itertools.groupby(enumerate(rows), key=lambda pair: _group(pair[1])):
        own = [(place, len(row.example), row.shared) for place, row in members]
        first, _, shared = own[0]
        if len(own) == 1:
            shared = 0
        if shared:
            runs.append((first, 0, shared, len(own)))
        runs += [(place, shared, length - shared, 1) for place, length, _ in own]
        groups.append(Group(shared, tuple(length - shared for _, length, _ in own)))
    return runs, tuple(groups)


def _last_shared(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Where the beginning of each run's row ends, for runs that have one, [runs]."""
    ends, end, last = [], 0, 0
    for _, first, width, _ in runs:
        end += width
        if first == 0:
            last = end - 1
        ends.append(last)
    return np.array(ends)


def _read(rows: Sequence[_Row], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """All tokens of the rows, one row after the other, and which are completions."""
    ids, completion = np.empty(lengths.sum(), np.int64), np.empty(lengths.sum(), np.bool_)
    for row, end, length in zip(rows, np.cumsum(lengths).tolist(), lengths.tolist(), strict=True):
        there, split = slice(row.example.start, row.example.end), row.example.split
        ids[end - length : end], completion[end - length : end] = split.ids[there], split.completion[there]
    return ids, completion


def _parts(shares: Sequence[int], tokens: NDArray[np.int64], predictions: NDArray[np.int64]) -> Iterator[Part]:
    """What lies side by side of one share, given what each run has."""
    ends = np.cumsum(tokens).tolist(), np.cumsum(predictions).tolist()
    start = (0, 0)
    for place, share in enumerate(shares):
        if place + 1 == len(shares) or shares[place + 1] != share:
            end = ends[0][place], ends[1][place]
            yield Part(share, (start[0], end[0]), (start[1], end[1]))
            start = end
