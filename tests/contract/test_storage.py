"""Where things are kept: the same promises on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from hpsearch.errors import IdempotencyMismatch, IllegalMove, LeaseLost, NameTaken, StudyNotFound, UnknownDataset
from hpsearch.lifecycle import StudyState
from hpsearch.settings import Settings
from hpsearch.spec.budget import BudgetExtension
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.storage import (
    DATABASE_AWAY,
    Acting,
    Acts,
    Database,
    Datasets,
    Endings,
    Studies,
    StudyRow,
    count_by_state,
    events_after,
    fenced,
    optuna_storage,
)
from hpsearch.storage.database import engine_arguments
from hpsearch.storage.tables import metadata
from tests.builders import a_spec
from tests.conftest import Postgres

LONG = 60.0
SHORT = 0.01


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    opened = Database(migrated_url)
    yield opened
    opened.close()


@pytest.fixture
def studies(database: Database) -> Studies:
    return Studies(database)


def create(studies: Studies, *names: str, **changes: Any) -> list[StudyRow]:
    """Studies in this order of age: the database's clock ticks in milliseconds."""
    rows = []
    for name in names:
        rows.append(studies.create(a_spec(name=name, **changes))[0])
        time.sleep(0.003)
    return rows


ALICE = Acting("alice")


def cancel(studies: Studies, name: str) -> StudyRow:
    return Endings(studies._database).cancel(name, ALICE)


def delete(studies: Studies, name: str) -> None:
    Endings(studies._database).delete(name, ALICE)


