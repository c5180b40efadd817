"""Several studies at once on one real Ray cluster, driven by one runner over a real database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from hpsearch.lifecycle import StudyState
from hpsearch.results import Trial, TrialState
from hpsearch.runner.runner import Runner
from hpsearch.search import history
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec
from hpsearch.storage import Acting, Acts, Database, Endings, Event, Studies, events_after, optuna_storage
from tests.integration.test_raytune import check_equals_undisturbed, data, spec_of

__all__ = ["data"]  # a fixture

pytestmark = pytest.mark.usefixtures("ray_address")

PATIENCE = 240
SLICE = 2.0


class Service:
    """A runner in a thread, and what a person would see."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings.sql_url)
        self.studies, self.acts = Studies(self.database), Acts(self.database)
        self.endings = Endings(self.database)
        self.storage = optuna_storage(settings.sql_url)
        self.runner = Runner(settings, ray.get_runtime_context().get_session_name())
        self.thread = threading.Thread(target=self.runner.run)
        self.thread.start()

    def create(self, spec: StudySpec, by: str) -> None:
        self.studies.create(spec, by=by)

    def stop(self) -> None:
        self.runner.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def events(self, study: str, kind: str) -> list[Event]:
        return [event for event in events_after(self.database, study, 0, 100_000) if event.kind == kind]

    def trials(self, study: str) -> list[Trial]:
        return history.trials(history.load(self.storage, study))

    def reports(self, study: str) -> int:
        return sum(event.details["exposure"] > 0 for event in self.events(study, "trial.reported"))

    def running(self, study: str) -> int:
        return sum(trial.state == TrialState.RUNNING for trial in self.trials(study))

    def state(self, study: str) -> StudyState:
        return self.studies.get(study).state


def until(what: Callable[[], Any], text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


@pytest.fixture
def service(home_with_tables: Settings) -> Iterator[Service]:
    weights = {"carol": 3.0}
    service = Service(home_with_tables.model_copy(update={"slice_seconds": SLICE, "owner_weights": weights}))
    yield service
    service.stop()


def lasting(data: dict[str, str], name: str, **changes: Any) -> StudySpec:
    """Two trials at once that report often and go on for minutes."""
    space = {"epochs": 1000, "batch_size": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}, "dropout": 0.2}
    changes = {"budget": {"trials": 2}, "objective": {"reports_per_epoch": 4}, "search_space": space, **changes}
    return spec_of(data, name, parallelism={"trials_per_device": 1}, **changes)


def test_a_second_study_starts_beside_a_long_one_and_the_trial_that_made_room_goes_on_exactly(
    data: dict[str, str], service: Service
) -> None:
    """On two devices. The long one has both until the other comes, one while it is there, and both again."""
    service.create(lasting(data, "long", priority=-10), by="alice")
    until(lambda: {event.details["number"] for event in service.events("long", "trial.reported")} >= {0, 1}, "no start")
    time.sleep(SLICE)
    short = spec_of(data, "short", search_space={"epochs": 2, "batch_size": 8, "dropout": 0.1}, budget={"trials": 1})
    service.create(short, by="bob")
    until(lambda: service.reports("short"), "the second study does not start")
    before = service.reports("long")
    until(lambda: service.state("short") == StudyState.FINISHED, "the second study does not end")
    until(lambda: service.reports("long") > before, "the first study does not go on beside it")
    (interrupted,) = service.events("long", "trial.interrupted")
    assert interrupted.details["text"] == "another study has its place"
    number = interrupted.details["number"]
    reports = len(service.trials("long")[number].reports)
    until(lambda: len(service.trials("long")[number].reports) > reports + 1, "the trial does not go on")

    def told() -> list[int]:
        return [event.details["trials"] for event in service.events("long", "study.share")]

    until(lambda: len(told()) > 1, "its new share is not told")
    service.stop()

    assert service.state("long") == StudyState.QUEUED
    assert told() == [1, 2]
    began, *_ = service.events("short", "trial.reported")
    (ended,), (continued,) = service.events("short", "trial.completed"), service.events("long", "trial.continued")
    assert interrupted.id < began.id < ended.id < continued.id, "meanwhile, each has one device"
    trial = service.trials("long")[number]
    assert trial.attempts == 2
    check_equals_undisturbed(trial)
    for study in ("long", "short"):
        details = [event.details for event in service.events(study, "trial.reported")]
        reported = [(each["number"], each["exposure"]) for each in details]
        assert len(set(reported)) == len(reported)
    assert [trial.attempts for trial in service.trials("short")] == [1]


def test_more_studies_than_devices_take_turns_by_the_weights_of_their_owners(
    data: dict[str, str], service: Service
) -> None:
    """Carol has three times the weight of each other owner: one of two devices is always hers, and no study starves."""
    service.create(lasting(data, "heavy"), by="carol")
    for name, owner in (("one", "alice"), ("two", "bob"), ("three", "alice")):
        service.create(lasting(data, name), by=owner)
    until(lambda: all(service.reports(name) for name in ("heavy", "one", "two", "three")), "a study starves")
    before = {name: service.reports(name) for name in ("one", "two", "three")}
    until(lambda: all(service.reports(name) > before[name] for name in before), "a study starves later")
    # It may have had both devices until the others came; since all of them have trained, one is hers.
    all_train = max(service.events(name, "trial.reported")[0].id for name in before)
    assert [event for event in service.events("heavy", "trial.interrupted") if event.id > all_train] == []
    assert max(service.running(name) for name in before) <= 1

    def told() -> set[str]:
        return {event.details["text"] for name in before for event in service.events(name, "study.share")}

    until(lambda: "it waits for its turn: 4 studies on 2 devices" in told(), "nobody is told that it waits")
    # What people change takes effect at once: the least of them comes first now.
    service.endings.cancel("heavy", Acting("carol"))
    until(lambda: service.state("heavy") == StudyState.CANCELLED, "not cancelled")
    service.acts.change("three", {"priority": 100}, Acting("alice"))
    until(lambda: service.running("three") == 1, "priority has no effect")
    assert {service.state(name) for name in before} == {StudyState.RUNNING}


def test_a_study_that_fails_leaves_its_neighbours_alone(data: dict[str, str], service: Service, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jsonl"
    gone.write_text(Path(data["train"]).read_text())
    broken = lasting({**data, "train": str(gone)}, "broken")
    gone.unlink()
    service.create(lasting(data, "whole"), by="alice")
    service.create(broken, by="bob")
    until(lambda: service.state("broken") == StudyState.FAILED, "not failed")
    until(lambda: service.reports("whole"), "the other study does not go on")
    assert service.state("whole") == StudyState.RUNNING
