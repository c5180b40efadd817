"""How a study and its trials are left once its search is over, without Ray, and what that leaves for the next time."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.basemodel import BaseModel
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop
from hpsearch.results import Failure
from hpsearch.results.budget import SAME_FAILURES
from hpsearch.runner import driving, heartbeat
from hpsearch.search import Search
from hpsearch.search.losses import RETRIES
from hpsearch.settings import Settings
from hpsearch.spec.defaults import resolve
from hpsearch.storage import Database, Studies, StudyRow
from tests.builders import a_report
from tests.contract.test_confirmation import SEEDS, Again, searched
from tests.contract.test_runner import readable, running, until
from tests.contract.test_search import Driven, InMemory, spec_of

RATES = {"learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True}}
FIRSTS = [{"learning_rate_multiplier": rate} for rate in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)]
CONTRACT = "contract"
ATTEMPTS = RETRIES + 1
"""Of one trial whose worker dies each time: the last one is its retry."""


class Breaking:
    """Stands for Ray, on devices that break after so many trials."""

    def __init__(self, well: int) -> None:
        self.well = well

    def drive(
        self, search: Search, model: BaseModel, examples: int, place: Place, should_stop: ShouldStop, **_: object
    ) -> bool:
        del place, should_stop
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


def ended(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, well: int, **changes: Any) -> StudyRow:
    """A study that a runner has driven to its end."""
    monkeypatch.setattr(driving, "drive", Breaking(well).drive)
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