def kinds(database: Database, study: str) -> list[str]:
    return [event.kind for event in events_after(database, study, 0)]


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """What `count` threads got that all began in the same moment; an exception is an answer too."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        try:
            return act(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


class TestCreating:
    def test_a_new_study_is_queued(self, studies: Studies, database: Database) -> None:
        before = time.time()
        row, created = studies.create(a_spec(priority=3))
        assert created
        assert (row.name, row.state, row.reason, row.requested) == ("tickets", "queued", "", None)
        assert row.spec == a_spec(priority=3)
        assert row.fingerprint == row.spec.fingerprint()
        assert before - 0.01 <= row.created_at <= time.time() + 0.01  # the database's clock is this machine's
        assert kinds(database, "tickets") == ["study.queued"]

    def test_the_same_name_and_spec_is_the_same_study(self, studies: Studies, database: Database) -> None:
        first, _ = studies.create(a_spec())
        assert studies.create(a_spec()) == (first, False)
        assert kinds(database, "tickets") == ["study.queued"]

    def test_a_taken_name_is_refused(self, studies: Studies) -> None:
        first, _ = studies.create(a_spec())
        with pytest.raises(NameTaken, match="'tickets'") as refused:
            studies.create(a_spec(seed=1))
        assert refused.value.field == "name"
        assert studies.get("tickets") == first

    def test_a_key_repeats_its_answer(self, studies: Studies) -> None:
        first, created = studies.create(a_spec(), "key")
        assert created
        assert studies.create(a_spec(), "key") == (first, False)

    def test_a_key_that_was_used_for_another_spec_is_refused(self, studies: Studies) -> None:
        studies.create(a_spec(), "key")
        with pytest.raises(IdempotencyMismatch):
            studies.create(a_spec(name="other"), "key")
        with pytest.raises(StudyNotFound):
            studies.get("other")

    def test_a_refused_creation_does_not_use_its_key_up(self, studies: Studies) -> None:
        studies.create(a_spec())
        with pytest.raises(NameTaken):
            studies.create(a_spec(seed=1), "key")
        assert studies.create(a_spec(name="other"), "key")[1]

    def test_a_key_is_free_again_when_its_study_is_deleted(self, studies: Studies) -> None:
        studies.create(a_spec(), "key")
        cancel(studies, "tickets")
        delete(studies, "tickets")
        assert studies.create(a_spec(seed=2), "key")[1]

    @pytest.mark.parametrize("key", [None, "key"], ids=["by-name", "by-key"])
    def test_creating_at_once_creates_once(self, studies: Studies, database: Database, key: str | None) -> None:
        answers = at_once(8, lambda _: studies.create(a_spec(), key))
        assert [answer for answer in answers if isinstance(answer, Exception)] == []
        assert sorted(created for _, created in answers) == [False] * 7 + [True]
        assert len(studies.page(100).rows) == 1
        assert kinds(database, "tickets") == ["study.queued"]

    def test_creating_two_specs_of_one_name_at_once_refuses_all_but_one(self, studies: Studies) -> None:
        answers = at_once(6, lambda number: studies.create(a_spec(seed=number)))
        assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [NameTaken] * 5

    def test_text_of_any_language_comes_back(self, studies: Studies) -> None:
        tags = {"owner": "Zoë 李 🦜", "quote": "a'b\"c\\d", "nul": "\x00"}
        studies.create(a_spec(tags=tags))
        assert studies.get("tickets").spec.tags == tags

    def test_a_study_that_does_not_exist_is_not_found(self, studies: Studies) -> None:
        for act in (Studies.get, cancel, delete):
            with pytest.raises(StudyNotFound, match="missing"):
                act(studies, "missing")


class TestClaiming:
    def test_nothing_queued_nothing_claimed(self, studies: Studies) -> None:
        assert studies.claim("runner", LONG) is None

    def test_the_highest_priority_comes_first_then_the_oldest(self, studies: Studies) -> None:
        create(studies, "old", "middle")
        create(studies, "urgent", priority=5)
        create(studies, "young")
        create(studies, "someday", priority=-5)
        claimed = [studies.claim("runner", LONG) for _ in range(5)]
        assert [row.name for row, _ in claimed if row] == ["urgent", "old", "middle", "young", "someday"]
        assert studies.claim("runner", LONG) is None

    def test_who_gives_its_place_up_queues_behind_those_that_wait(self, studies: Studies) -> None:
        create(studies, "first", "second")
        order = []
        for _ in range(4):
            study, lease = studies.claim("one", LONG) or pytest.fail("nothing claimed")
            order.append(study.name)
            studies.end(lease, StudyState.QUEUED, "another has its place", behind=True)
            time.sleep(0.003)
        assert order == ["first", "second", "first", "second"]

    def test_a_point_of_priority_is_a_minute_of_waiting(self, studies: Studies) -> None:
        """So that nobody waits for ever behind what is more urgent."""
        create(studies, "first", "second")
        create(studies, "urgent", priority=1)
        for _ in range(2):  # it would be claimed again, so nobody needs its place
            study, lease = studies.claim("one", LONG) or pytest.fail("nothing claimed")
            assert study.name == "urgent"
            studies.end(lease, StudyState.QUEUED, "another has its place", behind=True)
        time.sleep(0.01)  # the clock of the database ticks in milliseconds
        (urgent, first, _), now = studies.line(0, 3)
        assert now - 90 < urgent < now - 59 < now - 30 < first < now
        assert studies.line(0, 1)[0] == [urgent]
        assert studies.line(LONG, 3)[0] == []

    def test_a_claimed_study_runs_under_a_lease(self, studies: Studies, database: Database) -> None:
        create(studies, "tickets")
        row, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        assert (row.state, row.lease_owner, lease.study) == ("running", "runner", "tickets")
        assert row.started_at is not None
        assert row.lease_expires_at == pytest.approx(row.started_at + LONG)
        assert kinds(database, "tickets") == ["study.queued", "study.started"]
        studies.check(lease)
        assert studies.renew(lease, LONG).requested is None

    def test_a_study_is_never_claimed_twice(self, studies: Studies) -> None:
        create(studies, *(f"study-{number}" for number in range(20)))

        def claim_all(number: int) -> list[str]:
            taken = iter(lambda: studies.claim(f"runner-{number}", LONG), None)
            return [row.name for row, _ in taken]

        answers = at_once(8, claim_all)
        names = list(itertools.chain.from_iterable(answers))
        assert sorted(names) == sorted(f"study-{number}" for number in range(20))

    def test_a_study_whose_lease_holds_is_not_taken_over(self, studies: Studies) -> None:
        create(studies, "tickets")
        studies.claim("one", LONG)
        assert studies.claim("two", LONG) is None

    def test_an_expired_lease_is_taken_over_and_the_old_holder_can_write_nothing(
        self, studies: Studies, database: Database
    ) -> None:
        create(studies, "tickets")
        _, old = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        time.sleep(2 * SHORT + 0.01)
        row, new = studies.claim("two", LONG) or pytest.fail("not taken over")
        assert new.token > old.token
        assert row.lease_owner == "two"
        before = studies.get("tickets"), kinds(database, "tickets")
        for write in (
            lambda: studies.check(old),
            lambda: studies.renew(old, LONG),
            lambda: studies.end(old, StudyState.FINISHED, "done"),
            lambda: studies.append_event(old, "trial.started", {}),
        ):
            with pytest.raises(LeaseLost, match="tickets"):
                write()
        assert (studies.get("tickets"), kinds(database, "tickets")) == before
        assert before[1] == ["study.queued", "study.started", "study.taken_over"]
        studies.check(new)

    def test_an_expired_lease_holds_until_somebody_takes_over(self, studies: Studies) -> None:
        """A machine that slept finds its study as it left it; what ends a lease is the next one."""
        create(studies, "tickets")
        _, lease = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        time.sleep(2 * SHORT + 0.01)
        studies.check(lease)
        studies.claim("two", LONG)
        with pytest.raises(LeaseLost):
            studies.check(lease)

    def test_what_optuna_writes_under_a_lease_that_has_passed_on_is_taken_back(
        self, studies: Studies, database: Database
    ) -> None:
        """The lease is looked at within Optuna's own transaction: nothing fits between the look and the write."""
        create(studies, "tickets")
        _, lease = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        storage = optuna_storage(database.url)
        with fenced(lambda connection: studies.check_within(connection, lease)):
            trials = optuna.create_study(study_name="tickets", storage=storage)
            trial = trials.ask()
            time.sleep(2 * SHORT)
            assert studies.claim("two", LONG) is not None
            with pytest.raises(LeaseLost):
                trial.set_user_attr("curve", [1])
            with pytest.raises(LeaseLost):
                trials.tell(trial, 1.0)
        (kept,) = optuna.load_study(study_name="tickets", storage=optuna_storage(database.url)).trials
        assert (kept.state, kept.user_attrs) == (optuna.trial.TrialState.RUNNING, {})
        storage.set_trial_user_attr(kept._trial_id, "curve", [1])  # unfenced, as the next holder's is

    def test_a_claim_waits_for_a_write_under_the_lease(self, studies: Studies, database: Database) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        time.sleep(2 * SHORT)
        storage, claimed = optuna_storage(database.url), []
        trials = optuna.create_study(study_name="tickets", storage=storage)
        rival = threading.Thread(target=lambda: claimed.append(studies.claim("two", LONG)))

        def check(connection: sa.Connection) -> None:
            studies.check_within(connection, lease)
            rival.start()
            # SQLite: it waits for this transaction; PostgreSQL: it passes over a locked row, and comes to its end.
            rival.join(0.3 if database.is_sqlite else LONG)
            assert claimed == ([] if database.is_sqlite else [None])

        with fenced(check):
            storage.set_study_user_attr(trials._study_id, "spec", {})
        rival.join()
        assert any(claimed) == database.is_sqlite

    def test_a_renewed_lease_is_not_taken_over(self, studies: Studies) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("one", 0.2) or pytest.fail("nothing claimed")
        studies.renew(lease, LONG)
        time.sleep(0.25)
        assert studies.claim("two", LONG) is None
        studies.check(lease)

    def test_the_start_of_a_study_is_its_first(self, studies: Studies) -> None:
        create(studies, "tickets")
        first, _ = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        time.sleep(2 * SHORT + 0.01)
        second, _ = studies.claim("two", LONG) or pytest.fail("not taken over")
        assert second.started_at == first.started_at

    def test_a_lease_on_a_deleted_study_is_worth_nothing_on_its_namesake(self, studies: Studies) -> None:
        create(studies, "tickets")
        _, stale = studies.claim("one", SHORT) or pytest.fail("nothing claimed")
        time.sleep(2 * SHORT + 0.01)
        _, second = studies.claim("two", LONG) or pytest.fail("not taken over")
        studies.end(second, StudyState.FINISHED, "done")
        delete(studies, "tickets")
        create(studies, "tickets", seed=7)
        studies.claim("three", LONG)
        with pytest.raises(LeaseLost):
            studies.check(stale)


