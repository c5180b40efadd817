"""What must hold of a study at any moment, whatever dies, asked of PostgreSQL while `soak.py` injects faults."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from typing import Any

import psycopg

EMPTY = {
    "a report is told twice": """
        SELECT details::json->>'number', details::json->>'exposure', count(*) FROM hpsearch_events
        WHERE kind = 'trial.reported' GROUP BY 1, 2 HAVING count(*) > 1""",
    "an end is told twice": """
        SELECT details::json->>'number', count(*) FROM hpsearch_events
        WHERE kind IN ('trial.completed', 'trial.pruned', 'trial.failed') GROUP BY 1 HAVING count(*) > 1""",
    "COMPLETE without a value": """
        SELECT number FROM trials LEFT JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE' AND value IS NULL""",
    "FAIL without a reason": """
        SELECT number FROM trials WHERE state = 'FAIL' AND NOT EXISTS (
            SELECT 1 FROM trial_user_attributes a WHERE a.trial_id = trials.trial_id AND key = 'failure')""",
    "RUNNING although nobody drives the study": """
        SELECT number FROM trials JOIN studies USING (study_id) JOIN hpsearch_studies ON name = study_name
        WHERE trials.state = 'RUNNING' AND hpsearch_studies.state IN ('paused', 'finished', 'failed', 'cancelled')""",
    "params tried twice and not linked": """
        SELECT params, count(*) FROM (
            SELECT trial_id, string_agg(param_name || '=' || param_value, ',' ORDER BY param_name) AS params
            FROM trial_params WHERE trial_id NOT IN (
                SELECT trial_id FROM trial_user_attributes WHERE key IN ('retry_of', 'continues', 'parent'))
            GROUP BY trial_id
        ) AS points GROUP BY params HAVING count(*) > 1""",
}
"""Queries that must find nothing."""


class Invariants:
    """Asks every few seconds, in a thread of its own; a database that is away is asked again later."""

    def __init__(self, conninfo: str, seconds: float = 5) -> None:
        self.checks, self.violations = 0, set[str]()
        self._conninfo, self._seconds = conninfo, seconds
        self._ended = threading.Event()
        self._finished: dict[int, Any] = {}
        self._curves: dict[int, list[Any]] = {}
        self._token = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask a last time."""
        self._ended.set()
        self._thread.join()
        self.check()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self.check()
            except psycopg.OperationalError:
                continue

    def check(self) -> None:
        """All of them, in one snapshot."""
        with psycopg.connect(self._conninfo, connect_timeout=5) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for name, query in EMPTY.items():
                self._expect(connection.execute(query.encode()).fetchall() == [], name)
            (token,) = connection.execute("SELECT coalesce(max(lease_token), 0) FROM hpsearch_studies").fetchone() or (
                0,
            )
            self._expect(token >= self._token, "a lease's token went back")
            self._token = token
            ended = "SELECT number, state, value FROM trials LEFT JOIN trial_values USING (trial_id) WHERE state IN "
            for number, *outcome in connection.execute(f"{ended} ('COMPLETE', 'PRUNED', 'FAIL')".encode()):
                same = self._finished.setdefault(number, outcome) == outcome
                self._expect(same, f"trial {number} changed after its end")
            curves = (
                "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'curve'"
            )
            for number, text in connection.execute(curves.encode()):
                curve, known = json.loads(text), self._curves.get(number, [])
                self._expect(curve[: len(known)] == known, f"the curve of trial {number} went back or changed")
                self._curves[number] = curve
        self.checks += 1

    @property
    def outline(self) -> str:
        """How often they were asked, and what did not hold."""
        violated = sorted(self.violations) or "none"
        return f"{self.checks} checks of {len(EMPTY) + 3} invariants, violated: {violated}"

    def _expect(self, holds: bool, what: str) -> None:
        if not holds and what not in self.violations:
            self.violations.add(what)
            print(f"VIOLATED: {what}", flush=True)


def recoveries(conninfo: str, faults: list[tuple[str, float]]) -> dict[str, list[float]]:
    """By fault, the seconds until trials reported again: to the end of the longest silence that began around it.

    A fault after which nothing was reported any more, because the study ended, is left out.

    Args:
        conninfo: Of the database.
        faults: Name and time, in seconds since the epoch by the database's clock.
    """
    with psycopg.connect(conninfo) as connection:
        rows = connection.execute("SELECT at FROM hpsearch_events WHERE kind = 'trial.reported' ORDER BY at").fetchall()
    times = [at for (at,) in rows]
    found: dict[str, list[float]] = {}
    for name, at in faults:
        near = [(after - before, after) for before, after in pairwise(times) if at - 1 <= before <= at + 10]
        if near and max(near)[1] > at:
            found.setdefault(name, []).append(max(near)[1] - at)
    return found
