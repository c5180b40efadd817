"""A runner that sees a study through to its verdict, without Ray: whatever comes between, nothing is left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import optuna
import pytest
from starlette.testclient import TestClient

from hpsearch.basemodel import BaseModel
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop
from hpsearch.runner import driving, heartbeat
from hpsearch.search import Search, history
from hpsearch.settings import Settings
from hpsearch.spec.defaults import resolve
from hpsearch.storage import Acting, Acts, Database, Endings, Studies, events_after, optuna_storage
from hpsearch.storage.tables import events
from tests.builders import a_report
from tests.contract.test_runner import readable, running, until

NAME, CONTRACT = "judged", "contract"
SEEDS, TRAININGS = 2, 4
"""One trial of the search and the defaults, under two seeds."""


class Quick:
    """Stands for Ray: trains in no time, and leaves a file of weights for each trial."""

    def __init__(self) -> None:
        self.trained: Counter[str] = Counter()
        self.before: Callable[[Search, int], object] = lambda _search, _count: None
        """Called before each training with the number of those before it."""

    def drive(
        self, search: Search, model: BaseModel, examples: int, place: Place, should_stop: ShouldStop, **_: object
    ) -> bool:
        while (asked := search.ask()) is not None:
            config = asked.config or resolve(search.spec, asked.params, examples, model.model_type, model.parameters)
            search.start(asked.number, config)
            search.report(asked.number, a_report(0, 4.0), CONTRACT)
            self.before(search, self.trained[search.spec.name])
            if should_stop() is not None:
                search.release("told to stop")
                return True
            weights = place.artifacts / str(asked.number) / "weights"
            weights.parent.mkdir(parents=True)
            weights.write_text("some")
            loss = 1.0 + config.hyperparameters.learning_rate_multiplier + config.seed % 7 / 100
            search.report(asked.number, a_report(400, loss), CONTRACT)
            search.complete(asked.number, a_report(400, loss), CONTRACT, str(weights.parent))
            self.trained[search.spec.name] += 1
        return False


class Study:
    """A runner in a thread, with one study that is to be confirmed."""

    def __init__(self, settings: Settings, quick: Quick) -> None:
        self.settings, self.quick, self.database = settings, quick, Database(settings.sql_url)
        self.studies = Studies(self.database)
        self.studies.create(
            readable(
                NAME,
                search_space={"learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True}},
                sampler={"type": "random"},
                pruner={"type": "none"},
                budget={"trials": 3},
                confirm={"top": 1, "seeds": SEEDS},
            )
        )

    def run_until(self, *states: StudyState) -> None:
        """Take the study over, and lay it down when it is in one of these states."""
        with running(self.settings):
            until(lambda: self.state in states, f"one of {states}")

    @property
    def state(self) -> StudyState:
        return self.studies.get(NAME).state

    def kinds(self) -> list[str]:
        return [event.kind for event in events_after(self.database, NAME, 0, limit=10_000)]

    def confirmation(self) -> list[optuna.trial.FrozenTrial]:
        storage = optuna_storage(self.settings.sql_url)
        return optuna.load_study(study_name=history.confirmation_of(NAME), storage=storage).trials

    def weights(self) -> list[str]:
        folder = self.settings.artifacts_folder / NAME
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("weights"))


SEARCHED = [f"{number}/weights" for number in range(3)]


@pytest.fixture
def study(home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch) -> Study:
    quick = Quick()
    monkeypatch.setattr(driving, "drive", quick.drive)
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.05)
    return Study(home_with_tables, quick)


def in_confirmation(search: Search, count: int, at: int) -> bool:
    return search.spec.name != NAME and count == at


def test_a_study_ends_with_its_verdict_and_the_weights_of_its_search_alone(study: Study) -> None:
    study.run_until(StudyState.FINISHED)
    assert study.quick.trained == {NAME: 3, history.confirmation_of(NAME): TRAININGS}
    assert study.weights() == SEARCHED
    kinds = study.kinds()
    assert kinds.index("study.confirming") < kinds.index("study.verdict") < kinds.index("study.finished")
    assert kinds.count("confirmation.completed") == TRAININGS
    study = history.load(optuna_storage(study.settings.sql_url), NAME)
    verdict = history.verdict(study)
    assert verdict is not None
    assert verdict["seeds"] == SEEDS


def test_a_study_that_is_cancelled_while_it_is_confirmed_leaves_nothing_of_that(study: Study) -> None:
    def cancel(search: Search, count: int) -> None:
        if in_confirmation(search, count, at=2):
            Endings(study.database).cancel(NAME, Acting("alice"))
            time.sleep(0.5)  # ten beats of the heart

    study.quick.before = cancel
    study.run_until(StudyState.CANCELLED)
    assert study.weights() == SEARCHED
    states = Counter(trial.state.name for trial in study.confirmation())
    assert states == {"COMPLETE": 2, "FAIL": TRAININGS - 2}
    assert "study.verdict" not in study.kinds()


def paused_in_the_middle(study: Study) -> None:
    def pause(search: Search, count: int) -> None:
        if in_confirmation(search, count, at=2):
            Acts(study.database).pause(NAME, Acting("alice"))
            time.sleep(0.5)

    study.quick.before = pause
    study.run_until(StudyState.PAUSED)
    assert len(study.weights()) == len(SEARCHED) + 2
    study.quick.before = lambda _search, _count: None


def test_a_study_that_is_cancelled_while_nobody_drives_it_leaves_nothing_either(study: Study, api: TestClient) -> None:
    paused_in_the_middle(study)
    assert api.post(f"/v1/studies/{NAME}/cancel").json()["state"] == "cancelled"
    assert study.weights() == SEARCHED
    states = Counter(trial.state.name for trial in study.confirmation())
    assert states == {"COMPLETE": 2, "FAIL": TRAININGS - 2}


def test_a_study_that_was_paused_while_it_was_confirmed_goes_on_with_what_is_missing(study: Study) -> None:
    paused_in_the_middle(study)
    Acts(study.database).resume(NAME, Acting("alice"))
    study.run_until(StudyState.FINISHED)
    assert study.quick.trained == {NAME: 3, history.confirmation_of(NAME): TRAININGS}
    assert study.weights() == SEARCHED
    assert study.kinds().count("study.verdict") == 1


def test_a_study_tells_the_ends_that_its_runner_died_too_early_to_tell(study: Study) -> None:
    paused_in_the_middle(study)
    ends = ["study.baseline", "trial.completed", "confirmation.completed"]
    told = [study.kinds().count(kind) for kind in ends]
    with study.database.write() as connection:
        connection.execute(events.delete().where(events.c.kind.in_(ends)))
    assert told == [1, 3, 2]
    Acts(study.database).resume(NAME, Acting("alice"))
    study.run_until(StudyState.FINISHED)
    assert [study.kinds().count(kind) for kind in ends] == [1, 3, TRAININGS]


def test_how_many_may_train_at_once_is_heeded_while_a_study_is_confirmed(study: Study) -> None:
    seen: list[int | str] = []

    def change(search: Search, count: int) -> None:
        if in_confirmation(search, count, at=1):
            Acts(study.database).change(NAME, {"parallelism": {"max_concurrent_trials": 1}}, Acting("alice"))
            Acts(study.database).add_trial(NAME, {"learning_rate_multiplier": 2.0}, Acting("alice"))
            time.sleep(0.5)  # ten beats of the heart
        if search.spec.name != NAME:
            seen.append(search.spec.parallelism.max_concurrent_trials)

    study.quick.before = change
    study.run_until(StudyState.FINISHED)
    assert seen[:TRAININGS] == ["auto", "auto", 1, 1]
    assert study.quick.trained[NAME] == 3 + 1, "what else was asked for is done once that is over"
