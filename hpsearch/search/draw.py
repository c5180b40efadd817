"""Draws a trial's params: one joint draw of the spec's sampler, repeated until it is a new point that may be tried."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial

from hpsearch.search.distributions import distributions
from hpsearch.search.projection import Trained, projection
from hpsearch.search.samplers import sampler, seed_of
from hpsearch.search.taught import Taught, lesson
from hpsearch.spec.points import Key, active, all_points, key, may_be_left_out, params_of, unmet
from hpsearch.spec.sampler import CurvesSamplerSpec, GridSpec, QMCSpec
from hpsearch.spec.space import Params, Value
from hpsearch.spec.study import StudySpec

SAMPLER_ATTEMPTS = 8
"""Draws of the spec's sampler for one trial, before chance decides."""
RANDOM_ATTEMPTS = 1000
"""Draws by chance, before the trial ends as infeasible."""


class Points:
    """The points of one study's search space.

    Args:
        spec: The study; its sampler is named by now.
        examples: Size of the training set.
        defaults: The `auto` defaults, a value for each parameter that varies; or none.
    """

    def __init__(self, spec: StudySpec, examples: int, defaults: Params) -> None:
        self.spec, self.examples, self.defaults = spec, examples, defaults
        self.distributions = distributions(spec.search_space)
        self.sometimes = may_be_left_out(spec)
        self.projection = projection(spec, examples)
        listed = all_points(spec, examples)
        self._listed = None if listed is None else {key(point): point for point in listed}

    def active(self, params: Params) -> Params:
        """The params that matter."""
        return active(self.spec, params, self.examples)

    def unmet(self, params: Params) -> str | None:
        """The first requirement that a point does not meet."""
        return unmet(self.spec, params, self.examples)

    def params_of(self, chosen: Mapping[str, Value]) -> Params | None:
        """The params here that come to these ten parameters; None when none do."""
        return params_of(self.spec, chosen, self.examples)

    def whole(self, given: Params) -> Params | None:
        """The params that matter of given ones that leave nothing to draw; None when they leave something."""
        anything = {name: space.to_external_repr(_lowest(space)) for name, space in self.distributions.items()}
        chosen = self.active({**anything, **given})
        return chosen if chosen.keys() <= given.keys() else None

    def untried(self, tried: Collection[Key]) -> list[Params] | None:
        """What is left of a space whose points can be listed; None of one whose can't."""
        return None if self._listed is None else [self._listed[each] for each in self._listed if each not in tried]


class Draw(BaseSampler):
    """Optuna asks it for a trial's params.

    Args:
        points: Where to draw from.
        tried: Points that were tried or are lined up.
        trials: All trials of the study so far.
        lent: Completed trials of other studies that teach too.
    """

    def __init__(
        self,
        points: Points,
        tried: Collection[Key],
        trials: Callable[[], Sequence[FrozenTrial]],
        lent: Sequence[FrozenTrial] = (),
    ) -> None:
        self._points, self._tried, self._trials, self._lent = points, tried, trials, lent

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: they are drawn together."""
        del study, trial
        return self._points.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A new point that may be tried; the last draw when there was none."""
        del search_space
        taught, place = lesson(self._trials(), trial.number, study.direction.name.lower(), self._lent)
        shown, seen = Taught(study, taught), _at(trial, place)
        given: Params = trial.system_attrs.get("fixed_params", {})
        dice = random.Random(seed_of(self._points.spec.seed, place))
        listed = self._listed(given, dice)
        if listed is not None and isinstance(self._points.spec.sampler, GridSpec):
            return listed
        params: Params = {}
        for attempt in range(SAMPLER_ATTEMPTS):
            params = {**self._drawn(shown, seen, place, attempt, given), **given}
            if self._is_new(params, given):
                return params
        if listed is not None:
            return listed
        for attempt in range(RANDOM_ATTEMPTS):
            chance = RandomSampler(seed=seed_of(self._points.spec.seed, place, SAMPLER_ATTEMPTS + attempt))
            params = {**self._independent(chance, shown, seen, {}), **given}
            if self._is_new(params, given):
                return params
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never asked: the joint draw has every parameter."""
        del study, trial, param_distribution
        raise RuntimeError(f"{param_name} was asked for by itself, but a draw has every parameter")

    def _listed(self, given: Params, dice: random.Random) -> Params | None:
        """A point of a space that can be listed, which nobody has tried and which has the given values."""
        untried = self._points.untried(self._tried)
        fitting = [point for point in untried or () if given.items() <= point.items()]
        return dice.choice(fitting) if fitting else None

    def _is_new(self, params: Params, given: Params) -> bool:
        """Whether the params may be tried, were not yet, and are such that all that was given matters."""
        chosen = self._points.active(params)
        is_heeded = given.keys() - chosen.keys() <= {"epochs"}  # which are free where the most of them answer for fewer
        return is_heeded and key(chosen) not in self._tried and self._points.unmet(chosen) is None

    def _drawn(self, study: Any, trial: FrozenTrial, place: int, attempt: int, given: Params) -> Params:
        spec, project = self._points.spec, self._points.projection

        def trained(params: Params) -> Trained:
            assert project is not None
            return project({**params, **given})

        inner = sampler(
            spec.sampler,
            spec.seed,
            place,
            attempt,
            conditional=bool(self._points.sometimes),
            defaults=self._points.defaults,
            is_new=lambda params: self._is_new({**params, **given}, given),
            projection=None if project is None else trained,
        )
        if isinstance(spec.sampler, QMCSpec | CurvesSamplerSpec):
            # They would wait for a first trial to learn the space from.
            space = self._points.distributions
        else:
            inner.before_trial(study, trial)
            space = inner.infer_relative_search_space(study, trial)
            if not getattr(inner, "_group", False):  # a space that changes with the trials ends CMA-ES
                space = {name: space[name] for name in space if name not in self._points.sometimes}
        return self._independent(inner, study, trial, inner.sample_relative(study, trial, space))

    def _independent(self, inner: BaseSampler, study: Any, trial: FrozenTrial, params: dict[str, Any]) -> Params:
        """The params with what is missing drawn by itself."""
        return {
            name: params[name] if name in params else inner.sample_independent(study, trial, name, distribution)
            for name, distribution in self._points.distributions.items()
        }


def suggest(trial: Trial, points: Points, given: Params) -> Params:
    """Write the trial's params: those that matter of what was given to it and of what is drawn."""
    chosen = points.whole(given)
    if chosen is None:
        chosen = points.active({**trial.relative_params, **given})
    return {name: _suggest(trial, name, points.distributions[name]) for name in points.distributions if name in chosen}


def _suggest(trial: Trial, name: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    suggested = trial.suggest_float if isinstance(distribution, FloatDistribution) else trial.suggest_int
    return suggested(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _lowest(distribution: Any) -> float:
    return 0 if isinstance(distribution, CategoricalDistribution) else float(distribution.low)


def _at(trial: FrozenTrial, place: int) -> FrozenTrial:
    moved = copy.copy(trial)
    moved.number = place
    return moved
