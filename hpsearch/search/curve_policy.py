"""A sampler and a pruner that know what a fine-tune's learning curve looks like.

Both ask one model of all curves of the study (`curves.py`) where a trial will end. The sampler draws the params whose
end promises the largest improvement. The pruner stops a trial as soon as it will hardly beat the best report so far.
All they know is in the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from scipy.special import ndtr
from scipy.stats import qmc

from hpsearch.results.attributes import BASELINE
from hpsearch.search.belief import Belief
from hpsearch.search.candidates import Candidates, near, params_at
from hpsearch.search.curves import Array, Curves, fit, prior
from hpsearch.search.evidence import Curve, Evidence, curve_of, number
from hpsearch.search.projection import Projection
from hpsearch.search.taught import continued
from hpsearch.spec.space import Params

FITTED = "curves:fitted"
"""Trial attribute: how many reports there were when the model was fitted to draw or judge the trial, and its
hyperparameters."""

GROWN = 1.15
"""The model is fitted again when there are so many times more reports; in between, only its data are renewed."""

TINY = 1e-6
"""Of an epoch."""

FEWEST_CURVES = 3
"""Before so many trials have reported, no params are drawn by the model."""

EVENLY, LOCALLY, REFINED, NEAR_DEFAULTS = 256, 24, 24, 64
"""Candidates: spread over the space; around each of the best trials; around each of the best candidates; and, where
the defaults are believed in, around them."""

BELIEVED = 1
"""The trial, after the defaults themselves, that is drawn near them before there is a model."""

LEAST_PROMISE = 1e-300
"""Of improvement; below it lie no normal numbers."""


class CurveSampler(BaseSampler):
    """Draws where the end of the curve promises most.

    Args:
        startup_trials: Trials before the model is used, spread evenly, but for one near the defaults.
        study_seed: For the sequence of the first trials.
        seed: For this one draw.
        is_repeated: The first draw for this trial could not be used.
        defaults: A value for each parameter, near which the best ones are believed to be; None where nothing is.
        strength: Of that belief.
        is_new: Whether params may be tried and were not yet. In a space of choices, what promises most was mostly
            tried already; then the next best is drawn.
        projection: What would be trained of params; None where that is always all of them.
    """

    def __init__(
        self,
        startup_trials: int,
        study_seed: int,
        seed: int,
        *,
        is_repeated: bool = False,
        defaults: Params | None = None,
        strength: float = 0.0,
        is_new: Callable[[Params], bool] = lambda _params: True,
        projection: Projection | None = None,
    ) -> None:
        self._startup_trials, self._study_seed, self._is_repeated = startup_trials, study_seed, is_repeated
        self._defaults, self._strength = defaults, strength
        self._is_new, self._projection = is_new, projection
        self._dice = np.random.default_rng(seed)
        self._chance = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What completed trials have in common; `Draw` knows the space before there is one."""
        del trial
        return optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The params of one trial."""
        curves, baseline = _known(study, trial.number)
        if trial.number < self._startup_trials or sum(bool(curve.losses) for curve in curves) < FEWEST_CURVES:
            return self._first(trial.number, search_space)
        evidence = Evidence(curves, search_space, baseline)
        model = _with_ends_of_running(_model(study, trial, evidence), evidence, curves)
        return self._most_promising(model, evidence, trial.number)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """By chance; only for a parameter that the joint draw was not asked for."""
        return self._chance.sample_independent(study, trial, param_name, param_distribution)

    def _first(self, place: int, space: Mapping[str, BaseDistribution]) -> Params:
        if self._is_repeated:
            point = self._dice.random(len(space))
        else:
            point = qmc.Sobol(len(space), rng=self._study_seed).random(2 ** place.bit_length())[place]
            belief = self._belief(space)
            if belief is not None and place == BELIEVED:
                point = belief.near(point[None])[0]
        return params_at(space, point)

    def _belief(self, space: Mapping[str, BaseDistribution]) -> Belief | None:
        return Belief(space, self._defaults, self._strength) if self._defaults and self._strength else None

    def _most_promising(self, model: Curves, evidence: Evidence, place: int) -> Params:
        space, dice, belief = evidence.distributions, self._dice, self._belief(evidence.distributions)
        best = sorted(evidence.curves, key=lambda curve: (curve.best, curve.number))[:4]
        around = [[number(space[name], curve.params.get(name)) for name in space] for curve in best]
        spread = [qmc.Sobol(len(space), rng=dice).random(EVENLY), near(np.array(around), LOCALLY, 0.12, dice)]
        if belief is not None:
            spread.append(belief.near(qmc.Sobol(len(space), rng=dice).random(NEAR_DEFAULTS)))
        candidates = Candidates.at(np.vstack(spread), evidence, self._projection)
        promises = candidates.promises(model, evidence)
        power = 0.0
        if belief is not None:
            densities = belief.log_density(candidates.points, candidates.matters)
            power = belief.power(place, densities[:EVENLY], promises[:EVENLY])

        def weighed(asked: Candidates, promised: Array) -> Array:
            if belief is None:
                return promised
            # In the logarithm: where the belief is strong, everything else would be 0.
            logs = np.log(np.maximum(promised, LEAST_PROMISE))
            return logs + power * belief.log_density(asked.points, asked.matters)

        worths = weighed(candidates, promises)
        best_points = candidates.points[np.argsort(-worths, kind="stable")[:5]]
        refined = Candidates.at(near(best_points, REFINED, 0.06, dice), evidence, self._projection)
        worths = np.concatenate([worths, weighed(refined, refined.promises(model, evidence))])
        points = np.vstack([candidates.points, refined.points])
        order = np.argsort(-worths, kind="stable")
        ordered = (params_at(space, points[index]) for index in order)
        return next(filter(self._is_new, ordered), params_at(space, points[order[0]]))


class Odds(NamedTuple):
    """What a trial in training is worth."""

    chance: float
    """Of a report better than the best so far."""
    needed: float
    """With less, it stops."""
    best: float
    """That report, in the objective's unit."""


