"""Rules that stop trials: Wilcoxon's test of two curves, and what counts as a trial's own report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import optuna
import pytest

from hpsearch.search.pruners import pruner
from hpsearch.spec.pruner import MedianSpec, WilcoxonSpec

Direction = Literal["minimize", "maximize"]
BEST = {0: 3.0, 10: 2.0, 20: 1.5, 30: 1.2, 40: 1.0, 50: 0.9, 60: 0.85}


def study_with(best: Mapping[int, float] | None, rule: WilcoxonSpec, direction: Direction) -> optuna.Study:
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction, pruner=pruner(rule, 20, 2, 3, direction))
    if best:
        values = {step: sign * value for step, value in best.items()}
        ends = min(values.values()) if direction == "minimize" else max(values.values())
        study.add_trial(optuna.trial.create_trial(value=ends, intermediate_values=values))
    return study


def stopped_at(
    curve: Mapping[int, float],
    rule: WilcoxonSpec,
    direction: Direction = "minimize",
    best: Mapping[int, float] | None = BEST,
) -> int | None:
    """The exposure of the report that stops the trial."""
    study = study_with(best, rule, direction)
    trial = study.ask()
    for step, value in curve.items():
        trial.report(value if direction == "minimize" else -value, step)
        if step and trial.should_prune():
            return step
    return None


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("p", "at"), [(0.3, 20), (0.2, 30), (0.1, 40), (0.05, 50)])
def test_a_trial_that_is_always_behind_stops_when_chance_would_seldom_do_that(
    direction: Direction, p: float, at: int
) -> None:
    behind = {step: value + 0.1 * (step > 0) for step, value in BEST.items()}
    assert stopped_at(behind, WilcoxonSpec(p=p), direction) == at
    assert stopped_at(behind, WilcoxonSpec(p=p, min_reports=5), direction) == 50


def test_a_trial_that_is_ahead_as_often_or_further_goes_on() -> None:
    ahead = {step: value + (0.1 if step in (10, 20) else -0.2) for step, value in BEST.items()}
    assert stopped_at(ahead, WilcoxonSpec()) is None
    assert stopped_at(BEST, WilcoxonSpec()) is None


def test_only_reports_at_the_same_exposure_are_compared() -> None:
    between = {0: 3.0, **dict.fromkeys((5, 15, 25, 35, 45, 55, 65, 75), 9.0)}
    assert stopped_at(between, WilcoxonSpec()) is None
    assert stopped_at(dict(sorted((between | dict.fromkeys((10, 20, 30, 40, 50), 9.0)).items())), WilcoxonSpec()) == 40


def test_nobody_stops_before_a_trial_is_complete() -> None:
    assert stopped_at(dict.fromkeys(BEST, 9.0), WilcoxonSpec(), best=None) is None


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_untouched_model_s_report_is_nobody_s_best(direction: Direction) -> None:
    """Optuna's percentile rule takes the best of all steps: who only made the model worse was never stopped."""
    sign = 1 if direction == "minimize" else -1
    rule = pruner(MedianSpec(startup_trials=3, min_reports=1), 100, 2, 2, direction)
    study = optuna.create_study(direction=direction, pruner=rule)
    for value in (6.0, 6.5, 7.0):
        known = {0: sign * 5.0, 50: sign * value}
        study.add_trial(optuna.trial.create_trial(value=sign * value, intermediate_values=known))
    worse, better = study.ask(), study.ask()
    for trial, value in ((worse, 9.0), (better, 6.1)):
        trial.report(sign * 5.0, 0)
        assert not trial.should_prune()
        trial.report(sign * value, 50)
    assert worse.should_prune()
    assert not better.should_prune()
    assert worse.study.trials[3].intermediate_values[0] == sign * 5.0
