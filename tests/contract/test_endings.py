"""Several APIs end studies over one database; whoever comes late ends nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpsearch.errors import StudyNotFound
from hpsearch.lifecycle import StudyState
from hpsearch.search import history
from hpsearch.storage import (
    Acting,
    Acts,
    Database,
    Endings,
    Lease,
    Studies,
    events_after,
    optuna_storage,
)
from tests.builders import a_spec

NAME = "tickets"
ALICE = Acting("alice")
OPEN = (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING)


class Api:
    """What one API process has of the database."""

    def __init__(self, url: str, weights: Path) -> None:
        self.database, self.storage = Database(url), optuna.storages.get_storage(optuna_storage(url))
        self.studies, self.endings, self.weights = Studies(self.database), Endings(self.database), weights

    def begin(self) -> None:
        """Queue the study, with a trial that waits and weights of another."""
        self.studies.create(a_spec(name=NAME))
        optuna.create_study(study_name=NAME, storage=self.storage, direction="minimize").enqueue_trial({})
        (self.weights / "0").mkdir(parents=True)

    def claim(self) -> Lease:
        return (self.studies.claim("runner", 60) or pytest.fail("nothing to claim"))[1]

    def cancel(self, before: Callable[[], object] = int, after: Callable[[], object] = int) -> str:
        """Cancel it, and do something else before or after its trials are closed; the answer is its state."""

        def close_trials(text: str) -> list[int]:
            before()
            closed = history.close_open(self.storage, NAME, text)
            after()
            return closed

        return str(self.endings.cancel(NAME, ALICE, close_trials, self.weights / "0").state)

    def delete(self, before: Callable[[], object] = int, after: Callable[[], object] = int) -> None:
        """Delete it, and do something else before or after its trials are forgotten."""

        def forget_trials() -> None:
            before()
            history.delete(self.storage, NAME)
            after()

        self.endings.delete(NAME, ALICE, forget_trials, self.weights)

    def open_trials(self) -> list[int]:
        study = history.load(self.storage, NAME)
        return [trial.number for trial in study.get_trials(states=OPEN)] if study else []

    def told(self) -> list[str]:
        return [event.kind.removeprefix("study.") for event in events_after(self.database, NAME, 0)]


@pytest.fixture
def apis(migrated_url: str, tmp_path: Path) -> Iterator[tuple[Api, Api]]:
    pair = Api(migrated_url, tmp_path / NAME), Api(migrated_url, tmp_path / NAME)
    pair[0].begin()
    yield pair
    for api in pair:
        api.database.close()
        api.storage.remove_session()


def elsewhere(act: Callable[[], object]) -> Callable[[], object]:
    """In another thread, as in another process: outside the fence of whoever waits for it."""

    def done() -> object:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(act).result()

    return done


WHEN = pytest.mark.parametrize("when", ["before", "after"])
"""Whether the other process comes in between before the trials were written, or after."""


@WHEN
def test_a_late_deletion_leaves_the_next_study_of_that_name_alone(apis: tuple[Api, Api], when: str) -> None:
    quick, late = apis
    quick.cancel()

    def another() -> None:
        quick.delete()
        quick.begin()
        quick.claim()

    with pytest.raises(StudyNotFound):
        late.delete(**{when: elsewhere(another)})
    assert late.studies.get(NAME).state == StudyState.RUNNING
    assert late.open_trials() == [0]
    assert (late.weights / "0").is_dir()
    assert late.told() == ["queued", "started"]


@WHEN
def test_a_late_cancel_leaves_the_next_study_of_that_name_alone(apis: tuple[Api, Api], when: str) -> None:
    quick, late = apis

    def another() -> None:
        quick.cancel()
        quick.delete()
        quick.begin()

    with pytest.raises(StudyNotFound, match="another"):
        late.cancel(**{when: elsewhere(another)})
    assert late.studies.get(NAME).state == StudyState.QUEUED
    assert late.open_trials() == [0]
    assert (late.weights / "0").is_dir()
    assert late.told() == ["queued"]


@WHEN
def test_a_study_that_is_claimed_while_it_is_cancelled_is_its_runner_s_to_end(apis: tuple[Api, Api], when: str) -> None:
    api, runner = apis
    assert api.cancel(**{when: elsewhere(runner.claim)}) == "running"
    study = api.studies.get(NAME)
    assert (study.state, study.requested) == (StudyState.RUNNING, StudyState.CANCELLED)
    assert (api.weights / "0").is_dir()
    assert api.open_trials() == ([0] if when == "before" else [])


@pytest.mark.parametrize("state", [StudyState.QUEUED, StudyState.PAUSED])
def test_a_cancel_that_breaks_off_says_so_and_is_claimed_or_repeated(apis: tuple[Api, Api], state: StudyState) -> None:
    api, other = apis
    if state == StudyState.PAUSED:
        Acts(api.database).pause(NAME, ALICE)
    with pytest.raises(ZeroDivisionError):
        api.cancel(before=lambda: 1 / 0)
    study = api.studies.get(NAME)
    assert (study.state, study.requested) == (state, StudyState.CANCELLED)
    assert api.open_trials() == [0]
    assert other.cancel() == "cancelled"
    assert other.open_trials() == []
    assert not (other.weights / "0").exists()
    assert other.told()[-3:] == ["cancel_requested", "trial.failed", "cancelled"]


@pytest.mark.filterwarnings("ignore:DELETE statement on table")  # Optuna's, of rows that another has just deleted
@pytest.mark.parametrize("act", ["cancel", "delete"])
def test_what_several_end_at_once_is_ended_once(apis: tuple[Api, Api], act: str) -> None:
    for _ in range(3):
        if act == "delete":
            apis[0].cancel()
        barrier = threading.Barrier(4)

        def end(number: int, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait()
            try:
                return getattr(apis[number % 2], act)()
            except StudyNotFound as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(end, range(4)))
        if act == "cancel":
            assert answers == ["cancelled"] * 4
            assert apis[0].told().count("cancelled") == 1
            apis[0].delete()
        else:
            assert answers.count(None) == 1
        assert history.load(apis[1].storage, NAME) is None
        apis[0].begin()
