"""How many rows the databases look at: what is asked of one study does not grow with the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from hpsearch.settings import Settings
from hpsearch.storage import Database, events_after, last_event
from hpsearch.storage.events import KEPT, append, events_of, last_events
from hpsearch.storage.figures import figures
from hpsearch.storage.tables import events
from hpsearch.storage.tidy import tidy

EVENTS, OF_EACH = 20_000, 200
"""Of all studies, the oldest one first, and of each; every tenth says that a trial has completed."""
OLDEST = [f"study-{number}" for number in range(30)]
TRIALS, ENDED_BADLY = 2000, 20


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    opened = Database(migrated_url)
    rows = [
        {"study": f"study-{number // OF_EACH}", "kind": kind, "at": float(number), "details": "{}"}
        for number in range(EVENTS)
        for kind in ["study.share" if number < 60 else "trial.completed" if number % 10 == 0 else "trial.reported"]
    ]
    with opened.write() as connection:
        connection.execute(events.insert(), rows)
    _count_rows(opened)
    yield opened
    opened.close()


def _count_rows(database: Database) -> None:
    """PostgreSQL plans by what it counted last."""
    with database.write() as connection:
        connection.exec_driver_sql("ANALYZE")


class Looked:
    """The statements of a database about one table, and the rows of it that each looks at."""

    def __init__(self, database: Database, table: str) -> None:
        self._table, self._sqlite = table, database.is_sqlite
        self.rows: list[float] = []
        """Of each statement; on SQLite, which does not say, 0 or infinitely many: those of an index, or all."""
        self._asking = False
        sa.event.listen(database._engine, "before_cursor_execute", self._explain)

    def _explain(self, _: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if self._table not in statement or statement.startswith("INSERT"):
            return
        if self._sqlite:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plan = [row[-1] for row in cursor.fetchall()]
            self.rows.append(float("inf") if any(step.startswith(f"SCAN {self._table}") for step in plan) else 0)
        else:
            cursor.execute("SAVEPOINT before")  # whatever the statement changes, it changes once
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            found = cursor.fetchone()[0]
            cursor.execute("ROLLBACK TO SAVEPOINT before")
            plan = json.loads(found) if isinstance(found, str) else found
            self.rows.append(sum(self._looked(plan[0]["Plan"])))

    def _looked(self, node: dict[str, Any]) -> Iterator[float]:
        if node.get("Relation Name") == self._table and "Actual Rows" in node and node["Node Type"] != "ModifyTable":
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            yield (node["Actual Rows"] + removed) * node["Actual Loops"]
        for part in node.get("Plans", ()):
            yield from self._looked(part)


ASKED: dict[str, tuple[Callable[[Database], object], int]] = {
    "its last event": (lambda database: last_event(database, "study-0"), 1),
    "its events": (lambda database: events_after(database, "study-50", 0), OF_EACH),
    "its next events": (lambda database: events_after(database, "study-99", EVENTS - 5), 5),
    "its ends": (lambda database: events_of(database, "study-1", ["trial.completed", "trial.failed"]), 20),
    "its last warnings": (lambda database: last_events(database, ["study-0"], "study.warning"), 0),
    "the last ends of some": (lambda database: last_events(database, OLDEST, "trial.completed"), 20 * len(OLDEST)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_of_a_study_looks_at_its_own_events(database: Database, asked: str) -> None:
    ask, most = ASKED[asked]
    looked = Looked(database, "hpsearch_events")
    ask(database)
    assert len(looked.rows) == 1
    assert max(looked.rows) <= most


def test_a_share_looks_at_the_shares_that_are_kept(database: Database) -> None:
    looked = Looked(database, "hpsearch_events")
    with database.write() as connection:
        append(connection, "study-0", "study.share", 0.0, {})
    (rows,) = looked.rows
    assert rows <= 3 * KEPT["study.share"]
    assert len(events_of(database, "study-0", ["study.share"])) == KEPT["study.share"]


def test_what_is_left_of_deleted_studies_is_looked_for_under_their_names(database: Database, home: Settings) -> None:
    for name in ("study-1", "never-known"):
        (home.artifacts_folder / name).mkdir(parents=True)
    looked = Looked(database, "hpsearch_events")
    assert tidy(database, home, home.home, 1) == []
    assert looked.rows
    assert max(looked.rows) == 0


def test_the_figures_of_trials_look_through_their_attributes_once(database: Database) -> None:
    with database.write() as connection:
        run = connection.exec_driver_sql
        run("INSERT INTO studies (study_id, study_name) VALUES (1, 'one')")
        for number in range(TRIALS):
            state = ("FAIL", "RUNNING")[number % 2] if number < ENDED_BADLY else "COMPLETE"
            run(f"INSERT INTO trials (trial_id, number, study_id, state) VALUES ({number}, {number}, 1, '{state}')")
        words = {"failure": '"error"', "device": '"cpu"', "tokens": "10", "device_seconds": "2.0", "origin": '"search"'}
        for key, word in words.items():
            values = f"SELECT trial_id, '{key}', '{word}' FROM trials"
            run(f"INSERT INTO trial_user_attributes (trial_id, key, value_json) {values}")
    _count_rows(database)
    looked = Looked(database, "trial_user_attributes")
    found = figures(database)
    assert (found.failures, found.cohorts) == ({"error": ENDED_BADLY / 2}, {"cpu": ENDED_BADLY / 2})
    assert (found.tokens, found.device_seconds) == (10 * TRIALS, 2 * TRIALS)
    everything = float("inf") if database.is_sqlite else len(words) * TRIALS
    assert sorted(looked.rows)[:2] == ([0, 0] if database.is_sqlite else [ENDED_BADLY / 2] * 2)
    assert sorted(looked.rows)[2:] == [everything]
