"""What happened to a study: an append-only list in SQL, read by cursor."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpsearch.storage.database import Database
from hpsearch.storage.tables import events

DELETED = "study.deleted"
"""The one event that stays of a study that was deleted."""


KEPT = {"study.share": 50}
"""Of kinds that only say how things stand now, and that may come as long as the study lives: so many, the last ones."""


@dataclass(frozen=True)
class Event:
    """One thing that happened; ids grow, so a reader goes on behind the last one it saw."""

    id: int
    study: str
    kind: str
    at: float
    details: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The details lie beside the event's own fields."""
        return {"id": self.id, "study": self.study, "kind": self.kind, "at": self.at, **self.details}


def append(connection: sa.Connection, study: str, kind: str, at: float, details: dict[str, Any]) -> None:
    """Add an event in the transaction that made it true."""
    connection.execute(events.insert().values(study=study, kind=kind, at=at, details=json.dumps(details)))
    if kind in KEPT:
        same = sa.and_(events.c.study == study, events.c.kind == kind)
        newest_first = sa.select(events.c.id).where(same).order_by(events.c.id.desc())
        too_old = newest_first.offset(KEPT[kind]).limit(1).scalar_subquery()
        connection.execute(events.delete().where(same, events.c.id <= too_old))


def events_after(database: Database, study: str, last_id: int, limit: int = 500) -> list[Event]:
    """The study's events behind `last_id`, oldest first. That a namesake was deleted is not among them."""
    of_study = sa.and_(events.c.study == study, events.c.kind != DELETED)
    query = sa.select(events).where(of_study, events.c.id > last_id).order_by(events.c.id).limit(limit)
    return _read(database, query)


def events_of(database: Database, study: str, kinds: Collection[str]) -> list[Event]:
    """All events of some kinds of a study, oldest first."""
    of_kinds = sa.and_(events.c.study == study, events.c.kind.in_(kinds))
    return _read(database, sa.select(events).where(of_kinds).order_by(events.c.id))


def last_events(database: Database, studies: Collection[str], kind: str, limit: int = 20) -> list[Event]:
    """The newest events of one kind of some studies, oldest first."""
    of_kind = sa.and_(events.c.study.in_(studies), events.c.kind == kind)
    # By a sum: ordered by the id itself, PostgreSQL looks through everybody's events, newest first, where the studies
    # are many: it takes theirs to be as new as others'.
    return _read(database, sa.select(events).where(of_kind).order_by((events.c.id + 0).desc()).limit(limit))[::-1]


def _read(database: Database, query: sa.Select[Any]) -> list[Event]:
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [Event(row["id"], row["study"], row["kind"], row["at"], json.loads(row["details"])) for row in rows]


def last_event(database: Database, study: str) -> int:
    """The id of the study's last event; 0 when nothing has happened."""
    query = sa.select(sa.func.max(events.c.id)).where(events.c.study == study)
    with database.read() as connection:
        return int(connection.execute(query).scalar_one() or 0)