class TestEnding:
    @pytest.mark.parametrize("state", [StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED], ids=str)
    def test_a_study_ends_with_its_reason_and_gives_the_lease_up(
        self, studies: Studies, database: Database, state: StudyState
    ) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        studies.end(lease, state, "because")
        row = studies.get("tickets")
        assert (row.state, row.reason, row.lease_owner, row.lease_expires_at) == (state, "because", None, None)
        assert row.finished_at is not None
        assert kinds(database, "tickets")[-1] == f"study.{state}"
        assert studies.claim("other", LONG) is None
        with pytest.raises(LeaseLost):
            studies.check(lease)

    def test_a_runner_that_stops_hands_its_study_over(self, studies: Studies) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("one", LONG) or pytest.fail("nothing claimed")
        studies.end(lease, StudyState.QUEUED, "stopped")
        assert studies.get("tickets").finished_at is None
        row, again = studies.claim("two", LONG) or pytest.fail("not handed over")
        assert row.name == "tickets"
        assert again.token > lease.token


class TestCancelling:
    def test_a_queued_study_is_cancelled_now(self, studies: Studies, database: Database) -> None:
        create(studies, "tickets")
        row = cancel(studies, "tickets")
        assert (row.state, row.reason) == ("cancelled", "cancelled")
        assert row.finished_at is not None
        assert studies.claim("runner", LONG) is None
        assert kinds(database, "tickets") == ["study.queued", "study.cancel_requested", "study.cancelled"]

    def test_the_runner_of_a_running_study_is_told(self, studies: Studies) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        assert cancel(studies, "tickets").state == "running"
        assert studies.renew(lease, LONG).requested == "cancelled"
        studies.end(lease, StudyState.CANCELLED, "cancelled")
        assert studies.get("tickets").state == "cancelled"

    def test_cancelling_twice_is_once(self, studies: Studies, database: Database) -> None:
        create(studies, "queued", "running")
        cancel(studies, "queued")
        studies.claim("runner", LONG)
        cancel(studies, "running")
        before = studies.get("queued"), studies.get("running")
        assert (cancel(studies, "queued"), cancel(studies, "running")) == before
        assert kinds(database, "running").count("study.cancel_requested") == 1

    @pytest.mark.parametrize("state", [StudyState.FINISHED, StudyState.FAILED], ids=str)
    def test_what_is_over_can_not_be_cancelled(self, studies: Studies, state: StudyState) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        studies.end(lease, state, "done")
        with pytest.raises(IllegalMove):
            cancel(studies, "tickets")
        assert studies.get("tickets").state == state

    def test_a_wish_to_cancel_survives_that_the_runner_hands_over(self, studies: Studies) -> None:
        create(studies, "tickets")
        _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        cancel(studies, "tickets")
        assert studies.end(lease, StudyState.QUEUED, "stopped") == StudyState.CANCELLED
        row = studies.get("tickets")
        assert (row.state, row.requested) == ("running", "cancelled"), (
            "its trials have to be closed before that is true"
        )
        assert studies.end(lease, StudyState.CANCELLED, "cancelled") == StudyState.CANCELLED
        assert studies.get("tickets").state == "cancelled"
        assert studies.claim("other", LONG) is None


