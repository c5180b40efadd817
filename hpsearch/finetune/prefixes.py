"""Which examples begin alike, so that what they begin with is read once.

Chats of one product begin with one system prompt, few-shot prompts with the same shots. What a causal model makes of
such a beginning does not depend on what follows, so a pass computes it once for all sequences that share it. (As
inference servers do with their caches of prefixes, such as Zheng et al. 2023, https://arxiv.org/abs/2312.07104,
section 3; here with gradients, which add up.)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpsearch.finetune.tokenised import TokenisedExample

LEAST_SHARED = 16
"""Tokens: the attention calls of a shorter beginning cost about what it saves."""

MOST_COMPARED = 1024
"""Examples that are compared with each other at a time."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Examples that begin with the same tokens, of which the same are completions."""

    shared: int
    """Tokens; 0 for those that share nothing worth it."""
    places: tuple[int, ...]


def alike(examples: Sequence[TokenisedExample]) -> list[Alike]:
    """Examples put together so that reading each shared beginning once saves most; every place once.

    Sorted by their tokens, examples that begin alike are neighbours, and a run of them shares what the two neighbours
    share that have least in common.
    """
    found = []
    for start in range(0, len(examples), MOST_COMPARED):
        part = examples[start : start + MOST_COMPARED]
        found += [Alike(each.shared, tuple(start + place for place in each.places)) for each in _of_few(part)]
    alone = tuple(sorted(place for each in found if not each.shared for place in each.places))
    return [each for each in found if each.shared] + ([Alike(0, alone)] if alone else [])


def beginnings(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each token from the tokens up to it: equal where sequences begin alike, else by chance only.

    A polynomial of the tokens, summed up along the sequence modulo 2^64 (Karp and Rabin 1987).

    Args:
        ids: Token ids of sequences that lie one after the other, [N].
        lengths: Of the sequences, each at least 1; [n].
    """
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(ids)) - np.repeat(starts, lengths)
    powers = _powers(int(lengths.max()).bit_length())[places]
    summed = np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * powers)
    before = np.where(starts > 0, summed[starts - 1], np.uint64(0))
    return np.asarray((summed - np.repeat(before, lengths)).view(np.int64))


@functools.lru_cache(maxsize=32)
def _powers(bits: int) -> NDArray[np.uint64]:
    """The first 2^bits of an odd number's, modulo 2^64."""
    powers = np.full(1 << bits, _BASE, dtype=np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


_BASE = np.uint64(0x9E3779B97F4A7C15)


def _of_few(examples: Sequence[TokenisedExample]) -> list[Alike]:
    heads = [_as_bytes(_marked(example, LEAST_SHARED)) for example in examples]
    known, twice = set[bytes](), set[bytes]()
    for head in heads:
        (twice if head in known else known).add(head)
    some = [place for place, head in enumerate(heads) if head in twice and len(examples[place]) >= LEAST_SHARED]
    if not some:
        return [Alike(0, tuple(range(len(examples))))]
    tokens = {place: _marked(examples[place]) for place in some}
    order = sorted(some, key=lambda place: _as_bytes(tokens[place]))
    shared = [_common(tokens[one], tokens[two]) for one, two in itertools.pairwise(order)]
    alone = [Alike(0, (place,)) for place in set(range(len(examples))) - set(some)]
    return alone + [Alike(depth, tuple(order[start:end])) for depth, start, end in best_runs(shared)]


def best_runs(shared: Sequence[int]) -> list[tuple[int, int, int]]:
    """The runs of sorted sequences that save most when what each shares is read once, in order.

    Args:
        shared: What each has in common with the one behind it, for one less than there are sequences.

    Returns:
        (tokens shared, start, end) of runs that together are all of [0, len(shared) + 1); 0 tokens for a single one.
    """
    saved, last = [0], [(0, 0, 0)]  # of the best runs of the first 0, 1, ... sequences: tokens, and the last of them
    for end in range(1, len(shared) + 2):
        saved.append(saved[-1])
        last.append((0, end - 1, end))
        depth = shared[end - 2] if end > 1 else 0
        for start in range(end - 2, -1, -1):
            depth = min(depth, shared[start])
            if depth < LEAST_SHARED:
                break
            if saved[start] + depth * (end - start - 1) > saved[end]:
                saved[end], last[end] = saved[start] + depth * (end - start - 1), (depth, start, end)
    runs = []
    while last[-1][2]:
        runs.append(last[-1])
        del last[last[-1][1] + 1 :]
    return runs[::-1]


def _marked(example: TokenisedExample, first: int | None = None) -> NDArray[np.uint32]:
    """A number for each token (at most `first` of them), and whether it is a completion."""
    end = example.end if first is None else min(example.start + first, example.end)
    split, places = example.split, slice(example.start, end)
    return split.ids[places].astype(np.uint32) * np.uint32(2) + split.completion[places]


def _as_bytes(tokens: NDArray[np.uint32]) -> bytes:
    """That sort as the tokens do."""
    return tokens.astype(">u4").tobytes()


def _common(one: NDArray[np.uint32], two: NDArray[np.uint32]) -> int:
    least = min(len(one), len(two))
    differ = one[:least] != two[:least]
    return int(differ.argmax()) if differ.any() else least
