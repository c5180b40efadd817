"""What a runner does with its queue, without Ray: what goes wrong there leaves the studies that it drives alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import optuna
import pytest
import sqlalchemy as sa

from hpsearch.lifecycle import StudyState
from hpsearch.runner import runner as runner_module
from hpsearch.runner.runner import Runner
from hpsearch.settings import Settings
from hpsearch.storage import Acting, Acts, Database, Lease, Studies, StudyRow, optuna_storage
from hpsearch.storage.tables import studies
from tests.builders import a_spec

PATIENCE = 60


def until(what: Callable[[], object], text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


class Driven:
    """A runner in a thread, whose studies go on until they are laid down."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = Database(settings.sql_url)
        Studies(self.database).create(a_spec(name="driven"))
        self.runner = Runner(settings, "none")
        monkeypatch.setattr(self.runner._driving, "drive", self._drive)
        self.begun, self.laid_down = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except Exception as error:
            self.error = error

    def _drive(self, study: StudyRow, lease: Lease) -> None:
        del study, lease
        self.begun.set()
        self.runner.stop.wait(PATIENCE)
        if self.runner.stop.is_set():
            self.laid_down.set()


@pytest.fixture
def driven(home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    driven = Driven(home_with_tables, monkeypatch)
    assert driven.begun.wait(PATIENCE)
    yield driven
    driven.runner.stop.set()
    driven.thread.join(PATIENCE)


@pytest.mark.parametrize("text", ['{"name": "unread", "invented": 1}', '{"name": "unr', "[]"])
def test_a_study_whose_spec_cannot_be_read_fails_and_those_behind_it_go_on(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Somebody went back to an old version, or the row is damaged. What it has trained waits for who can read it."""
    database = Database(home_with_tables.sql_url)
    created, trials = Studies(database), optuna_storage(home_with_tables.sql_url)
    written = created.create(a_spec(name="unread", priority=9))[0].spec_text
    created.create(a_spec(name="behind"))
    unread = studies.update().where(studies.c.name == "unread")
    with database.write() as connection:
        connection.execute(unread.values(spec=text))
    optuna.create_study(study_name="unread", storage=trials).ask()
    runner = Runner(home_with_tables, "none")
    monkeypatch.setattr(runner._driving, "_search", lambda *_: (StudyState.FINISHED, "done", None))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        until(lambda: created.get("behind").state == StudyState.FINISHED, "the study behind it was driven")
    finally:
        runner.stop.set()
        thread.join(PATIENCE)
    failed = created.get("unread")
    assert failed.state == StudyState.FAILED
    assert "can't be read" in failed.reason
    (trial,) = optuna.load_study(study_name="unread", storage=trials).get_trials()
    assert trial.state == optuna.trial.TrialState.WAITING
    with database.write() as connection:  # upgraded
        connection.execute(unread.values(spec=written))
    assert Acts(database).resume("unread", Acting("alice")).state == StudyState.QUEUED


def test_a_claim_that_fails_does_not_stop_those_that_are_driven(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    newer = {
        "name": "newer",
        "requested": "hibernated",
        "state": "queued",
    }  # as it may be after somebody went back to an old version
    columns = [sa.literal(newer[each.name]) if each.name in newer else each for each in studies.c]
    with driven.database.write() as connection:
        connection.execute(sa.insert(studies).from_select(list(studies.c.keys()), sa.select(*columns)))
    until(lambda: "study not claimed" in caplog.messages, "the study was read")
    assert driven.thread.is_alive()
    assert not driven.laid_down.is_set()


def test_a_runner_that_fails_lays_its_studies_down_first(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would drive them on and claim no more, and nobody would start it again."""

    def fails(*_: object) -> None:
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(runner_module, "tidy", fails)
    driven.runner._tidied_at = -float("inf")
    driven.thread.join(PATIENCE)
    assert not driven.thread.is_alive()
    assert isinstance(driven.error, ValueError)
    assert driven.laid_down.is_set()
