"""The points of a search space: which parameters of one matter, whether it may be tried, and all of a finite space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from hpsearch.spec.defaults import epochs_are_free, first_unmet, hyperparameters, meets
from hpsearch.spec.sampler import MOST_POINTS, GridSpec
from hpsearch.spec.space import Params, Value
from hpsearch.spec.study import StudySpec

Key = tuple[tuple[str, Value], ...]


def active(spec: StudySpec, params: Params, examples: int) -> Params:
    """The params that matter.

    Left out are parameters whose `when` does not hold, and epochs where the most of them answer for fewer: without a
    decay that depends on the horizon, the curve of a long trial begins with those of all shorter ones.
    """
    conditions = spec.search_space.conditions()
    free = hyperparameters(spec, {name: params[name] for name in params if name not in conditions}, examples)
    inactive = {name for name, condition in conditions.items() if not meets([condition], free, examples)}
    chosen = {name: value for name, value in params.items() if name not in inactive}
    if epochs_are_free(spec, hyperparameters(spec, chosen, examples), examples):
        chosen.pop("epochs", None)
    return chosen


def may_be_left_out(spec: StudySpec) -> frozenset[str]:
    """The parameters that some points have and others don't."""
    space = spec.search_space
    sometimes_constant = {"lr_schedule", "warmup_fraction"} & set(space.varying())
    return frozenset({*space.conditions(), *({"epochs"} & set(space.varying()) if sometimes_constant else ())})


def unmet(spec: StudySpec, params: Params, examples: int) -> str | None:
    """The first requirement of the study that a point does not meet; None when it may be tried."""
    if not spec.require:
        return None
    return first_unmet(spec.require, hyperparameters(spec, params, examples), examples)


def params_of(spec: StudySpec, chosen: Mapping[str, Value], examples: int) -> Params | None:
    """The params that come to these ten parameters in this study; None when none do, or when they may not be tried.

    Where epochs are nearly free, a trial of fewer epochs counts as well.
    """
    varying = spec.search_space.varying()
    params = active(spec, {name: chosen[name] for name in varying}, examples)
    if not all(varying[name].contains(value) for name, value in params.items()) or unmet(spec, params, examples):
        return None
    here = hyperparameters(spec, params, examples)
    free = {"epochs"} if "epochs" not in params and epochs_are_free(spec, here, examples) else set()
    differs = any(_rounded(chosen[name]) != _rounded(value) for name, value in here if name not in free)
    return None if differs else {name: varying[name].nearest(value) for name, value in params.items()}


def key(params: Params) -> Key:
    """Equal for equal points; the last digits of a float don't make another point."""
    return tuple(sorted((name, _rounded(value)) for name, value in params.items()))


def all_points(spec: StudySpec, examples: int) -> tuple[Params, ...] | None:
    """Every point that may be tried, each once; None when they are not listed, because they are too many.

    A grid cuts ranges without steps into even points; for every other sampler such a range has no end of points.
    """
    cuts = spec.sampler.points if isinstance(spec.sampler, GridSpec) else None
    values = spec.search_space.values(cuts)
    if values is None or spec.search_space.size(cuts) > MOST_POINTS:
        return None
    combinations = itertools.product(*values.values())
    points = (active(spec, dict(zip(values, chosen, strict=True)), examples) for chosen in combinations)
    found = {key(point): point for point in points}  # where epochs are free, many are one
    return tuple(point for point in found.values() if unmet(spec, point, examples) is None)


def _rounded(value: Value) -> Value:
    return float(f"{value:.12g}") if isinstance(value, float) else value