def test_to_confirm_does_not_let_the_search_go_on(studies: Studies, database: Database) -> None:
    """What had ended it (its patience, say) counts on, unlike when a person extends it."""
    create(studies, "tickets")
    _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
    studies.end(lease, StudyState.FINISHED, "10 trials in a row were no better")
    confirmed = Acts(database).confirm("tickets", ConfirmSpec(top=1, seeds=2), Acting("alice"))
    assert (confirmed.state, confirmed.resumed_at, confirmed.spec.confirm) == (
        "queued",
        None,
        ConfirmSpec(top=1, seeds=2),
    )
    extended = Acts(database).extend("tickets", BudgetExtension(trials=1), Acting("alice"))
    assert extended.spec.confirm == ConfirmSpec(top=1, seeds=2)
    assert kinds(database, "tickets")[-2:] == ["study.confirmation_requested", "study.extended"]


class TestDeleting:
    @pytest.mark.parametrize("state", ["queued", "running"])
    def test_a_study_that_is_not_over_is_not_deleted(self, studies: Studies, state: str) -> None:
        create(studies, "tickets")
        if state == "running":
            studies.claim("runner", LONG)
        with pytest.raises(IllegalMove, match="cancel it"):
            delete(studies, "tickets")
        assert studies.get("tickets").state == state

    def test_a_deleted_study_leaves_nothing(self, studies: Studies, database: Database) -> None:
        create(studies, "tickets", "other")
        for name in ("tickets", "other"):
            cancel(studies, name)
        delete(studies, "tickets")
        with pytest.raises(StudyNotFound):
            studies.get("tickets")
        assert kinds(database, "tickets") == []
        assert kinds(database, "other") == ["study.queued", "study.cancel_requested", "study.cancelled"]
        assert studies.create(a_spec(seed=9))[1]


