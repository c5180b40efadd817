"""How a study and its trials are left once its search is over, without Ray, and what that leaves for the next time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hpsearch.basemodel import BaseModel
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop
from hpsearch.results import Failure, TrialState
from hpsearch.results.budget import SAME_FAILURES
from hpsearch.results.trial import can_go_on
from hpsearch.runner import driving, heartbeat
from hpsearch.search import Asked, Decision, Search, history
from hpsearch.search.losses import RETRIES
from hpsearch.settings import Settings
from hpsearch.spec.defaults import resolve
from hpsearch.storage import Database, Studies, StudyRow, optuna_storage
from tests.builders import a_report
from tests.contract.test_confirmation import SEEDS, Again, searched
from tests.contract.test_runner import readable, running, until
from tests.contract.test_search import EXAMPLES, Driven, InMemory, spec_of

RATES = {"learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True}}
FIRSTS = [{"learning_rate_multiplier": rate} for rate in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]
CONTRACT = "contract"
ATTEMPTS = RETRIES + 1
"""Of one trial whose worker dies each time: the last one is its retry."""


class Breaking:
    """Stands for Ray, on devices that break after so many trials."""

    def __init__(self, well: int, before: Callable[[Place, Search], None]) -> None:
        self.well, self.before = well, before

    def drive(
        self, search: Search, model: BaseModel, examples: int, place: Place, should_stop: ShouldStop, **_: object
    ) -> bool:
        del should_stop
        self.before(place, search)
        while (asked := search.ask()) is not None:
            search.start(asked.number, resolve(search.spec, asked.params, examples, model.model_type, model.parameters))
            if not self.well:
                search.fail(asked.number, Failure.ERROR, "the driver of the GPU is too old")
                continue
            self.well -= 1
            for exposure in (0, 400):
                search.report(asked.number, a_report(exposure, 4.0 - exposure / 400), CONTRACT)
            search.complete(asked.number, a_report(400, 3.0), CONTRACT, "somewhere")
        return False


def ended(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    *,
    well: int,
    before: Callable[[Place, Search], None] = lambda _place, _search: None,
    **changes: Any,
) -> StudyRow:
    """A study that a runner has driven to its end."""
    monkeypatch.setattr(driving, "drive", Breaking(well, before).drive)
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.05)
    created = Studies(Database(settings.sql_url))
    fields: dict[str, Any] = {"sampler": {"type": "random"}, "pruner": {"type": "none"}, "search_space": RATES}
    created.create(readable("over", **{**fields, **changes}))
    with running(settings):
        until(lambda: created.get("over").state.is_over, "it is over")
    return created.get("over")


@pytest.mark.parametrize("well", [0, 1], ids=["none completed", "one completed"])
def test_a_study_whose_trials_all_fail_alike_fails_with_their_reason_though_others_wait(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch, well: int
) -> None:
    confirm = {"top": 1, "seeds": 2}
    study = ended(home_with_tables, monkeypatch, well=well, first_trials=FIRSTS, confirm=confirm)
    assert study.state == StudyState.FAILED
    assert study.reason == "5 trials in a row failed with 'error': the driver of the GPU is too old"


def states(settings: Settings) -> Counter[str]:
    trials = history.trials(history.load(optuna_storage(settings.sql_url), "over"))
    return Counter(str(trial.state) for trial in trials)


def test_what_waits_when_a_study_s_driver_fails_waits_for_whoever_has_it_go_on(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Place, search: Search) -> None:
        search.ask()
        raise ValueError("nobody foresaw this")

    study = ended(home_with_tables, monkeypatch, well=0, first_trials=FIRSTS, before=fails)
    assert (study.state, study.reason) == (StudyState.FAILED, "ValueError: nobody foresaw this")
    assert states(home_with_tables) == {"FAIL": 1, "WAITING": len(FIRSTS)}


def test_snapshots_of_trials_that_were_not_tried_are_gone_with_the_search(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(place: Place, _: Search) -> None:
        place.progress(1).mkdir(parents=True)

    ended(home_with_tables, monkeypatch, well=1, first_trials=FIRSTS, budget={"trials": 1}, before=interrupted)
    assert states(home_with_tables) == {"COMPLETE": 1, "FAIL": len(FIRSTS)}
    assert not list(home_with_tables.artifacts_folder.rglob("progress"))


def test_a_study_in_which_nothing_varies_ends_if_its_trial_kills_its_workers() -> None:
    driven = Driven(InMemory(), spec_of(1, search_space={}))
    attempts = 0
    while (asked := driven.ask()) is not None and attempts < 100:
        driven.search.interrupt(asked.number, "its process died")
        attempts += 1
    assert attempts == SAME_FAILURES * ATTEMPTS
    assert driven.search.ending()[1].startswith(f"{SAME_FAILURES} trials in a row failed with 'worker_lost'")


def test_a_confirmation_of_what_does_not_vary_ends_if_a_training_kills_its_workers() -> None:
    again = Again(searched(InMemory(), trials=1, search_space={}))
    attempts = 0
    while (asked := again.ask()) is not None and attempts < 100:
        again.search.interrupt(asked.number, "its process died")
        attempts += 1
    assert attempts == len(again.search.verdict().candidates) * SEEDS * ATTEMPTS
    assert again.search.verdict().outcome == "incomplete"


FOUR_EPOCHS = {"epochs": 4, **RATES}


def goes_to(driven: Driven, asked: Asked, exposure: int, loss: float) -> Decision:
    """What was decided at the last of a trial's reports, which it sends as far as it is let."""
    decision = Decision.GO_ON
    known = driven.trial(asked.number).reports
    for at in range(0, exposure + 1, EXAMPLES // 2):
        if decision is Decision.GO_ON and (not known or at > known[-1].exposure):
            decision = driven.search.report(asked.number, a_report(at, loss if at else 4.0), CONTRACT)
    return decision


def interrupted_when_time_was_up(*, completed: bool) -> tuple[Driven, Asked, Asked, Asked]:
    """A search whose time is up; then one trial trains, one that is better waits, and one has nothing to show yet."""
    seconds = [0.0]
    spec = spec_of(20, search_space=FOUR_EPOCHS, budget={"wall_clock": 60})
    driven = Driven(InMemory(), spec, elapsed=lambda: seconds[0])
    if completed:
        driven.run(driven.must_ask())
    trains, waits, begins = (driven.must_ask() for _ in range(3))
    for asked, exposure, loss in ((trains, 50, 1.5), (waits, 150, 0.5), (begins, 0, 0.0)):
        goes_to(driven, asked, exposure, loss)
    for asked in (waits, begins):
        driven.search.interrupt(asked.number, "another study has its place")
    seconds[0] = 60.0
    return driven, trains, waits, begins


def test_a_trial_that_waits_when_the_search_is_over_is_pruned_with_what_it_has_learnt() -> None:
    driven, trains, waits, begins = interrupted_when_time_was_up(completed=True)
    assert goes_to(driven, trains, 400, 1.5) is Decision.PRUNE
    driven.search.prune(trains.number)
    assert driven.ask() is None
    assert driven.search.end() == (True, "the wall-clock budget of 60 s was used")
    ended = driven.trial(waits.number)
    assert (ended.state, ended.pruned_because) == (TrialState.PRUNED, "the wall-clock budget of 60 s was used")
    assert ended.reports[-1].validation_loss == 0.5
    assert can_go_on(ended, driven.trials())
    assert ended.number not in driven.search.idle_snapshots(parked=1)
    assert ("trial.pruned", {"number": waits.number, "exposure": 150, "text": ended.pruned_because}) in driven.events
    withdrawn = driven.trial(begins.number)
    assert (withdrawn.failure, withdrawn.failure_text) == (
        "cancelled",
        "the search is over: the wall-clock budget of 60 s was used",
    )


def test_trials_that_wait_when_time_is_up_come_to_an_end_where_nothing_else_is_there() -> None:
    driven, trains, waits, begins = interrupted_when_time_was_up(completed=False)
    assert goes_to(driven, trains, 400, 1.5) is Decision.FINISH
    driven.search.complete(trains.number, a_report(100, 1.5), CONTRACT, "a")
    again = driven.must_ask()
    assert again.number == waits.number
    assert goes_to(driven, again, 400, 0.5) is Decision.FINISH
    driven.search.complete(again.number, a_report(200, 0.5), CONTRACT, "b")
    assert driven.ask() is None
    assert driven.search.end()[0]
    assert [trial.value for trial in driven.trials() if trial.cut_short] == [1.5, 0.5]
    assert driven.trial(begins.number).failure == "cancelled"


def test_a_trial_that_waits_when_nothing_better_is_found_any_more_is_pruned() -> None:
    budget = {"trials": 20, "until": {"no_improvement_in": 2}}
    driven = Driven(InMemory(), spec_of(20, search_space=FOUR_EPOCHS, budget=budget))
    waits = driven.must_ask()
    goes_to(driven, waits, 150, 9.0)
    for loss in (1.0, 2.0, 3.0):
        asked = driven.must_ask()
        goes_to(driven, asked, 400, loss)
        driven.search.complete(asked.number, a_report(400, loss), CONTRACT, "a")
    driven.search.interrupt(waits.number, "its device died")
    assert driven.ask() is None
    assert driven.search.end()[0]
    assert driven.trial(waits.number).state == TrialState.PRUNED
    assert "2 trials in a row were no better" in str(driven.trial(waits.number).pruned_because)


def test_what_waits_when_all_trials_fail_alike_waits_for_whoever_has_the_study_go_on() -> None:
    storage, spec = InMemory(), spec_of(20, search_space=FOUR_EPOCHS, first_trials=FIRSTS)
    driven = Driven(storage, spec)
    waits = driven.must_ask()
    goes_to(driven, waits, 150, 1.5)
    for _ in range(SAME_FAILURES):
        driven.search.fail(driven.must_ask().number, Failure.ERROR, "no space left on device")
    driven.search.interrupt(waits.number, "its device died")
    for _ in range(2):  # whoever dies before he has said so is followed by one who says the same
        assert driven.search.end()[1] == "5 trials in a row failed with 'error': no space left on device"
    resumed = Driven(storage, spec, resumed_at=time.time())
    again = [resumed.must_ask() for _ in range(2)]
    assert [asked.number for asked in again] == [waits.number, 6]
    assert [asked.params for asked in again] == [waits.params, FIRSTS[5]]
    assert again[0].reported == 150
