"""Is it over?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpsearch.results import Failure, Trial, TrialState
from hpsearch.results.budget import SAME_FAILURES, counts, hopeless, limit_reached, spent
from hpsearch.spec.budget import BudgetSpec
from tests.builders import a_report, a_trial


def failed(number: int, failure: Failure | None, **changes: Any) -> Trial:
    return a_trial(number, None, state=TrialState.FAIL, failure=failure, failure_text=f"text {number}", **changes)


@pytest.mark.parametrize(
    ("trial", "counted"),
    [
        pytest.param(a_trial(), True, id="completed"),
        pytest.param(a_trial(state=TrialState.PRUNED), True, id="pruned"),
        pytest.param(a_trial(state=TrialState.RUNNING), True, id="running"),
        pytest.param(a_trial(state=TrialState.WAITING), False, id="waiting"),
        pytest.param(failed(0, Failure.DIVERGED), True, id="diverged"),
        pytest.param(failed(0, Failure.OUT_OF_MEMORY), True, id="out-of-memory"),
        pytest.param(failed(0, Failure.ERROR), True, id="error"),
        pytest.param(failed(0, Failure.WORKER_LOST), False, id="worker-lost"),
        pytest.param(failed(0, Failure.CANCELLED), False, id="cancelled"),
    ],
)
def test_a_trial_counts_when_its_params_got_their_chance(trial: Trial, counted: bool) -> None:
    assert counts(trial) is counted


@pytest.mark.parametrize(("used", "over"), [(0, False), (2, False), (3, True), (4, True)])
def test_the_trials_of_the_budget_are_used_up(used: int, over: bool) -> None:
    why = limit_reached(BudgetSpec(trials=3), [a_trial(number) for number in range(used)], 0)
    assert (why is not None) is over
    assert why is None or "3 trials" in why


def test_lost_workers_leave_room_for_their_retries() -> None:
    trials = [failed(0, Failure.WORKER_LOST), failed(1, Failure.WORKER_LOST), a_trial(2)]
    assert limit_reached(BudgetSpec(trials=2), trials, 0) is None


@pytest.mark.parametrize(
    ("budget", "elapsed", "said"),
    [
        pytest.param({"wall_clock": "1m"}, 59.9, None, id="time-left"),
        pytest.param({"wall_clock": "1m"}, 60.0, "wall-clock", id="time-over"),
        pytest.param({"tokens": 2001}, 0, None, id="tokens-left"),
        pytest.param({"tokens": 2000}, 0, "2,000 training tokens", id="tokens-over"),
        pytest.param({"gpu_hours": 0.01}, 0, None, id="hours-left"),
        pytest.param({"gpu_hours": 20 / 3600}, 0, "device hours", id="hours-over"),
    ],
)
def test_each_limit_ends_the_search_when_reached(budget: dict[str, Any], elapsed: float, said: str | None) -> None:
    # Two trials, each with 1000 tokens and 10 device seconds at its last report.
    trials = [
        a_trial(0, reports=(a_report(50), a_report(100))),
        a_trial(1, state=TrialState.RUNNING, reports=(a_report(100),)),
        a_trial(2, state=TrialState.WAITING),
    ]
    for why in (spent(BudgetSpec(**budget), trials, elapsed), limit_reached(BudgetSpec(**budget), trials, elapsed)):
        assert (why is None) if said is None else (said in str(why))


def test_a_spent_budget_of_trials_does_not_stop_running_ones() -> None:
    assert spent(BudgetSpec(trials=1), [a_trial(state=TrialState.RUNNING)], 1e9) is None


@pytest.mark.parametrize(
    "reason", [Failure.ERROR, Failure.OUT_OF_MEMORY, Failure.WORKER_LOST, Failure.INVALID_DATA], ids=str
)
def test_failing_again_and_again_for_one_reason_is_hopeless(reason: Failure) -> None:
    trials = [a_trial(0), *(failed(number, reason) for number in range(1, SAME_FAILURES + 1))]
    why = hopeless(trials)
    assert why is not None
    assert str(reason) in why
    assert f"text {SAME_FAILURES}" in why
    assert hopeless(trials[:-1]) is None


@pytest.mark.parametrize("reason", [Failure.DIVERGED, Failure.CANCELLED], ids=str)
def test_other_params_may_do_better_than_diverged_ones(reason: Failure) -> None:
    assert hopeless([failed(number, reason) for number in range(20)]) is None


def test_who_has_an_ended_search_go_on_starts_counting_anew() -> None:
    trials = [failed(number, Failure.ERROR) for number in range(SAME_FAILURES)]
    last = max(trial.finished_at or 0.0 for trial in trials)
    assert hopeless(trials) is not None
    assert hopeless(trials, resumed_at=last) is None
    later = [replace(trial, number=trial.number + 50, finished_at=last + trial.number + 1) for trial in trials]
    assert hopeless([*trials, *later], resumed_at=last) is not None
    budget = BudgetSpec.model_validate({"trials": 100, "until": {"no_improvement_in": 3}})
    worse = [a_trial(number, value=1.0 + number, finished_at=float(number)) for number in range(4)]
    assert limit_reached(budget, worse, 0.0) is not None
    assert limit_reached(budget, worse, 0.0, resumed_at=3.0) is None


def test_lost_workers_whose_trials_are_tried_again_are_not_hopeless() -> None:
    lost = [failed(number, Failure.WORKER_LOST) for number in range(SAME_FAILURES)]
    retries = [a_trial(trial.number + 50, None, state=TrialState.WAITING, retry_of=trial.number) for trial in lost]
    assert hopeless([*lost, *retries]) is None


def test_different_reasons_are_not_hopeless() -> None:
    reasons = [Failure.ERROR, Failure.OUT_OF_MEMORY] * 5
    assert hopeless([failed(number, reason) for number, reason in enumerate(reasons)]) is None


def test_trials_that_nobody_trained_do_not_interrupt_a_row_of_failures() -> None:
    """As those that waited when the search was over, or that a person took back."""
    trials = [a_trial(0), *(failed(number, Failure.ERROR) for number in range(1, SAME_FAILURES + 1))]
    assert hopeless([*trials, *(failed(number, Failure.CANCELLED) for number in range(50, 53))]) == hopeless(trials)
    assert hopeless(trials) is not None


def test_it_is_the_order_of_ending_that_counts_not_the_number() -> None:
    trials = [failed(number, Failure.ERROR, finished_at=float(number)) for number in range(1, SAME_FAILURES + 1)]
    assert hopeless([a_trial(0, finished_at=99.0), *trials]) is None
    assert hopeless([a_trial(99, finished_at=0.0), *trials]) is not None


def test_failures_on_some_devices_say_nothing_while_another_one_trains() -> None:
    """Those are set aside; when no other is left, or it fails as well, the study is hopeless after all."""
    trials = [failed(number, Failure.ERROR, device="ab"[number % 2]) for number in range(SAME_FAILURES)]
    assert hopeless(trials) is not None
    well = a_trial(50, state=TrialState.RUNNING, finished_at=None, reports=(a_report(50),), device="c")
    assert hopeless([*trials, well]) is None
    assert hopeless([*trials, replace(well, device="a")]) is not None
    assert hopeless([*trials, replace(well, reports=())]) is not None


@pytest.mark.parametrize(
    ("reason", "counted"),
    [(Failure.ERROR, True), (Failure.OUT_OF_MEMORY, True), (Failure.DIVERGED, False), (Failure.CANCELLED, False)],
)
def test_a_budget_of_failures_ends_a_search_that_fails_now_and_then(reason: Failure, counted: bool) -> None:
    trials = []
    for number in range(0, 20, 2):
        trials += [failed(number, reason, finished_at=float(number)), a_trial(number + 1, finished_at=number + 1.0)]
    assert hopeless(trials) is None
    assert hopeless(trials, most_failures=11) is None
    why = hopeless(trials, most_failures=10)
    assert (why is not None) is counted
    assert hopeless(trials, resumed_at=10.0, most_failures=10) is None


def test_running_trials_do_not_interrupt_a_row_of_failures() -> None:
    trials = [failed(number, Failure.ERROR) for number in range(SAME_FAILURES)]
    assert hopeless([*trials, a_trial(50, state=TrialState.RUNNING, finished_at=None)]) is not None


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        pytest.param([3.0, 2.0, 2.5, 2.5], False, id="two-since-the-best"),
        pytest.param([3.0, 2.0, 2.5, 2.5, 2.1], True, id="three-since-the-best"),
        pytest.param([3.0, 2.0, 2.5, 2.5, 1.9], False, id="a-new-best-in-time"),
        pytest.param([2.0, 2.0, 2.0, 2.0], True, id="as-good-is-not-better"),
        pytest.param([3.0, None, None, None], True, id="pruned-ones-are-no-better"),
        pytest.param([None] * 9, False, id="nothing-completed-yet"),
    ],
)
def test_a_search_that_finds_nothing_better_ends_when_it_was_told_to(values: list[float | None], ends: bool) -> None:
    budget = BudgetSpec.model_validate({"trials": 99, "until": {"no_improvement_in": 3}})
    trials = [
        a_trial(number, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        for number, value in enumerate(values)
    ]
    lost = [failed(90 + number, Failure.WORKER_LOST) for number in range(3)]
    why = limit_reached(budget, [*trials, *lost], 0)
    assert why == ("3 trials in a row were no better than the best before them" if ends else None)
    upside_down = [replace(trial, value=None if trial.value is None else -trial.value) for trial in trials]
    assert limit_reached(budget, upside_down, 0, "maximize") == why


@pytest.mark.parametrize(("trained", "reused", "over"), [(2, 3, False), (3, 3, True), (2, 4, True), (0, 5, False)])
def test_taking_over_what_is_known_is_free_as_often_as_the_budget_has_trials(
    trained: int, reused: int, over: bool
) -> None:
    source = {"study": "earlier", "number": 0}
    trials = [a_trial(number, reports=(a_report(100),)) for number in range(trained)]
    trials += [a_trial(trained + number, reports=(a_report(900),), reused_from=source) for number in range(reused)]
    assert (limit_reached(BudgetSpec(trials=3), trials, 0) is not None) is over
    assert spent(BudgetSpec(trials=99, tokens=3001), trials, 0) is None  # nor does it cost tokens or time
