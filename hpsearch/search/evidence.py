"""A study's trials as points for the model of its curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.curves import Array, Points
from hpsearch.search.projection import Trained
from hpsearch.search.taught import TEACHES, failure_of
from hpsearch.spec.space import Params, Value

MOST_TRIALS = 100
"""The model is fitted to so many at most: the best half and the newest half, running ones first."""

REPORTS_OF_A_TRIAL = 3
"""The last one, the one at half its exposure, at a quarter: neighbours on a curve say nearly the same."""

LONG = 8.0
"""Epochs that lie one unit of the model's first axis of time from the first."""

MUCH = LONG**3
"""So many times the work is one unit of the third axis."""

WORK = ("learning_rate_multiplier", "batch_size")
"""What decides it, apart from epochs; in the order of `Trained`."""

LEAST_REACH = 0.1
"""Of what lies between the untouched model and the best: no less is taken for the scale on which bad losses differ."""


@dataclass(frozen=True)
class Curve:
    """One trial, as far as it is known; losses are to be minimised."""

    number: int
    trained: Trained
    reached: tuple[float, ...]
    """Epochs at each report; the baseline is none of them."""
    losses: tuple[float, ...]
    is_running: bool
    has_failed: bool
    """Through its params' own fault."""
    has_value: bool
    """Or may still get one."""

    @property
    def params(self) -> Params:
        """Those that matter."""
        return self.trained.params

    @property
    def epochs(self) -> float:
        """Of its schedule."""
        return self.trained.epochs

    @property
    def best(self) -> float:
        """Infinite before the first report."""
        return min(self.losses, default=math.inf)


def curve_of(trial: FrozenTrial, maximise: bool) -> Curve | None:
    """None before its epochs are known, and for trials that teach nothing."""
    config = trial.user_attrs.get("config", {"hyperparameters": trial.params})
    epochs = config["hyperparameters"].get("epochs")
    if epochs is None or trial.state == TrialState.WAITING:
        return None
    failure = failure_of(trial)
    if failure is not None and failure not in TEACHES:
        return None
    reports = {report["exposure"]: float(report["epoch"]) for report in trial.user_attrs.get("curve", ())}
    steps = sorted(step for step in trial.intermediate_values if step > 0 and step in reports)
    return Curve(
        trial.number,
        trained(trial.params, epochs, config["hyperparameters"]),
        tuple(reports[step] for step in steps),
        tuple((-1 if maximise else 1) * trial.intermediate_values[step] for step in steps),
        trial.state == TrialState.RUNNING,
        failure is not None,
        failure is None and trial.state in (TrialState.RUNNING, TrialState.COMPLETE),
    )


def trained(params: Params, epochs: float, otherwise: Mapping[str, Any]) -> Trained:
    """What params come to, by what is known of those that are not drawn."""
    values: Mapping[str, Any] = {**otherwise, **params}
    return Trained(params, float(epochs), *(values.get(name) for name in WORK))


class Evidence:
    """What the model is fitted to.

    Args:
        curves: Of all trials; at least one has a report.
        distributions: The search space.
        baseline: What the untouched model scores; what is worse is as bad.
    """

    def __init__(
        self, curves: Sequence[Curve], distributions: Mapping[str, BaseDistribution], baseline: float = math.inf
    ) -> None:
        self.distributions = dict(sorted(distributions.items()))  # in whatever order they come
        known = [curve for curve in curves if curve.losses or curve.has_failed]
        self.curves = _seen(known)
        self.reports = sum(len(_rows(curve, baseline)) for curve in known)
        """How many there are, where a trial has at most three; also of trials that the model is not fitted to."""
        valued = [curve.best for curve in curves if curve.has_value and curve.losses]
        self.best = min(valued or (curve.best for curve in curves))
        self._usual = {name: _first(getattr(curve.trained, name) for curve in self.curves) for name in WORK}
        rows = [row for curve in self.curves for row in _rows(curve, baseline)]
        curve, reached, losses = zip(*rows, strict=True)
        self.points = self.at([one.trained for one in curve], reached, [one.number for one in curve])
        self._is_log = min(losses) > 0
        straight = np.array([self._straight(loss) for loss in losses])
        self._middle = float(np.median(straight))
        best = self._straight(self.best)
        self._reach = max(self._middle - best, 1e-9)
        if math.isfinite(baseline):  # the first few reports may all be alike
            self._reach = max(self._reach, LEAST_REACH * (self._straight(baseline) - best))
        bent = np.array([self._bent(value) for value in straight])
        self._center, self._scale = float(bent.mean()), float(bent.std()) or 1.0
        self.y = (bent - self._center) / self._scale
        self.target = self.scaled(self.best)
        """The best loss of the trials that have or may get a value, as the model sees it."""

    def scaled(self, loss: float) -> float:
        """A loss as the model sees it.

        In the logarithm, because what matters there is the ratio; and what is worse than the median is drawn
        together, so that the model's attention is with the better half.
        """
        return (self._bent(self._straight(loss)) - self._center) / self._scale

    def _straight(self, loss: float) -> float:
        return math.log(loss) if self._is_log else loss

    def _bent(self, straight: float) -> float:
        beyond = (straight - self._middle) / self._reach
        return self._middle + self._reach * math.tanh(beyond) if beyond > 0 else straight

    def at(self, trained: Sequence[Trained], reached: ArrayLike, trials: Sequence[int]) -> Points:
        """Where the model has reports of trials (-1: of a new one) at so many epochs."""
        places = [
            columns(distribution, [each.params.get(name) for each in trained])
            for name, distribution in self.distributions.items()
            if name != "epochs"  # they are time
        ]
        x = np.hstack(places) if places else np.zeros((len(trained), 0))
        rates = self._parts("learning_rate_multiplier", [each.learning_rate_multiplier for each in trained])
        rates /= np.sqrt(self._parts("batch_size", [each.batch_size for each in trained]))
        epochs = np.array([each.epochs for each in trained])
        return Points(x, times(np.array(reached), epochs, rates), np.array(trials, dtype=np.int64))

    def _parts(self, name: str, values: Sequence[float | None]) -> Array:
        """In parts of the first trial's where it is not drawn: 1, unless it moves with what is."""
        one = 1.0 if name in self.distributions else self._usual[name]
        return np.array([one if value is None else value for value in values]) / one


