"""A study that ends the process which drives it is left alone after a few times, and its neighbours get on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpsearch.lifecycle import StudyState
from hpsearch.runner import heartbeat
from hpsearch.runner import runner as runner_module
from hpsearch.runner.runner import Runner
from hpsearch.settings import Settings
from hpsearch.storage import MOST_TAKEOVERS, Acting, Acts, Database, Lease, Studies, events_after, takeovers
from hpsearch.storage.tables import studies as table
from hpsearch.storage.takeovers import SUSPECT_AFTER
from tests.builders import a_spec
from tests.conftest import STUDIES

LONG = 60.0


@pytest.fixture
def studies(migrated_url: str) -> Iterator[Studies]:
    database = Database(migrated_url)
    yield Studies(database)
    database.close()


def die(studies: Studies, name: str = "deadly", times: int = 1) -> None:
    """Its runner claims it, and is not heard of any more."""
    for _ in range(times):
        assert claim(studies).study == name
        leases_run_out(studies._database)


def leases_run_out(database: Database) -> None:
    """All of them, without waiting for it."""
    with database.write() as connection:
        connection.execute(table.update().where(table.c.state == StudyState.RUNNING).values(lease_expires_at=1.0))


def claim(studies: Studies, owner: str = "runner") -> Lease:
    return (studies.claim(owner, LONG) or pytest.fail("nothing to claim"))[1]


def counted(studies: Studies, name: str = "deadly") -> int:
    return studies.get(name).takeovers


def test_only_takeovers_count_and_only_in_a_row(studies: Studies) -> None:
    studies.create(a_spec(name="deadly"))
    die(studies, times=3)
    assert counted(studies) == 2, "the first claim took nothing over"
    lease = claim(studies)
    studies.append_event(lease, "study.warning", {})
    studies.renew(lease, LONG)
    assert counted(studies) == 3
    studies.append_event(lease, "trial.reported", {})
    assert counted(studies) == 0


def test_a_hand_over_does_not_count_and_shows_that_the_process_lived(studies: Studies) -> None:
    studies.create(a_spec(name="deadly"))
    for _ in range(2 * MOST_TAKEOVERS):
        studies.end(claim(studies), StudyState.QUEUED, "its runner was stopped")
    assert counted(studies) == 0
    die(studies, times=2)
    lease = claim(studies)
    assert counted(studies) == 2
    studies.end(lease, StudyState.QUEUED, "its runner was stopped")
    assert counted(studies) == 0


def test_who_is_driven_for_long_is_no_suspect(studies: Studies) -> None:
    studies.create(a_spec(name="deadly"))
    die(studies, times=3)
    lease = claim(studies)
    studies.renew(lease, LONG)
    assert counted(studies) == 3
    with studies._database.write() as connection:
        connection.execute(table.update().values(claimed_at=table.c.claimed_at - takeovers.CLEARED_SECONDS - 1))
    studies.renew(lease, LONG)
    assert counted(studies) == 0


def test_suspects_come_last_and_one_at_a_time_with_each_runner(studies: Studies) -> None:
    for name in ("deadly", "unlucky"):
        studies.create(a_spec(name=name, priority=10))
    for _ in range(SUSPECT_AFTER + 1):
        for owner in ("one that dies", "another that dies"):
            claim(studies, owner)
        leases_run_out(studies._database)
    studies.create(a_spec(name="well"))
    assert claim(studies).study == "well"
    suspect = claim(studies)
    assert suspect.study in ("deadly", "unlucky")
    assert studies.claim("runner", LONG) is None
    other = claim(studies, owner="another runner")
    assert {suspect.study, other.study} == {"deadly", "unlucky"}
    studies.end(other, StudyState.QUEUED, "its runner was stopped")
    studies.append_event(suspect, "trial.reported", {})
    assert claim(studies).study == other.study


def one_life(home: str) -> None:
    """A runner, until it dies of the one study. The other one reports each time that it has been driven for a while."""
    heartbeat.RENEW_SECONDS = runner_module.POLL_SECONDS = 0.1
    runner = Runner(Settings(home=Path(home)), "none")

    def search(study: Any, lease: Lease, *_: object) -> tuple[StudyState, str, None]:
        if study.name == "deadly":
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        for number in range(1, 21):
            time.sleep(0.1)
            if number % 2 == 0:
                runner._studies.append_event(lease, "trial.reported", {"number": number})
        return StudyState.FINISHED, "it is done", None

    runner._driving._search = search  # type: ignore[method-assign, assignment]
    running = threading.Thread(target=runner.run)
    running.start()
    while any(row.state in (StudyState.QUEUED, StudyState.RUNNING) for row in runner._studies.page(9).rows):
        time.sleep(0.05)
    runner.stop.set()
    running.join()


def test_a_study_that_kills_its_runners_is_paused_with_its_reason_and_the_other_one_gets_on(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "hpsearch.db")
    database = Database(f"sqlite:///{tmp_path}/hpsearch.db")
    studies = Studies(database)
    for name in ("deadly", "neighbour"):
        studies.create(a_spec(name=name))
    command = [sys.executable, "-m", "tests.contract.test_takeovers", str(tmp_path)]
    lives = subprocess.run(command, cwd=STUDIES.parent, capture_output=True, text=True, check=False, timeout=250)
    assert lives.stdout.split() == ["-9"] * MOST_TAKEOVERS + ["0"], lives.stderr
    assert studies.get("neighbour").state == StudyState.FINISHED
    deadly = studies.get("deadly")
    assert deadly.state == StudyState.PAUSED
    assert f"ended {MOST_TAKEOVERS} times in a row" in deadly.reason
    kinds = [event.kind for event in events_after(database, "deadly", 0)]
    assert kinds == ["study.queued", "study.started", *["study.taken_over"] * MOST_TAKEOVERS, "study.paused"]
    Acts(database).resume("deadly", Acting("alice"))
    assert claim(studies).study == "deadly", "a person who has mended it gets it driven"
    database.close()


def main(home: str) -> None:
    """Lives of a runner, until one comes to its end: in an interpreter without threads, because it forks."""
    for _ in range(3 * MOST_TAKEOVERS):
        child = os.fork()
        if child == 0:
            try:
                one_life(home)
                os._exit(0)
            finally:
                os._exit(70)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        database = Database(f"sqlite:///{home}/hpsearch.db")
        leases_run_out(database)
        database.close()
        sys.stdout.write(f"{ended}\n")
        sys.stdout.flush()
        if ended >= 0:
            return


if __name__ == "__main__":
    main(sys.argv[1])
