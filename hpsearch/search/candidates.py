"""Points that a draw chooses from: what would be trained of each, and what that promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from scipy.special import ndtr

from hpsearch.search.curves import Array, Curves
from hpsearch.search.evidence import WORK, Evidence, values_at
from hpsearch.search.projection import Projection, Trained
from hpsearch.spec.space import Params


@dataclass(frozen=True)
class Candidates:
    """Points of the search space's cube."""

    points: Array
    """[n, d]."""
    trained: list[Trained]
    """What each would come to."""
    matters: NDArray[np.bool_] | None
    """Which coordinates do, [n, d]; None where all do everywhere."""

    @classmethod
    def at(cls, points: Array, evidence: Evidence, projection: Projection | None) -> Candidates:
        """Those at these points; without a projection, all that is drawn is trained."""
        names = list(evidence.distributions)
        columns = [values_at(each, points[:, place]) for place, each in enumerate(evidence.distributions.values())]
        drawn = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        if projection is not None:
            projected = [projection(each) for each in drawn]
            return cls(points, projected, np.array([[name in each.params for name in names] for each in projected]))
        values: dict[str, list[Any]] = dict(zip(names, columns, strict=True))
        usual = max((curve.epochs for curve in evidence.curves), default=1.0)
        epochs, unknown = values.get("epochs", [usual] * len(points)), [None] * len(points)
        work = (values.get(name, unknown) for name in WORK)
        return cls(points, [Trained._make(each) for each in zip(drawn, epochs, *work, strict=True)], None)

    def promises(self, model: Curves, evidence: Evidence) -> Array:
        """Expected improvement at the end of a new trial of each, [n]."""
        ends = evidence.at(self.trained, [each.epochs for each in self.trained], [-1] * len(self.trained))
        return improvement(*model.predict(ends), evidence.target)


def improvement(mean: Array, spread: Array, target: float) -> Array:
    """Expected improvement on the target of normally distributed losses, [n]."""
    gain = (target - mean) / spread
    density = np.exp(-0.5 * gain * gain) / np.sqrt(2 * np.pi)
    return np.asarray(spread * (gain * ndtr(gain) + density))


def params_at(space: Mapping[str, BaseDistribution], point: Array) -> Params:
    """The legal params nearest to a point of the cube."""
    return {
        name: values_at(distribution, np.array([part]))[0]
        for part, (name, distribution) in zip(point, space.items(), strict=True)
    }


def near(centers: Array, count: int, spread: float, dice: Generator) -> Array:
    """Points around each center, most of whose coordinates are moved: [len(centers) * count, d]."""
    points = np.repeat(centers, count, axis=0)
    moved = dice.random(points.shape) < 0.7
    return np.clip(points + spread * dice.standard_normal(points.shape) * moved, 0.0, 1.0)
