"""Tokenised examples as a few flat arrays: they can be mapped from a file, and processes can share their pages."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedExample:
    """One example as a model reads it, cut at the maximum length: a view of its split."""

    split: TokenisedSplit
    place: int
    """In the split."""
    start: int
    end: int
    """Its tokens are the split's [start, end)."""
    completion_tokens: int
    """Completion tokens that are predicted."""
    completion_bytes: int
    """UTF-8 bytes of the completion text that was kept, without end-of-turn markers."""

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that are predicted."""
        return max(len(self) - 1, 0) - self.completion_tokens

    @property
    def ids(self) -> Tensor:
        """int64, [T]."""
        return torch.from_numpy(self.split.ids[self.start : self.end].astype(np.int64))

    @property
    def completion(self) -> Tensor:
        """bool, [T]: completion tokens. The first token is predicted by nothing and counts nowhere."""
        return torch.from_numpy(self.split.completion[self.start : self.end].copy())

    @property
    def truncated(self) -> bool:
        """Whether it was cut at the maximum length."""
        return bool(self.split.cut[self.place])


class TokenisedExamples(Sequence[TokenisedExample]):
    """The examples of a split, each made when it is asked for."""

    def __init__(self, split: TokenisedSplit) -> None:
        self.split = split
        # Views of memory give Python's own numbers, several times faster than an array does.
        self._offsets = split.offsets.data
        self._completion_tokens = split.completion_tokens.data
        self._completion_bytes = split.completion_bytes.data
        self._count = len(split.completion_tokens)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> TokenisedExample: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[TokenisedExample, ...]: ...

    def __getitem__(self, place: int | slice) -> TokenisedExample | tuple[TokenisedExample, ...]:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(self._count)))
        if place < 0:
            place += self._count
        if not 0 <= place < self._count:
            raise IndexError(f"there are {self._count} examples")
        return TokenisedExample(
            self.split,
            place,
            self._offsets[place],
            self._offsets[place + 1],
            self._completion_tokens[place],
            self._completion_bytes[place],
        )


@dataclass(frozen=True, eq=False)
class TokenisedSplit:
    """The examples of one split that have completion tokens left, in order. n examples, N tokens."""

    ids: NDArray[np.int32]
    """[N]: all examples' tokens, one after the other."""
    completion: NDArray[np.bool_]
    """[N]: which of them are completion tokens."""
    offsets: NDArray[np.int64]
    """[n + 1]: example i has the tokens [offsets[i], offsets[i + 1])."""
    completion_tokens: NDArray[np.int64]
    """[n]: those that are predicted."""
    completion_bytes: NDArray[np.int64]
    """[n]"""
    cut: NDArray[np.bool_]
    """[n]: whether the example was cut at the maximum length."""
    truncated: int
    """Examples that were cut at the maximum length, those left out among them."""
    left_out: int
    """Examples whose completion was cut away entirely: they teach nothing."""
    tokens_lost: int
    """Tokens that were cut away, and all tokens of the examples left out."""

    @property
    def given(self) -> int:
        """Examples that the split had before any was left out."""
        return len(self.examples) + self.left_out

    @functools.cached_property
    def examples(self) -> TokenisedExamples:
        """The examples as a sequence."""
        return TokenisedExamples(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is learned from: the tokens, which of them are completions, and their order."""
        digest = hashlib.sha256()
        bounds = self.offsets.tolist()
        for start, end in itertools.pairwise(bounds):
            digest.update((end - start).to_bytes(8, "little"))
            digest.update(self.ids[start:end].astype("<i8").data)
            digest.update(self.completion[start:end].data)
        return digest.hexdigest()


@dataclass(frozen=True)
class TokenisedData:
    """Both splits of a study."""

    train: TokenisedSplit
    validation: TokenisedSplit
    validation_fingerprint: str
    """Of the validation examples, before they were tokenised."""
