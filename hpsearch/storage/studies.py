"""Studies: their specs, states and leases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpsearch.errors import IdempotencyMismatch, IllegalMove, LeaseLost, NameTaken, StudyNotFound
from hpsearch.lifecycle import StudyState, check_move
from hpsearch.spec.study import StudySpec
from hpsearch.storage.database import Database
from hpsearch.storage.events import append
from hpsearch.storage.tables import events, idempotency_keys, studies

IDEMPOTENCY_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class StudyRow:
    """One study as it is stored."""

    name: str
    spec: StudySpec
    fingerprint: str
    state: StudyState
    reason: str
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    lease_owner: str | None
    lease_expires_at: float | None


@dataclass(frozen=True)
class Lease:
    """The right to drive one study. The token grows with each claim, so a former holder's writes are refused."""

    study: str
    owner: str
    token: int


@dataclass(frozen=True)
class Page:
    """Part of the list of studies, newest first."""

    rows: tuple[StudyRow, ...]
    has_more: bool


class Studies:
    """The table of studies. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, spec: StudySpec, idempotency_key: str | None = None, fingerprint: str | None = None
    ) -> tuple[StudyRow, bool]:
        """Queue a study; the same name with the same spec is the same study.

        Args:
            spec: What is kept.
            idempotency_key: The client's.
            fingerprint: Of the spec as it was asked for, where that differs from what is kept.

        Returns:
            The study, and whether it is new.

        Raises:
            NameTaken: The name belongs to a study with another spec.
            IdempotencyMismatch: The key was used for another request.
        """
        fingerprint = fingerprint or spec.fingerprint()
        with self._database.write() as connection:
            now = self._database.now(connection)
            if idempotency_key is not None:
                known = self._study_of_key(connection, idempotency_key, fingerprint, now)
                if known is not None:
                    return known, False
            row = connection.execute(sa.select(studies).where(studies.c.name == spec.name)).mappings().first()
            if row is not None:
                if row["fingerprint"] != fingerprint:
                    raise NameTaken(
                        f"a study named '{spec.name}' exists with another spec: choose another name, "
                        "or delete that study first",
                        "name",
                    )
            else:
                values = {
                    "name": spec.name,
                    "spec": spec.model_dump_json(),
                    "fingerprint": fingerprint,
                    "state": StudyState.QUEUED,
                    "priority": spec.priority,
                    "created_at": now,
                    # Tokens grow from the time, so that a lease on a deleted study is worth nothing on its namesake.
                    "lease_token": int(now * 1000),
                }
                connection.execute(studies.insert().values(values))
                append(connection, spec.name, "study.queued", now, {})
            if idempotency_key is not None:
                connection.execute(
                    idempotency_keys.insert().values(
                        key=idempotency_key, request=fingerprint, study=spec.name, created_at=now
                    )
                )
            return self._get(connection, spec.name), row is None

    def _study_of_key(self, connection: sa.Connection, key: str, fingerprint: str, now: float) -> StudyRow | None:
        connection.execute(idempotency_keys.delete().where(idempotency_keys.c.created_at < now - IDEMPOTENCY_SECONDS))
        known = connection.execute(sa.select(idempotency_keys).where(idempotency_keys.c.key == key)).mappings().first()
        if known is None:
            return None
        if known["request"] != fingerprint:
            raise IdempotencyMismatch
        try:
            return self._get(connection, known["study"])
        except StudyNotFound:  # deleted since: the key is free again
            connection.execute(idempotency_keys.delete().where(idempotency_keys.c.key == key))
            return None

    def get(self, name: str) -> StudyRow:
        """The study of this name; StudyNotFound without one."""
        with self._database.read() as connection:
            return self._get(connection, name)

    @staticmethod
    def _get(connection: sa.Connection, name: str) -> StudyRow:
        row = connection.execute(sa.select(studies).where(studies.c.name == name)).mappings().first()
        if row is None:
            raise StudyNotFound(f"there is no study named '{name[:63]}'")
        return _as_study(row)

    def page(self, limit: int, after: str | None = None, state: StudyState | None = None) -> Page:
        """Studies, newest first, starting behind the one named `after`."""
        order = (studies.c.created_at.desc(), studies.c.name.desc())
        query = sa.select(studies).order_by(*order).limit(limit + 1)
        with self._database.read() as connection:
            if after is not None:
                last = self._get(connection, after)
                query = query.where(
                    sa.tuple_(studies.c.created_at, studies.c.name)
                    < sa.tuple_(sa.literal(last.created_at), sa.literal(last.name))
                )
            if state is not None:
                query = query.where(studies.c.state == state)
            rows = [_as_study(row) for row in connection.execute(query).mappings()]
        return Page(tuple(rows[:limit]), len(rows) > limit)

    def claim(self, owner: str, seconds: float) -> tuple[StudyRow, Lease] | None:
        """Take the next queued study, or a running one whose lease has expired; highest priority, then oldest."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            free = sa.or_(
                studies.c.state == StudyState.QUEUED,
                sa.and_(studies.c.state == StudyState.RUNNING, studies.c.lease_expires_at < now),
            )
            query = sa.select(studies).where(free).order_by(studies.c.priority.desc(), studies.c.created_at).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).mappings().first()
            if row is None:
                return None
            token = row["lease_token"] + 1
            changes = {
                "state": StudyState.RUNNING,
                "started_at": row["started_at"] or now,
                "lease_owner": owner,
                "lease_token": token,
                "lease_expires_at": now + seconds,
            }
            connection.execute(studies.update().where(studies.c.name == row["name"]).values(changes))
            kind = "study.started" if row["started_at"] is None else "study.taken_over"
            append(connection, row["name"], kind, now, {"runner": owner})
            return self._get(connection, row["name"]), Lease(row["name"], owner, token)

    def renew(self, lease: Lease, seconds: float) -> bool:
        """Extend the lease; the answer is whether somebody asked to cancel the study. LeaseLost if it is gone."""
        with self._database.write() as connection:
            expires = self._database.now(connection) + seconds
            self._update_leased(connection, lease, {"lease_expires_at": expires})
            return self._get(connection, lease.study).cancel_requested

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost unless the lease holds: called before each write to the study's trials.

        One that ran out but that nobody has claimed still holds: claiming is what ends it.
        """
        with self._database.read() as connection:
            if connection.execute(sa.select(studies.c.name).where(self._holds(lease))).first() is None:
                raise LeaseLost(f"the lease on study '{lease.study}' has passed to another runner")

    def end(self, lease: Lease, state: StudyState, reason: str) -> None:
        """Write how the study ended (or QUEUED to hand it over) and give the lease up, in one transaction."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            if state == StudyState.QUEUED and self._get(connection, lease.study).cancel_requested:
                state, reason = StudyState.CANCELLED, "cancelled"
            check_move(lease.study, StudyState.RUNNING, state)
            changes = {
                "state": state,
                "reason": reason,
                "lease_expires_at": None,
                "lease_owner": None,
                "finished_at": now if state.is_over else None,
            }
            self._update_leased(connection, lease, changes)
            append(connection, lease.study, f"study.{state}", now, {"reason": reason})

    def append_event(self, lease: Lease, kind: str, details: dict[str, Any]) -> None:
        """Add an event of a driven study."""
        with self._database.write() as connection:
            self._update_leased(connection, lease, {"lease_owner": lease.owner})
            append(connection, lease.study, kind, self._database.now(connection), details)

    def cancel(self, name: str) -> StudyRow:
        """Cancel now if the study is queued; else ask its runner to. Cancelling twice is once."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            study = self._get(connection, name)
            if study.state == StudyState.CANCELLED or study.cancel_requested:
                return study
            check_move(name, study.state, StudyState.CANCELLED)
            changes: dict[str, Any] = {"cancel_requested": True}
            if study.state != StudyState.RUNNING:
                changes |= {"state": StudyState.CANCELLED, "reason": "cancelled", "finished_at": now}
                append(connection, name, "study.cancelled", now, {"reason": "cancelled"})
            else:
                append(connection, name, "study.cancel_requested", now, {})
            # The state is compared again: a runner may have ended the study in this very moment.
            guarded = sa.and_(studies.c.name == name, studies.c.state == study.state)
            if connection.execute(studies.update().where(guarded).values(changes)).rowcount != 1:
                raise IllegalMove(f"study '{name}' changed just now; look again")
            return self._get(connection, name)

    def check_deletable(self, name: str) -> None:
        """Raise IllegalMove while the study is not over."""
        with self._database.read() as connection:
            _check_over(self._get(connection, name))

    def delete(self, name: str) -> None:
        """Forget a study that is over; IllegalMove while it is not."""
        with self._database.write() as connection:
            _check_over(self._get(connection, name))
            connection.execute(studies.delete().where(studies.c.name == name))
            connection.execute(events.delete().where(events.c.study == name))
            connection.execute(idempotency_keys.delete().where(idempotency_keys.c.study == name))

    @staticmethod
    def _holds(lease: Lease) -> sa.ColumnElement[bool]:
        return sa.and_(
            studies.c.name == lease.study,
            studies.c.lease_token == lease.token,
            studies.c.state == StudyState.RUNNING,
        )

    def _update_leased(self, connection: sa.Connection, lease: Lease, changes: dict[str, Any]) -> None:
        if connection.execute(studies.update().where(self._holds(lease)).values(changes)).rowcount != 1:
            raise LeaseLost(f"the lease on study '{lease.study}' has passed to another runner")


def _check_over(study: StudyRow) -> None:
    if not study.state.is_over:
        raise IllegalMove(f"study '{study.name}' is {study.state}: cancel it before deleting it")


def _as_study(row: sa.RowMapping) -> StudyRow:
    return StudyRow(
        name=row["name"],
        spec=StudySpec.model_validate(json.loads(row["spec"])),
        fingerprint=row["fingerprint"],
        state=StudyState(row["state"]),
        reason=row["reason"],
        cancel_requested=row["cancel_requested"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        lease_owner=row["lease_owner"],
        lease_expires_at=row["lease_expires_at"],
    )


def count_by_state(database: Database) -> dict[str, int]:
    """How many studies are in each state."""
    query = sa.select(studies.c.state, sa.func.count()).group_by(studies.c.state)
    with database.read() as connection:
        found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    return {str(state): found.get(state, 0) for state in StudyState}
