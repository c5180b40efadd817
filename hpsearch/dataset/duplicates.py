"""Which examples say nearly the same: a sketch of each, of a known size, and the groups that sketches make.

Two texts are near-duplicates when they share at least 0.8 (Jaccard) of their pieces of five characters, once case,
punctuation and white space are made alike. System messages are left out: they are shared boilerplate. A sketch is a
MinHash (Broder 1997) of 128 values, of which 8 bits each are kept (Li and König 2010, "b-Bit Minwise Hashing"), so
the estimate of 0.8 has a standard deviation of 0.035. Pairs to compare are those with an equal band of eight values:
16 bands meet a pair of Jaccard 0.7 with probability 0.61, of 0.8 with 0.95, of 0.9 with 0.9999.

Only numpy's integers and hashlib are used, all seeds are fixed: groups depend on contents and their order alone.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpsearch.dataset.examples import ChatExample, Example
from hpsearch.dataset.fingerprint import content_digest

THRESHOLDS = (0.8, 0.9, 0.95)
"""Jaccard from which texts are near-duplicates; the stricter ones are for groups that grew too large."""
LARGEST_GROUP = 20
"""Contents. More that hang together share a template, such as one long instruction: they are compared more strictly."""
FEWEST_PIECES = 20
"""Texts of fewer different ones are near-duplicates only when they are equal, once made alike."""

PIECE = 5
VALUES = 128
"""Of a sketch, a byte each."""
BAND = 8
MOST_PIECES = 512
"""Of a longer text, those with the smallest hashes: a fair sample, and the same one in its near-duplicates."""
NEIGHBOURS = 4
"""Each example is compared with so many before it that have the same band, and with the first: never with all."""
_PAIRS_AT_A_TIME = 2**16

_NO_LETTERS = re.compile(r"[\W_]+")
_MULTIPLIERS = np.frombuffer(hashlib.shake_256(b"hpsearch sketches").digest(4 * VALUES), "<u4")[:, None] | np.uint32(1)

Numbers = NDArray[np.int64]
Pairs = tuple[NDArray[np.uint64], NDArray[np.uint64]]


class Sketches:
    """What is kept of the examples of a file: 144 bytes each, however long they are."""

    def __init__(self) -> None:
        self._places = array("Q")
        self._lines = array("Q")
        self._sketches = bytearray()

    def add(self, example: Example) -> None:
        """Keep one more."""
        self._places.append(int.from_bytes(content_digest(example)[:8], "big"))
        self._lines.append(example.line)
        self._sketches += sketch(said(example))

    def __len__(self) -> int:
        return len(self._lines)

    def __add__(self, other: Sketches) -> Sketches:
        """Those of two files, one behind the other."""
        both = Sketches()
        both._places = self._places + other._places
        both._lines = self._lines + other._lines
        both._sketches = self._sketches + other._sketches
        return both

    @property
    def places(self) -> NDArray[np.uint64]:
        """Of each content a number drawn from [0, 2^64): 10^6 contents share one with probability 3e-8."""
        return np.frombuffer(self._places, np.uint64)

    @property
    def lines(self) -> NDArray[np.uint64]:
        """Of the file, from 1."""
        return np.frombuffer(self._lines, np.uint64)

    @property
    def sketches(self) -> NDArray[np.uint8]:
        """[examples, VALUES]."""
        return np.frombuffer(self._sketches, np.uint8).reshape(-1, VALUES)


def said(example: Example) -> str:
    """What is compared of an example."""
    if isinstance(example, ChatExample):
        return " ".join(message.content for message in example.messages if message.role != "system")
    return f"{example.prompt} {example.completion}"


def sketch(text: str) -> bytes:
    """VALUES bytes; the share of equal ones estimates the Jaccard similarity of two texts' pieces."""
    alike = _NO_LETTERS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip() or text
    pieces = _distinct(_piece_hashes(alike))[:MOST_PIECES]
    if len(pieces) < FEWEST_PIECES:
        return hashlib.shake_256(alike.encode()).digest(VALUES)
    lowest: NDArray[np.uint32] = (_MULTIPLIERS * pieces).min(axis=1)
    kept: bytes = ((lowest * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8).tobytes()
    return kept


def _piece_hashes(text: str) -> NDArray[np.uint32]:
    """Of all pieces of five characters; constants of splitmix64 (Steele et al. 2014) mix them."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    count = max(len(codes) - PIECE + 1, 0)
    mixed = codes[:count]
    for place in range(1, PIECE):
        mixed = (mixed * np.uint64(0x9E3779B97F4A7C15)) ^ codes[place : place + count]
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def _distinct(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """In ascending order; ten times faster than `np.unique`."""
    hashes.sort()
    return np.concatenate((hashes[:1], hashes[1:][hashes[1:] != hashes[:-1]]))


def first_equals(sketches: Sketches) -> Numbers:
    """Of each example the index of the first one with the same content, often its own."""
    _, first, inverse = np.unique(sketches.places, return_index=True, return_inverse=True)
    return first.astype(np.int64)[inverse]


def groups(sketches: Sketches) -> Numbers:
    """Of each example the index of the first one of its group, often its own.

    A group is what hangs together by near-duplicates. One of more than LARGEST_GROUP contents is compared again at
    the next threshold; behind the last one, only equal contents stay together. Examples that are appended leave the
    groups of those before them as they are, except that they may join two, or make one too large.
    """
    equals = first_equals(sketches)
    firsts = np.arange(len(sketches))
    members = np.flatnonzero(equals == firsts)
    for threshold in THRESHOLDS:
        roots = _connected(sketches.sketches, members, threshold)
        too_large = np.bincount(roots, minlength=1)[roots] > LARGEST_GROUP
        firsts[members[~too_large]] = members[roots[~too_large]]
        members = members[too_large]
    return firsts[equals]


def exact_repeats(sketches: Sketches) -> Pairs:
    """Lines of the examples that repeat an earlier one, and the lines of those."""
    equals = first_equals(sketches)
    later = np.flatnonzero(equals != np.arange(len(sketches)))
    return sketches.lines[later], sketches.lines[equals[later]]


def near_repeats(sketches: Sketches) -> Pairs:
    """Lines of the contents that nearly repeat an earlier one, and the lines of the first of their groups."""
    everyone, firsts = np.arange(len(sketches)), groups(sketches)
    later = np.flatnonzero((firsts != everyone) & (first_equals(sketches) == everyone))
    return sketches.lines[later], sketches.lines[firsts[later]]


def repeats_across(earlier: Sketches, later: Sketches) -> tuple[NDArray[np.uint64], Pairs]:
    """What a second file repeats of a first: the lines that do so exactly; those that nearly do, and of what."""
    exactly = np.isin(later.places, earlier.places)
    firsts = groups(earlier + later)[len(earlier) :]
    nearly = (firsts < len(earlier)) & ~exactly
    return later.lines[exactly], (later.lines[nearly], earlier.lines[firsts[nearly]])


def _connected(sketches: NDArray[np.uint8], members: Numbers, threshold: float) -> Numbers:
    """Of each member the first one (both as places in `members`) of its connected component."""
    roots = np.arange(len(members))
    bands = sketches.view("<u8")
    for band in range(VALUES // BAND):
        for earlier, later in _candidates(bands[members, band]):
            apart = roots[earlier] != roots[later]
            left, right = earlier[apart], later[apart]
            alike = _are_alike(sketches, members[left], members[right], threshold)
            roots = _joined(roots, left[alike], right[alike])
    return roots


def _candidates(keys: NDArray[np.uint64]) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs (earlier, later) with equal keys. What comes later changes no pair of those before it."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.arange(len(keys))
    starts[1:][keys[1:] == keys[:-1]] = 0
    np.maximum.accumulate(starts, out=starts)
    later = np.flatnonzero(starts != np.arange(len(keys)))
    starts = starts[later]
    for back in range(1, NEIGHBOURS + 1):
        within = later - back >= starts
        yield order[later[within] - back], order[later[within]]
    yield order[starts], order[later]


def _are_alike(sketches: NDArray[np.uint8], left: Numbers, right: Numbers, threshold: float) -> NDArray[np.bool_]:
    alike = np.empty(len(left), np.bool_)
    for start in range(0, len(left), _PAIRS_AT_A_TIME):
        part = slice(start, start + _PAIRS_AT_A_TIME)
        equal = np.count_nonzero(sketches[left[part]] == sketches[right[part]], axis=1)
        alike[part] = equal >= threshold * VALUES
    return alike


def _joined(roots: Numbers, left: Numbers, right: Numbers) -> Numbers:
    """The roots once each pair is in one component; a root is its component's first member."""
    if not len(left):
        return roots
    for pair in zip(left.tolist(), right.tolist(), strict=True):
        low, high = sorted(_root(roots, member) for member in pair)
        roots[high] = low
    while not np.array_equal(roots, flatter := roots[roots]):
        roots = flatter
    return roots


def _root(roots: Numbers, member: int) -> int:
    while (above := int(roots[member])) != member:
        roots[member] = roots[above]
        member = above
    return member
