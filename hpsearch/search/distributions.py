"""The search space in Optuna's words."""

from __future__ import annotations

from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpsearch.spec.space import FloatRange, IntRange, SearchSpace, Varying


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One distribution per varying parameter. The spec has checked the bounds: a failing `ask` leaves an orphan."""
    return {name: _distribution(parameter) for name, parameter in space.varying().items()}


def _distribution(parameter: Varying) -> BaseDistribution:
    if isinstance(parameter, IntRange):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step or 1)
    if isinstance(parameter, FloatRange):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    choices: tuple[Any, ...] = parameter.choices
    return CategoricalDistribution(choices)
