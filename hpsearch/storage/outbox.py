"""What webhooks have still to be told. The events are the outbox: each webhook keeps its place in them.

Events get their numbers in the order of their commits, because our writers take turns: none appears behind a place.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from hpsearch.storage.database import Database
from hpsearch.storage.events import Event
from hpsearch.storage.tables import events, studies, webhooks

FAR_BEHIND = 1000


@dataclass(frozen=True)
class Delivery:
    """One event that a webhook is to be told, by whoever claimed it first."""

    webhook: str
    event: Event
    attempt: int
    """1 for the first; only what has failed counts, not a process that died over it."""
    until: float
    """When it becomes somebody else's turn, by the clock of the database."""


class Outbox:
    """The places of the webhooks. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, webhook: str, kinds: Collection[str], every_study: bool, seconds: float) -> Delivery | None:
        """The next event for a webhook, for this process alone for so many seconds; None when there is none now.

        A webhook that is seen for the first time is told what happens from then on.

        Args:
            webhook: Its name.
            kinds: Of events that it wants.
            every_study: Of all studies; otherwise of those whose `notify` names it.
            seconds: After so long it is somebody else's turn: whoever claimed it is thought dead.
        """
        if not self._is_due(webhook, kinds):
            return None
        with self._database.write() as connection:
            now = self._database.now(connection)
            newest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one()
            place = connection.execute(sa.select(webhooks).where(webhooks.c.name == webhook)).mappings().first()
            if place is None:
                connection.execute(webhooks.insert().values(name=webhook, last_event=newest))
                return None
            if place["next_at"] > now:
                return None
            wanted = sa.and_(events.c.id > place["last_event"], events.c.kind.in_(kinds))
            joined = events.outerjoin(studies, studies.c.name == events.c.study)
            query = sa.select(events, studies.c.spec).select_from(joined).where(wanted).order_by(events.c.id)
            rows = connection.execute(query.limit(FAR_BEHIND)).mappings().all()  # no more: others wait for their turn
            for row in rows:
                if every_study or webhook in _named(row["spec"]):
                    until = now + seconds
                    self._set(connection, webhook, next_at=until)
                    event = Event(row["id"], row["study"], row["kind"], row["at"], json.loads(row["details"]))
                    return Delivery(webhook, event, place["attempts"] + 1, until)
            passed = rows[-1]["id"] if len(rows) == FAR_BEHIND else newest
            self._set(connection, webhook, last_event=passed, attempts=0)
            return None

    def _is_due(self, webhook: str, kinds: Collection[str]) -> bool:
        """Whether it is worth a transaction that writes."""
        with self._database.read() as connection:
            place = connection.execute(sa.select(webhooks).where(webhooks.c.name == webhook)).mappings().first()
            if place is None:
                return True
            if place["next_at"] > self._database.now(connection):
                return False
            behind = sa.select(events.c.id).where(events.c.id > place["last_event"])
            newest = connection.execute(sa.select(sa.func.max(events.c.id))).scalar_one() or 0
            if newest > place["last_event"] + FAR_BEHIND:  # passes over them once, instead of looking at all each time
                return True
            return connection.execute(behind.where(events.c.kind.in_(kinds)).limit(1)).first() is not None

    def done(self, delivery: Delivery) -> None:
        """It was told, or given up: on to the next event."""
        with self._database.write() as connection:
            still = sa.and_(webhooks.c.name == delivery.webhook, webhooks.c.last_event < delivery.event.id)
            values = {"last_event": delivery.event.id, "attempts": 0, "next_at": 0.0}
            connection.execute(webhooks.update().where(still).values(values))

    def again(self, delivery: Delivery, seconds: float) -> None:
        """It could not be told: try again after so many seconds."""
        with self._database.write() as connection:
            mine = sa.and_(
                webhooks.c.name == delivery.webhook,
                webhooks.c.last_event < delivery.event.id,
                webhooks.c.next_at == delivery.until,  # else it was too slow, and is another's by now
            )
            later = {"attempts": delivery.attempt, "next_at": self._database.now(connection) + seconds}
            connection.execute(webhooks.update().where(mine).values(later))

    @staticmethod
    def _set(connection: sa.Connection, webhook: str, **values: float) -> None:
        connection.execute(webhooks.update().where(webhooks.c.name == webhook).values(values))


def _named(spec: str | None) -> Collection[str]:
    """The webhooks that a study's spec names; none when the study is gone, or its spec is damaged."""
    try:
        named = json.loads(spec or "{}").get("notify", ())
    except (ValueError, AttributeError):
        return ()
    return named if isinstance(named, list) else ()
