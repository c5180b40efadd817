"""How much better a trial is on examples that nothing was chosen by.

Its losses and the defaults' are compared block by block of the test split, which has the same blocks for both, and seed
by seed. The difference of two ratios of sums over blocks has the linearised variance of Cochran 1977, "Sampling
techniques", section 6.4; what the seeds add to it is known from the validation losses (`layout.py`). The degrees of
freedom of the sum are Satterthwaite's (1946, "An approximate distribution of estimates of variance components").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpsearch.results.layout import Layout
from hpsearch.results.sealed import SealedScore
from hpsearch.results.shrinkage import Spread
from hpsearch.results.standing import TAIL

FEWEST_BLOCKS = 2


@dataclass(frozen=True)
class OnTest:
    """What the recommended trial scores there: means over the fresh seeds, in the objective's unit."""

    examples: int
    value: float
    defaults: float | None
    """None where the defaults are recommended, or failed."""
    gain: float | None
    """Over the defaults, positive is better in either direction."""
    low: float | None
    high: float | None
    """The 95 % interval of the gain, over other examples like these and other seeds."""


def on_test(
    own: Mapping[int, SealedScore], defaults: Mapping[int, SealedScore], layout: Layout, sign: float
) -> OnTest | None:
    """Compare a trial with the defaults on the test split; None without any usable figure.

    Args:
        own: By seed, of the trial.
        defaults: The same of the defaults; empty where there is nothing to compare with.
        layout: Of the validation losses.
        sign: 1 where smaller is better, else -1.
    """
    usable = {seed: sealed for seed, sealed in own.items() if math.isfinite(sealed.value)}
    if not usable:
        return None
    last = list(usable.values())[-1]
    usable = {seed: sealed for seed, sealed in usable.items() if _is_alike(sealed, last)}
    pairs = [
        (sealed, defaults[seed])
        for seed, sealed in usable.items()
        if seed in defaults and _is_alike(defaults[seed], last) and math.isfinite(defaults[seed].value)
    ]
    value = math.fsum(sealed.value for sealed in usable.values()) / len(usable)
    if not pairs:
        return OnTest(last.examples, value, None, None, None, None)
    theirs = math.fsum(other.value for _, other in pairs) / len(pairs)
    differences = np.mean([sign * (np.array(other.values) - np.array(one.values)) for one, other in pairs], axis=0)
    shares = np.array(last.weights) / math.fsum(last.weights)
    gain = float(shares @ differences)
    if differences.size < FEWEST_BLOCKS:
        return OnTest(last.examples, value, theirs, gain, None, None)
    parts = [_of_examples(differences, shares, gain), _of_seeds(layout, len(pairs))]
    variance = sum(part for part, _ in parts)
    freedom = 1.0
    if variance:
        freedom = variance**2 / sum(part**2 / own_freedom for part, own_freedom in parts if own_freedom)
    spread = Spread(np.ones(1), np.array([[gain]]), np.array([math.sqrt(variance)]), max(1, math.floor(freedom)))
    low, high = (float(end[0]) for end in spread.interval(TAIL))
    return OnTest(last.examples, value, theirs, gain, low, high)


def _is_alike(sealed: SealedScore, other: SealedScore) -> bool:
    """Whether both are of the same examples: a file may have been changed between two trainings."""
    return (sealed.examples, sealed.weights) == (other.examples, other.weights)


def _of_examples(differences: np.ndarray, shares: np.ndarray, gain: float) -> tuple[float, int]:
    """The variance that the examples give, and its degrees of freedom."""
    blocks = differences.size
    return float(blocks / (blocks - 1) * (shares**2 @ (differences - gain) ** 2)), blocks - 1


def _of_seeds(layout: Layout, seeds: int) -> tuple[float, int]:
    """The variance that the seeds give, and its degrees of freedom; 0 where it is not known."""
    return 2 * (layout.noise or 0.0) ** 2 / seeds, layout.freedom
