"""How population based training chooses: who ends, who is gone on from, and what changes.

As Ray Tune's `PopulationBasedTraining` does it, but that nothing leaves the search space.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from hpsearch.spec.space import Params, Value

FACTORS = (1.2, 0.8)
"""A number is multiplied by one of these."""


def quantile_size(members: int, quantile: float) -> int:
    """How many are the worst, and how many the best: rounded up, at most half, none of a single one."""
    return min(math.ceil(members * quantile), members // 2)


def explored(params: Params, spaces: dict[str, BaseDistribution], resample: float, dice: random.Random) -> Params:
    """Params near others, for a trial that goes on from where another one stands.

    Args:
        params: Of the trial that is gone on from.
        spaces: Of the parameters that may change; those that the params lack stay away.
        resample: The chance of each to be drawn anew from its whole space.
        dice: Thrown for each in turn.
    """
    changed = {
        name: _drawn(space, dice) if dice.random() < resample else _moved(params[name], space, dice)
        for name, space in spaces.items()
        if name in params
    }
    return {**params, **changed}


def _drawn(space: BaseDistribution, dice: random.Random) -> Value:
    if isinstance(space, CategoricalDistribution):
        return _choices(space)[dice.randrange(len(space.choices))]
    assert isinstance(space, FloatDistribution)  # as all are that may change in the middle of a training
    if space.log:
        return _nearest(space, math.exp(dice.uniform(math.log(space.low), math.log(space.high))))
    half = (space.step or 0) / 2  # each step is as likely as another
    return _nearest(space, dice.uniform(space.low - half, space.high + half))


def _moved(value: Value, space: BaseDistribution, dice: random.Random) -> Value:
    """Multiplied, but at least by a step of the space; or a neighbour among choices. At an end, it may stay."""
    if isinstance(space, CategoricalDistribution):
        choices = _choices(space)
        place = choices.index(value) + dice.choice((-1, 1))
        return choices[min(max(place, 0), len(choices) - 1)]
    assert isinstance(space, FloatDistribution)
    assert not isinstance(value, str)
    factor = dice.choice(FACTORS)
    moved = _nearest(space, value * factor)
    if moved == value and space.step:
        moved = _nearest(space, value + (space.step if factor > 1 else -space.step))
    return moved


def _nearest(space: FloatDistribution, value: float) -> float:
    """The space's point that is nearest to a number."""
    if space.step:
        value = space.low + round((value - space.low) / space.step) * space.step
    return min(max(value, space.low), space.high)


def _choices(space: CategoricalDistribution) -> Sequence[Value]:
    """Numbers in their order: what is near is beside."""
    choices: Any = space.choices
    return sorted(choices)
