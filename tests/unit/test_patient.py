"""A patient pruner hears the other one only when a trial has stopped getting better, and keeps that one informed."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.search.pruners import pruner
from hpsearch.spec.objective import Direction
from hpsearch.spec.pruner import PatientSpec, SuccessiveHalvingSpec, ThresholdSpec

losses = st.lists(st.integers(1, 12), min_size=1, max_size=10)


def a_study(spec: PatientSpec, direction: Direction = "minimize") -> optuna.Study:
    rule = pruner(spec, examples=100, reports_per_epoch=1, most_epochs=10, direction=direction)
    return optuna.create_study(direction=direction, pruner=rule)


def asked(trial: optuna.Trial, values: list[float]) -> list[bool]:
    answers = []
    for place, value in enumerate(values):
        trial.report(value, 100 * place)
        answers.append(trial.should_prune())
    return answers


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@given(values=losses, patience=st.integers(1, 4), min_delta=st.integers(0, 3))
def test_it_waits_for_as_many_reports_as_it_says(
    direction: Direction, values: list[int], patience: int, min_delta: int
) -> None:
    """Report 0, the untouched model's, is none of them."""
    sign = 1 if direction == "minimize" else -1
    hopeless = ThresholdSpec(worst=0 if direction == "minimize" else 100, min_reports=1)
    spec = PatientSpec(pruner=hopeless, patience=patience, min_delta=min_delta)
    answers = asked(a_study(spec, direction).ask(), [5.0, *(float(value) for value in values)])
    for count, answer in enumerate(answers):
        known = [sign * value for value in values[:count]]
        before, last = known[:-patience], known[-patience:]
        assert answer is (bool(before) and not any(value < min(before) - min_delta for value in last))


def test_halving_inside_it_notes_rungs_as_they_are_reached() -> None:
    """A later trial is compared with where an earlier one stood at the rung, not where it came to afterwards."""
    halving = SuccessiveHalvingSpec(min_reports=1, reduction_factor=2)
    study = a_study(PatientSpec(pruner=halving, patience=1))
    asked(study.ask(), [9.0, 8.0, 7.0, 6.0, 5.0])
    asked(study.ask(), [9.0, 7.9, 7.0, 6.0, 5.0])
    late = study.ask()
    assert asked(late, [9.0, 7.5, 7.6]) == [False, False, True], "better at the first rung, worse at the second"
