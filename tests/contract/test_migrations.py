"""A database of any earlier release opens, with everything that was in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import hpsearch.storage
from hpsearch.lifecycle import StudyState
from hpsearch.storage import Acting, Acts, Database, Studies, events_after
from hpsearch.storage.tables import metadata
from tests.builders import a_spec

MIGRATIONS = Config()
MIGRATIONS.set_main_option("script_location", str(Path(hpsearch.storage.__file__).parent / "migrations"))
REVISIONS = [script.revision for script in ScriptDirectory.from_config(MIGRATIONS).walk_revisions()][::-1]

STATES = {"asked": "running", "driven": "running", "waits": "queued", "done": "finished"}


def fill(connection: sa.Connection) -> None:
    """Rows as a service of that revision wrote them: whatever its tables require."""
    tables = sa.MetaData()
    tables.reflect(connection)
    studies = tables.tables["hpsearch_studies"]
    for place, (name, state) in enumerate(STATES.items()):
        row = {
            "name": name,
            "spec": a_spec(name=name).model_dump_json(),
            "fingerprint": a_spec(name=name).fingerprint(),
            "state": state,
            "priority": 0,
            "created_at": 1000.0 + place,
            "started_at": None if state == "queued" else 2000.0,
            "finished_at": 2010.0 if state == "finished" else None,
            "lease_token": 7,
            "lease_owner": "old" if state == "running" else None,
            "lease_expires_at": 2020.0 if state == "running" else None,
        }
        if name == "asked":
            row |= {"cancel_requested": True} if "cancel_requested" in studies.c else {"requested": "cancelled"}
        connection.execute(studies.insert().values(row))
        event = {"study": name, "kind": "study.queued", "at": 1000.0, "details": "{}"}
        connection.execute(tables.tables["hpsearch_events"].insert().values(event))
    dataset = {"id": "ds-1", "bytes": 1, "format": "chat", "examples": 1, "warnings": "[]", "created_at": 1.0}
    connection.execute(tables.tables["hpsearch_datasets"].insert().values(dataset))
    key = {"key": "k", "request": a_spec(name="waits").fingerprint(), "study": "waits", "created_at": 4e9}
    connection.execute(tables.tables["hpsearch_idempotency_keys"].insert().values(key))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_of_an_earlier_revision_opens_with_everything_in_it(database_url: str, revision: str) -> None:
    class Earlier(Database):
        def _migrate(self) -> None:
            with self.write() as connection:
                MIGRATIONS.attributes["connection"] = connection
                command.upgrade(MIGRATIONS, revision)
                fill(connection)

    Earlier(database_url).close()
    database = Database(database_url)
    studies, acts = Studies(database), Acts(database)
    assert {row.name: row.state for row in studies.page(10).rows} == STATES
    assert studies.get("asked").requested == StudyState.CANCELLED
    assert studies.get("driven").requested is None
    for name in STATES:
        assert studies.get(name).spec == a_spec(name=name)
        assert [event.kind for event in events_after(database, name, 0)] == ["study.queued"]
    assert studies.create(a_spec(name="waits"), "k") == (studies.get("waits"), False)
    assert acts.pause("waits", Acting("alice")).state == StudyState.PAUSED
    taken, lease = studies.claim("new", 60) or pytest.fail("an expired study was not taken over")
    assert (taken.name, lease.token > 7) == ("asked", True)
    assert studies.end(lease, StudyState.QUEUED, "stopped") == StudyState.CANCELLED
    with database.read() as connection:
        found = sa.MetaData()
        found.reflect(connection)
    for name, table in metadata.tables.items():
        assert {column.name for column in found.tables[name].columns} == {column.name for column in table.columns}
        assert {index.name for index in found.tables[name].indexes} == {index.name for index in table.indexes}
    database.close()
