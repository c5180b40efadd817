"""What a trial scores on examples that nothing was chosen by."""

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

    examples: int
    values: tuple[float, ...]
    """`[blocks]`, each a mean over its tokens or bytes."""
    weights: tuple[float, ...]
    """`[blocks]`: so many tokens or bytes."""

    @property
    def value(self) -> float:
        """Over the whole split."""
        products = (value * weight for value, weight in zip(self.values, self.weights, strict=True))
        return math.fsum(products) / math.fsum(self.weights)

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return {"examples": self.examples, "values": list(self.values), "weights": list(self.weights)}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> SealedScore:
        """From `as_json`."""
        return cls(stored["examples"], tuple(stored["values"]), tuple(stored["weights"]))