def times(reached: Array, epochs: Array, rates: Array) -> Array:
    """The model's time, [n, 3]: log epochs; the part of the trial's own schedule; and log work.

    Work is epochs times the learning rate over the root of the batch size. By the square root scaling rule for Adam
    (Malladi et al. 2022, https://arxiv.org/abs/2205.10287) curves with equal such rates are one over epochs: so a
    trial that lies behind because its rate is small is seen to be early on the common curve, and not bad.
    """
    log_epochs = np.log(np.maximum(reached, 1e-3))
    log_work = log_epochs + np.log(np.maximum(rates, 1e-9))
    return np.stack([log_epochs / math.log(LONG), reached / epochs, log_work / math.log(MUCH)], axis=1)


def _first(values: Iterable[float | None]) -> float:
    """The first that is known."""
    return next((value for value in values if value is not None), 1.0)


def _seen(known: list[Curve]) -> list[Curve]:
    if len(known) <= MOST_TRIALS:
        return known
    newest = sorted(known, key=lambda curve: (not curve.is_running, -curve.number))[: MOST_TRIALS // 2]
    best = sorted(known, key=lambda curve: (curve.best, curve.number))
    chosen = {curve.number: curve for curve in newest}
    for curve in best:
        if len(chosen) == MOST_TRIALS:
            break
        chosen[curve.number] = curve
    return [chosen[number] for number in sorted(chosen)]


def _rows(curve: Curve, baseline: float) -> list[tuple[Curve, float, float]]:
    """(curve, epochs reached, loss) of the reports that are kept."""
    kept = {len(curve.losses)}
    while len(kept) < REPORTS_OF_A_TRIAL and min(kept) > 1:
        kept.add(min(kept) // 2)
    rows = [
        (curve, curve.reached[count - 1], min(curve.losses[count - 1], baseline)) for count in sorted(kept) if count > 0
    ]
    if curve.has_failed:
        worst = baseline if math.isfinite(baseline) else max(curve.losses, default=math.inf)
        rows += [(curve, curve.epochs, worst)] if math.isfinite(worst) else []
    return rows


# -- one parameter -----------------------------------------------------------------------------------------------------


def number(distribution: BaseDistribution, value: Value | None) -> float:
    """Where a value lies between the lowest (0) and the highest (1); the middle for a parameter that is not there."""
    if value is None or distribution.single():
        return 0.5
    if isinstance(distribution, CategoricalDistribution):
        return _ordered(distribution).index(value) / (len(distribution.choices) - 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert not isinstance(value, str)
    low, high = distribution.low, distribution.high
    if distribution.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def values_at(distribution: BaseDistribution, places: Array) -> list[Value]:
    """The legal values nearest to places in [0, 1]: each has its own width there, also the outermost."""
    if isinstance(distribution, CategoricalDistribution):
        choices = _ordered(distribution)
        return [choices[index] for index in np.minimum((places * len(choices)).astype(int), len(choices) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = float(distribution.low), float(distribution.high), distribution.step or 0
    if isinstance(distribution, IntDistribution) and distribution.log:
        step = 1
    half = 0.0 if distribution.log and low <= step / 2 else step / 2
    low, high = low - half, high + half
    values = low * (high / low) ** places if distribution.log else low + places * (high - low)
    if step:
        values = distribution.low + np.round((values - distribution.low) / step) * step
    values = np.clip(values, distribution.low, distribution.high)
    return [int(value) if isinstance(distribution, IntDistribution) else float(value) for value in values]


def columns(distribution: BaseDistribution, values: Sequence[Value | None]) -> Array:
    """A parameter's part of the model's cube, [n, 1], or a column for each of several words."""
    if isinstance(distribution, CategoricalDistribution) and any(isinstance(c, str) for c in distribution.choices):
        return np.array(
            [[0.5 if value is None else float(value == c) for c in distribution.choices] for value in values]
        )
    if isinstance(distribution, CategoricalDistribution) or None in values or distribution.single():
        return np.array([[number(distribution, value)] for value in values])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    numbers = np.array(values, dtype=float)[:, None]
    if distribution.log:
        return np.asarray(np.log(numbers / distribution.low) / math.log(distribution.high / distribution.low))
    return np.asarray((numbers - distribution.low) / (distribution.high - distribution.low))


def _ordered(distribution: CategoricalDistribution) -> list[Any]:
    """Numbers in their order, which says something; words as they were written."""
    if any(isinstance(choice, str) for choice in distribution.choices):
        return list(distribution.choices)
    return sorted(distribution.choices)