class TestEvents:
    def test_events_come_in_order_and_by_cursor(self, studies: Studies, database: Database) -> None:
        create(studies, "other", "tickets")
        cancel(studies, "other")
        _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
        for number in range(10):
            studies.append_event(lease, "trial.started", {"number": number, "params": {"epochs": 1}})
        events = events_after(database, "tickets", 0)
        assert [event.details.get("number") for event in events] == [None, None, *range(10)]
        assert [event.id for event in events] == sorted({event.id for event in events})
        assert {event.study for event in events} == {"tickets"}
        assert events[2].as_json()["params"] == {"epochs": 1}
        read, last = [], 0
        while page := events_after(database, "tickets", last, limit=3):
            read += page
            last = page[-1].id
        assert read == events

    def test_an_event_id_is_never_used_again(self, studies: Studies, database: Database) -> None:
        create(studies, "tickets")
        cancel(studies, "tickets")
        last = events_after(database, "tickets", 0)[-1].id
        delete(studies, "tickets")
        create(studies, "tickets")
        assert events_after(database, "tickets", 0)[0].id > last


class TestPages:
    def test_pages_go_from_the_newest_to_the_oldest_without_repeats_or_gaps(self, studies: Studies) -> None:
        names = [f"study-{number}" for number in range(7)]
        create(studies, *names)
        seen: list[StudyRow] = []
        while True:
            page = studies.page(3, seen[-1].place if seen else None)
            seen += page.rows
            if not page.has_more:
                break
        assert [row.name for row in seen] == names[::-1]

    def test_a_study_that_is_created_meanwhile_disturbs_no_page(self, studies: Studies) -> None:
        create(studies, "a", "b", "c", "d")
        first = studies.page(2)
        create(studies, "e")
        second = studies.page(2, first.rows[-1].place)
        assert [row.name for row in (*first.rows, *second.rows)] == ["d", "c", "b", "a"]
        assert not second.has_more

    def test_studies_of_the_same_moment_are_all_listed(self, studies: Studies, database: Database) -> None:
        create(studies, *(f"study-{number}" for number in range(5)))
        with database.write() as connection:
            connection.execute(sa.text("UPDATE hpsearch_studies SET created_at = 1.5"))
        seen: list[StudyRow] = []
        for _ in range(5):
            seen += studies.page(1, seen[-1].place if seen else None).rows
        assert sorted(row.name for row in seen) == [f"study-{number}" for number in range(5)]

    def test_a_page_of_one_state(self, studies: Studies, database: Database) -> None:
        create(studies, "a", "b", "c")
        cancel(studies, "b")
        assert [row.name for row in studies.page(10, state=StudyState.QUEUED).rows] == ["c", "a"]
        counted = count_by_state(database)
        assert counted == {
            "queued": 2, "running": 0, "paused": 0, "finished": 0, "failed": 0, "cancelled": 1,
        }  # fmt: skip

    def test_a_page_begins_behind_a_study_that_was_deleted(self, studies: Studies) -> None:
        rows = create(studies, "a", "b", "c")
        cancel(studies, "b")
        delete(studies, "b")
        assert [row.name for row in studies.page(10, rows[1].place).rows] == ["a"]


class TestDatasets:
    @pytest.fixture
    def datasets(self, database: Database, tmp_path: Path) -> Datasets:
        (tmp_path / "datasets").mkdir()
        return Datasets(database, tmp_path / "datasets")

    def test_equal_content_is_one_dataset(self, datasets: Datasets, tmp_path: Path) -> None:
        for number in range(2):
            upload = tmp_path / f"{number}.part"
            upload.write_text("content")
            row = datasets.add(upload, "ab" * 32, "chat", 12, ("a warning",))
            assert not upload.exists()
        assert datasets.get(row.id) == row
        assert (row.bytes, row.format, row.examples, row.warnings) == (7, "chat", 12, ("a warning",))
        assert [path.name for path in (tmp_path / "datasets").iterdir()] == [f"{row.id}.jsonl"]

    def test_equal_content_at_once_is_one_dataset(self, datasets: Datasets, tmp_path: Path) -> None:
        def add(number: int) -> str:
            upload = tmp_path / f"{number}.part"
            upload.write_text("content")
            return datasets.add(upload, "ab" * 32, "chat", 12, ()).id

        assert len(set(at_once(8, add))) == 1

    def test_a_dataset_whose_file_is_gone_is_unknown(self, datasets: Datasets, tmp_path: Path) -> None:
        upload = tmp_path / "part"
        upload.write_text("content")
        row = datasets.add(upload, "ab" * 32, "chat", 12, ())
        datasets.path(row.id).unlink()
        for identifier in (row.id, "ds-none", "../secret"):
            with pytest.raises(UnknownDataset):
                datasets.get(identifier)


