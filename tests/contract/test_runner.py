"""What a runner does with its queue, without Ray: what goes wrong there leaves the studies that it drives alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from hpsearch.runner import runner as runner_module
from hpsearch.runner.runner import Runner
from hpsearch.settings import Settings
from hpsearch.storage import Database, Lease, Studies, StudyRow
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


def test_a_study_that_cannot_be_read_does_not_stop_those_that_are_driven(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    newer = {
        "name": "newer",
        "spec": "{}",
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
