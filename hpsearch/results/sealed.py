"""What a trial scores on the sealed test split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SealedScore:
    """The objective of one training's kept weights on the test split, in blocks of neighbouring examples.

    How the blocks differ says how far the whole depends on which examples the split happens to have.
    """

    fingerprint: str
    """Of the tokens: figures of different examples are never compared."""
    examples: int
    values: tuple[float, ...]
    """`[blocks]`, each a mean over its tokens or bytes."""
    weights: tuple[float, ...]
    """`[blocks]`: so many tokens or bytes."""
    unread: str | None = None
    """Why the split could not be read; then there is nothing else."""

    @classmethod
    def failed(cls, text: str) -> SealedScore:
        """The split could not be read."""
        return cls("", 0, (), (), text)

    @property
    def value(self) -> float:
        """Over the whole split; NaN where a block's is not finite, or where it could not be read."""
        products = [value * weight for value, weight in zip(self.values, self.weights, strict=True)]
        finite = products and all(map(math.isfinite, products))
        return math.fsum(products) / math.fsum(self.weights) if finite else math.nan

    def as_json(self) -> dict[str, Any]:
        """Its fields; what is not finite is null."""
        values = [value if math.isfinite(value) else None for value in self.values]
        return {**vars(self), "values": values, "weights": list(self.weights)}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> SealedScore:
        """From `as_json`."""
        values = tuple(math.nan if value is None else value for value in stored["values"])
        return cls(**{**stored, "values": values, "weights": tuple(stored["weights"])})