class TestOpening:
    def test_the_migrations_make_exactly_the_tables(self, database_url: str) -> None:
        database = Database(database_url)
        with database.read() as connection:
            found = sa.MetaData()
            found.reflect(connection)
        database.close()
        ours = {name: table for name, table in found.tables.items() if name != "hpsearch_alembic_version"}
        assert set(ours) == set(metadata.tables)
        for name, table in metadata.tables.items():
            columns = {column.name: (column.nullable, column.primary_key) for column in table.columns}
            assert {c.name: (c.nullable, c.primary_key) for c in ours[name].columns} == columns
            indexed = {tuple(index.columns.keys()) for index in table.indexes}
            assert {tuple(index.columns.keys()) for index in ours[name].indexes} == indexed

    def test_opening_again_keeps_what_is_there(self, database_url: str) -> None:
        first = Database(database_url)
        Studies(first).create(a_spec())
        first.close()
        again = Database(database_url)
        assert Studies(again).get("tickets").spec == a_spec()
        again.close()

    def test_optuna_lives_in_the_same_database_under_its_own_version(self, database_url: str) -> None:
        ours = Database(database_url)
        storage = optuna_storage(database_url)
        storage.create_new_study(directions=[1], study_name="tickets")  # type: ignore[list-item]
        Database(database_url).close()
        assert [study.study_name for study in optuna_storage(database_url).get_all_studies()] == ["tickets"]
        with ours.read() as connection:
            tables = set(sa.inspect(connection).get_table_names())
        assert {"alembic_version", "hpsearch_alembic_version", "studies", "hpsearch_studies"} <= tables
        ours.close()

    def test_services_that_start_together_all_come_up(self, database_url: str) -> None:
        opening = (
            "import sys; from hpsearch.storage import Database, optuna_storage; print('ready', flush=True); "
            "sys.stdin.readline(); Database(sys.argv[1]); optuna_storage(sys.argv[1]).get_all_studies()"
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [
            subprocess.Popen([sys.executable, "-c", opening, database_url], text=True, **pipes) for _ in range(4)
        ]
        assert [process.stdout.readline() for process in started] == ["ready\n"] * 4
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=150)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0, 0, 0], "\n".join(errors)[-3000:]

    def test_who_finds_all_connections_in_use_for_too_long_is_told_that_the_database_is_away(
        self, migrated_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many studies are driven at once: a database that hangs keeps the connections of some, and fails none."""
        arguments = engine_arguments(migrated_url)
        few = {**arguments, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
        monkeypatch.setattr("hpsearch.storage.database.engine_arguments", lambda _: few)
        database = Database(migrated_url)
        with database.read(), pytest.raises(DATABASE_AWAY):
            Studies(database).get("tickets")
        database.close()

    def test_half_a_transaction_leaves_nothing(self, database: Database, studies: Studies) -> None:
        class BreaksOffError(Exception):
            pass

        def half() -> None:
            with database.write() as connection:
                connection.execute(sa.text("DELETE FROM hpsearch_studies"))
                raise BreaksOffError

        create(studies, "tickets")
        with pytest.raises(BreaksOffError):
            half()
        assert studies.get("tickets")


@pytest.mark.parametrize("name", ["with space", "{braces}", "{SCHEMA_VERSION}", "50%", "a%20b", "ümläut", "a#b", "a?b"])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    settings = Settings(home=tmp_path / name)
    settings.prepare_home()
    database = Database(settings.sql_url)
    optuna_storage(settings.sql_url).create_new_study(directions=[1], study_name="tickets")  # type: ignore[list-item]
    with database.read() as connection:
        tables = set(sa.inspect(connection).get_table_names())
    database.close()
    assert {"studies", "hpsearch_studies"} <= tables
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (settings.home / "hpsearch.db").is_file()


@pytest.mark.parametrize(
    "password", ["plain", "{braces}", "{SCHEMA_VERSION}", "per%cent", "at@colon:slash/", "%(paren)s"]
)
def test_a_database_password_may_have_any_characters(postgres: Postgres, postgres_url: str, password: str) -> None:
    url = sa.make_url(postgres_url).set(username="postgres", password=password).render_as_string(hide_password=False)
    database = Database(url)
    storage = optuna_storage(url)
    assert storage.get_all_studies() == []
    assert storage.engine.url.password == password  # type: ignore[attr-defined]
    database.close()