class CurvePruner(BasePruner):
    """Stops a trial that will hardly beat the best report of the study.

    Reports of trials that have ended without a value are not to be beaten. A trial that made this best report goes on,
    so the first one does; the second can be stopped already. The chance is the largest over the trial's future reports,
    so that one whose learning rate has yet to fall is judged by where it will be then. What a stop saves is what is
    left of the trial, so in its second half less of a chance is enough to go on.

    Args:
        chance: Below it, the trial stops; below twice this times what is left, once that is less than half.
        min_epochs: Of training that every trial gets.
    """

    def __init__(self, chance: float, min_epochs: float) -> None:
        self._chance, self._min_epochs = chance, min_epochs
        self._ended: dict[int, Curve | None] = {}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, which has just reported, stops."""
        odds = self.odds(study, trial)
        return odds is not None and odds.chance < odds.needed

    def odds(self, study: optuna.Study, trial: FrozenTrial) -> Odds | None:
        """What speaks for a trial that has just reported; None where it goes on in any case."""
        curves, baseline = _known(study, ended=self._ended)
        own = next((curve for curve in curves if curve.number == trial.number), None)
        if own is None or not own.losses:
            return None
        if not self._min_epochs - TINY <= own.reached[-1] < own.epochs - TINY:
            return None
        evidence = Evidence(curves, _space(study), baseline)
        if own.best <= evidence.best:
            return None
        model = _model(study, trial, evidence)
        ahead = np.linspace(own.reached[-1], own.epochs, 5)[1:]
        count = len(ahead)
        mean, spread = model.predict(evidence.at([own.trained] * count, ahead, [own.number] * count))
        left = 1 - own.reached[-1] / own.epochs
        sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        return Odds(
            chance=float(ndtr((evidence.target - mean) / spread).max()),
            needed=self._chance * min(1.0, 2 * left),
            best=sign * evidence.best,
        )


def _known(
    study: optuna.Study, besides: int | None = None, ended: dict[int, Curve | None] | None = None
) -> tuple[list[Curve], float]:
    """The curves of a study, and the baseline's loss; what was lent by a study that evaluates otherwise is not read.

    Args:
        study: Of the trials.
        besides: The number of a trial that is left out.
        ended: Curves of trials that have ended, by number: read before, and change no more. It is added to.
    """
    ended = {} if ended is None else ended
    maximise = study.direction == optuna.study.StudyDirection.MAXIMIZE
    contract = study.user_attrs.get(BASELINE, {}).get("evaluation_contract")
    every = study.get_trials(deepcopy=False)
    left_out = {besides, *continued(every)}
    trials = [
        trial
        for trial in every
        if trial.number not in left_out and trial.user_attrs.get("evaluation_contract", contract) == contract
    ]
    curves = []
    for trial in trials:
        curve = ended[trial.number] if trial.number in ended else curve_of(trial, maximise)
        if trial.state.is_finished():
            ended[trial.number] = curve
        if curve is not None:
            curves.append(curve)
    baselines = [trial.intermediate_values[0] for trial in trials if 0 in trial.intermediate_values]
    sign = -1 if maximise else 1
    return curves, max((sign * value for value in baselines), default=float("inf"))


def _model(study: optuna.Study, trial: FrozenTrial, evidence: Evidence) -> Curves:
    """The model of what is known, fitted again when that has grown much; the new fit is kept on the trial."""
    reports, fitted = _fitted(study, evidence.points.x.shape[1])
    if evidence.reports >= GROWN * reports:
        fitted = fit(evidence.points, evidence.y)
        study._storage.set_trial_system_attr(trial._trial_id, FITTED, [evidence.reports, *fitted.tolist()])
    return Curves(evidence.points, evidence.y, fitted)


def _fitted(study: optuna.Study, dimensions: int) -> tuple[int, Array]:
    """The fit to the most reports in this space, and how many those are; before there is one, the prior and none."""
    start = prior(dimensions)
    kept = (trial.system_attrs.get(FITTED, ()) for trial in study.get_trials(deepcopy=False))
    found = max((one for one in kept if len(one) == 1 + len(start)), key=lambda one: one[0], default=(0, *start))
    return int(found[0]), np.array(found[1:])


def _space(study: optuna.Study) -> dict[str, BaseDistribution]:
    """Every parameter that any trial has."""
    found: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        found.update(trial.distributions)
    return found


def _with_ends_of_running(model: Curves, evidence: Evidence, curves: Sequence[Curve]) -> Curves:
    """The model told that running trials end where it predicts: so parallel trials keep apart."""
    running = [curve for curve in curves if curve.is_running]
    if not running:
        return model
    numbers = [curve.number for curve in running]
    ends = evidence.at([curve.trained for curve in running], [curve.epochs for curve in running], numbers)
    mean, _ = model.predict(ends)
    return model.told(ends, mean)
