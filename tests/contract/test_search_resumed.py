"""An ended search that a person has go on: what something else than its params had ended is made up for."""

from __future__ import annotations

import time
from typing import Any

import optuna
import pytest

from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Failure, Trial, TrialState
from hpsearch.results.budget import SAME_FAILURES, left
from hpsearch.search import history
from hpsearch.search.confirmation import candidates
from hpsearch.spec.budget import BudgetSpec
from tests.contract.test_search import Driven, InMemory, spec_of

RATES = {"learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True}}
FIRSTS = [{"learning_rate_multiplier": rate} for rate in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]
BUDGET = 12
Storage = optuna.storages.BaseStorage


@pytest.fixture
def storage() -> Storage:
    return InMemory()


def broken(storage: Storage, failure: Failure = Failure.ERROR, **changes: Any) -> Driven:
    """A search on a broken machine, which has ended of that."""
    fields: dict[str, Any] = {"search_space": RATES, "first_trials": FIRSTS}
    driven = Driven(storage, spec_of(**{"trials": BUDGET, **fields, **changes}))
    while (asked := driven.ask()) is not None:
        driven.search.fail(asked.number, failure, "the driver of the GPU is too old")
    assert not driven.search.end()[0]
    return driven


def resumed(before: Driven, **changes: Any) -> Driven:
    spec = before.spec.model_copy(update=changes.pop("spec", {}))
    return Driven(before.storage, spec, resumed_at=time.time(), **changes)


def completed(driven: Driven) -> list[Trial]:
    return [trial for trial in driven.trials() if trial.state == TrialState.COMPLETE]


@pytest.mark.parametrize("failure", [Failure.ERROR, Failure.INVALID_DATA, Failure.WORKER_LOST], ids=str)
def test_a_broken_machine_costs_a_resumed_study_neither_its_first_trials_nor_its_budget(
    storage: Storage, failure: Failure
) -> None:
    again = resumed(broken(storage, failure, first_trials=[*FIRSTS, FIRSTS[0]]))
    again.run_all()
    assert again.search.end() == (True, f"all {BUDGET} trials of the budget were used")
    trained = completed(again)
    assert len(trained) == BUDGET
    assert [trial.params for trial in trained].count(FIRSTS[0]) == 1
    assert all(first in [trial.params for trial in trained] for first in FIRSTS)
    defaults = next(trial for trial in trained if trial.params == again.search.typical_params)
    assert defaults.number in [trial.number for trial in candidates(again.search, 2)]


def test_what_is_tried_again_is_lined_up_once_whoever_dies_meanwhile(storage: Storage) -> None:
    before = broken(storage)
    resumed_at = time.time()
    for _ in range(3):
        again = Driven(storage, before.spec, resumed_at=resumed_at)
    waiting = [trial for trial in again.trials() if trial.state == TrialState.WAITING]
    assert [trial.retry_of for trial in waiting if trial.origin == "retry"] == list(range(SAME_FAILURES))
    assert len(waiting) == 1 + len(FIRSTS)


def test_points_of_a_list_that_a_broken_machine_has_failed_are_drawn_again(storage: Storage) -> None:
    space = {"learning_rate_multiplier": {"choices": [0.1, 0.2, 0.4, 0.8, 1.6]}, "epochs": 1}
    before = broken(storage, search_space=space, first_trials=(), trials=SAME_FAILURES)
    again = resumed(before)
    again.run_all()
    assert len({trial.params["learning_rate_multiplier"] for trial in completed(again)}) == SAME_FAILURES
    assert again.search.end()[0]


def test_what_was_forgiven_once_stays_so_when_a_study_is_extended_later(storage: Storage) -> None:
    again = resumed(broken(storage, first_trials=()))
    again.run_all()
    again.search.end()
    longer = resumed(again, spec={"budget": BudgetSpec(trials=BUDGET + 3)})
    longer.run_all()
    assert len(completed(longer)) == BUDGET + 3


@pytest.mark.parametrize("failure", [Failure.OUT_OF_MEMORY, Failure.DIVERGED], ids=str)
def test_what_fails_of_its_params_is_not_tried_again(storage: Storage, failure: Failure) -> None:
    before = broken(storage, failure, trials=SAME_FAILURES, first_trials=())
    again = resumed(before)
    assert again.ask() is None
    assert left(again.spec.budget, again.trials(), again.search.forgiven) == 0


def test_a_search_that_ended_well_does_not_try_its_few_failures_again(storage: Storage) -> None:
    before = Driven(storage, spec_of(3, search_space=RATES))
    before.search.fail(before.must_ask().number, Failure.ERROR, "it did not work")
    before.run_all()
    assert before.search.end()[0]
    again = resumed(before, spec={"budget": BudgetSpec(trials=4)})
    again.run_all()
    assert [trial.origin for trial in again.trials()] == ["defaults", "search", "search", "search"]


def wishing(before: Driven, *wishes: Wish, trials: int) -> dict[str, Any]:
    spec = before.spec.model_copy(update={"budget": BudgetSpec(trials=trials)})
    orders = Orders(1, None, spec, wishes)
    return {"spec": {"budget": spec.budget}, "orders": lambda: orders}


def test_first_trials_without_room_are_tried_once_there_is_some_behind_a_persons_own(storage: Storage) -> None:
    before = Driven(storage, spec_of(1, search_space=RATES, first_trials=FIRSTS))
    before.run_all()
    before.search.end()
    own = Wish(1, WishKind.ADD, "ann", params={"learning_rate_multiplier": 9.0})
    again = resumed(before, **wishing(before, own, trials=4))
    again.run_all()
    assert [trial.params for trial in completed(again)][1:] == [own.params, *FIRSTS[:2]]
    again.search.end()
    known = len(again.trials())
    assert known == 1 + len(FIRSTS) + 3
    just_one = resumed(again, **wishing(before, own, Wish(2, WishKind.ADD, "ann", params=FIRSTS[5]), trials=5))
    just_one.run_all()
    assert [trial.params for trial in completed(just_one)][4:] == [FIRSTS[5]]
    assert len(just_one.trials()) == known + 1


def test_what_a_person_has_taken_back_is_not_lined_up_again(storage: Storage) -> None:
    stop = Orders(1, None, spec_of(BUDGET, search_space=RATES), (Wish(1, WishKind.STOP, "ann", number=0),))
    before = Driven(storage, spec_of(BUDGET, search_space=RATES, first_trials=FIRSTS), orders=lambda: stop)
    while (asked := before.ask()) is not None:
        before.search.fail(asked.number, Failure.ERROR, "no space left on device")
    before.search.end()
    assert (before.trial(0).failure, before.trial(0).stopped_by) == ("cancelled", "ann")
    again = resumed(before)
    assert 0 not in [trial.retry_of for trial in again.trials()]
    again.run_all()
    assert len(completed(again)) == BUDGET
    assert history.forgiven(history.load(storage, "tickets")) == set(range(1, 1 + SAME_FAILURES))


def test_a_resumed_population_is_as_large_as_it_was(storage: Storage) -> None:
    pruner = {"type": "pbt", "population": 8}
    space = {**RATES, "epochs": 2}
    before = broken(storage, search_space=space, pruner=pruner, first_trials=FIRSTS, trials=20)
    again = resumed(before)
    members = []
    while (asked := again.ask()) is not None:
        members.append(asked.params["learning_rate_multiplier"])
    assert len(members) == 8
    assert {first["learning_rate_multiplier"] for first in FIRSTS} < set(members)
