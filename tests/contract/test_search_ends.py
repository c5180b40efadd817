"""What was decided and not written, or written and not told, because whoever was at it died: the next one does it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from hpsearch.results import Failure, TrialState
from hpsearch.results.attributes import RETRY_OF
from hpsearch.results.budget import hopeless
from hpsearch.search import Decision, history
from hpsearch.search.evidence import curve_of
from hpsearch.search.told import KINDS, Happening
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, Driven, Storage, points, spec_of, sqlite, storage

__all__ = ["sqlite", "storage"]


def died_failing(storage: Storage, failure: Failure, *, is_retried: bool = False, is_waiting: bool = False) -> Driven:
    """A process that died when it had decided that trial 0 fails, and had perhaps lined up its retry."""
    driven = Driven(storage, spec_of(2, budget={"trials": 2, "failures": 1}))
    asked = driven.must_ask()
    driven.search.report(asked.number, a_report(0, 4.0), CONTRACT)
    history.decide_failure(storage, driven.search.frozen()[0]._trial_id, failure, "what it was")
    if is_retried:
        driven.search.enqueue(asked.params, {"origin": "retry", RETRY_OF: asked.number})
    if is_waiting:
        history.interrupt_running(storage, driven.spec.name)
    return driven


@pytest.mark.parametrize("is_waiting", [False, True], ids=["running", "laid down"])
def test_a_failure_that_was_decided_is_written_by_whoever_comes_next(storage: Storage, is_waiting: bool) -> None:
    died = died_failing(storage, Failure.OUT_OF_MEMORY, is_waiting=is_waiting)
    assert died.trial(0).failure is None
    assert hopeless(died.trials(), most_failures=1) is None
    again = Driven(storage, died.spec)
    ended = again.trial(0)
    assert (ended.state, ended.failure, ended.failure_text) == (TrialState.FAIL, "out_of_memory", "what it was")
    assert again.events == [("trial.failed", {"number": 0, "failure": "out_of_memory", "text": "what it was"})]
    assert again.ask() is None  # the budget allows one failure
    assert history.trial(history.load(storage, died.spec.name), 0) == ended


@pytest.mark.parametrize("is_waiting", [False, True], ids=["running", "laid down"])
@pytest.mark.parametrize("is_retried", [False, True], ids=["to be retried", "retried"])
def test_a_lost_trial_is_tried_again_once(sqlite: Storage, is_retried: bool, is_waiting: bool) -> None:
    died = died_failing(sqlite, Failure.WORKER_LOST, is_retried=is_retried, is_waiting=is_waiting)
    again = Driven(sqlite, spec_of(2))
    again.run_all()
    assert [trial.retry_of for trial in again.trials()] == [None, 0, None]
    assert again.states() == {"FAIL": 1, "COMPLETE": 2}
    completed = [trial for trial in again.trials() if trial.state == TrialState.COMPLETE]
    assert len(set(points(completed))) == 2
    assert again.trial(1).params == died.trial(0).params


def test_a_trial_that_was_condemned_and_then_laid_down_is_pruned(sqlite: Storage) -> None:
    driven = Driven(sqlite, spec_of(2, pruner={"type": "threshold", "worst": 0.1, "min_reports": 1}))
    asked = driven.must_ask()
    driven.search.report(asked.number, a_report(0, 4.0), CONTRACT)
    assert driven.search.report(asked.number, a_report(50, 4.0), CONTRACT) is Decision.PRUNE
    history.interrupt_running(sqlite, driven.spec.name)
    assert Driven(sqlite, driven.spec).trial(0).state == TrialState.PRUNED


def test_a_trial_that_waits_and_was_about_to_be_withdrawn_is(sqlite: Storage) -> None:
    driven = Driven(sqlite, spec_of(3))
    history.decide_failure(sqlite, driven.search.frozen()[0]._trial_id, Failure.CANCELLED, "the study was cancelled")
    assert driven.trial(0).failure is None
    again = Driven(sqlite, driven.spec)
    assert again.trial(0).failure == "cancelled"
    assert again.must_ask().number == 1


def test_a_reason_to_fail_says_nothing_of_a_trial_that_has_completed_all_the_same() -> None:
    """As earlier versions left some."""
    frozen = optuna.trial.create_trial(
        state=OptunaState.COMPLETE,
        value=1.6,
        intermediate_values={50: 1.6},
        user_attrs={
            "failure": "worker_lost",
            "failure_text": "x",
            "config": {"hyperparameters": {"epochs": 1}},
            "curve": [a_report(50, 1.6).as_json()],
        },
    )
    trial = history.as_trial(frozen)
    assert (trial.failure, trial.failure_text) == (None, None)
    curve = curve_of(frozen, maximise=False)
    assert curve is not None
    assert (curve.has_failed, curve.has_value) == (False, True)


WARNED = "12 examples were cut"


def ended(storage: Storage, **changes: Any) -> Driven:
    """One trial of each end: pruned, failed and completed; and the defaults."""
    driven = Driven(storage, spec_of(4), **changes)
    for place, asked in enumerate(driven.must_ask() for _ in range(4)):
        driven.search.report(asked.number, a_report(0, 4.0), CONTRACT, [WARNED])
        if place == 1:
            driven.search.condemned(asked.number, 0, "it was the last of four")
            driven.search.prune(asked.number)
        elif place == 2:
            driven.search.fail(asked.number, Failure.DIVERGED, "the loss is nan")
        else:
            driven.run(asked, start=50)
    return driven


def untold(driven: Driven) -> list[Happening]:
    return [each for each in driven.events if each[0] in KINDS]


def test_what_was_not_told_is_told_by_whoever_comes_next_as_it_would_have_been(storage: Storage) -> None:
    driven = ended(storage)
    ends = ["trial.completed", "trial.pruned", "trial.failed", "trial.completed"]
    assert [kind for kind, _ in untold(driven)] == ["study.baseline", "study.warning", *ends]
    again = Driven(storage, driven.spec, told=lambda _: [])
    assert again.events == untold(driven)
    assert (
        Driven(storage, driven.spec, told=lambda kinds: [each for each in again.events if each[0] in kinds]).events
        == []
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_only_what_was_not_told_is_told(sqlite: Storage, kind: str) -> None:
    driven = ended(sqlite)
    told = [each for each in driven.events if each[0] != kind]
    again = Driven(sqlite, driven.spec, told=lambda _: told)
    assert again.events == [each for each in driven.events if each[0] == kind]


def test_what_was_left_undone_is_told_once(sqlite: Storage) -> None:
    """Told by the one that does it, though it asks what was told as well."""
    died = died_failing(sqlite, Failure.ERROR)
    again = Driven(sqlite, died.spec, told=lambda _: died.events)
    assert [kind for kind, _ in again.events] == ["trial.failed"]
