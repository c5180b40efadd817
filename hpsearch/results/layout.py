"""Losses of several candidates under the same seeds: a two-way table with one value per cell.

Under one seed all candidates see the same order of the data and the same dropout (common random numbers), so a loss is
the candidate's mean, plus what the seed does to all alike, plus a residual: randomised complete blocks (Fisher 1935,
"The design of experiments"; Scheffé 1959, "The analysis of variance", chapter 4). The residual variance s^2 is pooled
over all C candidates and S seeds, with (C - 1)(S - 1) degrees of freedom; a difference of two means has the standard
error s sqrt(2 / S).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FEWEST_SEEDS = 2
LARGEST = 1e30
"""A loss beyond it is as good as infinite: its square has to be a number."""
ROUNDING = 1e-12
"""Residuals up to that part of the largest loss are rounding: the repeats were identical."""


@dataclass(frozen=True)
class Layout:
    """What a table of losses comes down to."""

    means: dict[int, float]
    """By candidate, over the seeds; empty without a common seed."""
    seeds: int
    """That every candidate in it has."""
    residuals: float
    """Sum of squares, of all candidates and seeds; exactly 0 when the repeats were identical."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the residuals; 0: their variance is not known."""
        return max(0, len(self.means) - 1) * max(0, self.seeds - 1)

    @property
    def noise(self) -> float | None:
        """Standard deviation of one loss, after what a seed does to all alike; None if unknown."""
        return math.sqrt(self.residuals / self.freedom) if self.freedom else None


def two_way(losses: Mapping[int, Mapping[int, float]], control: int | None) -> Layout:
    """Lay out what can be compared.

    A seed counts where all candidates have it. While those are fewer than two, the candidate with the fewest losses is
    left out (the control last, then the later number first): it was not trained often enough yet.

    Args:
        losses: By candidate and seed, all finite.
        control: The candidate that the others are compared with, if it is among them.
    """
    rows = {number: losses[number] for number in sorted(losses)}
    while len(rows) > 1 and len(_common(rows)) < FEWEST_SEEDS:
        del rows[min(rows, key=lambda number: (len(rows[number]), number == control, -number))]
    seeds = _common(rows)
    if not seeds:
        return Layout({}, 0, 0.0)
    table = [[row[seed] for seed in seeds] for row in rows.values()]
    means = [math.fsum(row) / len(seeds) for row in table]
    by_seed = [math.fsum(column) / len(rows) for column in zip(*table, strict=True)]
    overall = math.fsum(means) / len(means)
    left = [
        loss - mean - effect + overall
        for row, mean in zip(table, means, strict=True)
        for loss, effect in zip(row, by_seed, strict=True)
    ]
    largest = max(abs(loss) for row in table for loss in row)
    identical = max(map(abs, left)) <= ROUNDING * largest
    residuals = 0.0 if identical else math.fsum(residual * residual for residual in left)
    return Layout(dict(zip(rows, means, strict=True)), len(seeds), residuals)


def is_usable(loss: float | None) -> bool:
    """Whether training ended with a loss that can be compared."""
    return loss is not None and abs(loss) <= LARGEST  # not so for nan


def _common(rows: Mapping[int, Mapping[int, float]]) -> list[int]:
    seeds = [set(row) for row in rows.values()]
    return sorted(set.intersection(*seeds)) if seeds else []
