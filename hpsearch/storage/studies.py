"""Studies: their specs, states and leases."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from hpsearch.errors import LeaseLost, NameTaken
from hpsearch.lifecycle import Orders, StudyState, Wish, check_move
from hpsearch.spec.study import StudySpec
from hpsearch.storage import idempotency
from hpsearch.storage.claims import NOTHING, Standing
from hpsearch.storage.database import Database
from hpsearch.storage.events import append, events_of
from hpsearch.storage.line import IN_LINE, WAITS_SINCE, is_free
from hpsearch.storage.rows import Lease, Page, StudyRow, as_study, get_study, wishes_of
from hpsearch.storage.tables import studies, wishes
from hpsearch.storage.takeovers import cleared_by, cleared_by_time, counted, may_be_claimed, suspicion


class Studies:
    """The table of studies. Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        spec: StudySpec,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        by: str = "",
        clone_of: str | None = None,
        *,
        request: str | None = None,
    ) -> tuple[StudyRow, bool]:
        """Queue a study; the same name with the same spec is the same study.

        Args:
            spec: What is kept.
            idempotency_key: The client's.
            fingerprint: Of the spec as it was asked for, where that differs from what is kept.
            by: The name of the client's token.
            clone_of: The study that it was made from.
            request: What the key stands for (`idempotency.digest`); left out, the fingerprint.

        Returns:
            The study, and whether it is new.

        Raises:
            NameTaken: The name belongs to a study with another spec.
            IdempotencyMismatch: The key was used for another request.
        """
        fingerprint = fingerprint or spec.fingerprint()
        request = request or fingerprint
        with self._database.write() as connection:
            now = self._database.now(connection)
            known = idempotency.study_of(connection, idempotency_key, request, now)
            if known is not None:
                return get_study(connection, known), False
            is_new = not _has_this_spec(connection, spec.name, fingerprint)
            if is_new:
                values = {
                    "name": spec.name,
                    "spec": spec.model_dump_json(),
                    "fingerprint": fingerprint,
                    "state": StudyState.QUEUED,
                    "priority": spec.priority,
                    "created_at": now,
                    "created_by": by,
                    # Tokens grow from the time, so that a lease on a deleted study is worth nothing on its namesake.
                    "lease_token": int(now * 1000),
                }
                connection.execute(studies.insert().values(values))
                origin = {} if clone_of is None else {"clone_of": clone_of}
                append(connection, spec.name, "study.queued", now, {"by": by, **origin})
            idempotency.keep(connection, idempotency_key, request, spec.name, now)
            return get_study(connection, spec.name), is_new

    def created_by(self, key: str | None, request: str) -> StudyRow | None:
        """The study that an earlier request with this key has created, so that nothing is checked twice; None if none.

        Raises:
            IdempotencyMismatch: The key was used for another request.
        """
        with self._database.read() as connection:
            known = idempotency.study_of(connection, key, request, self._database.now(connection))
            return None if known is None else get_study(connection, known)

    def check_name(self, name: str, fingerprint: str) -> None:
        """Raise NameTaken where `create` would."""
        with self._database.read() as connection:
            _has_this_spec(connection, name, fingerprint)

    def get(self, name: str) -> StudyRow:
        """The study of this name; StudyNotFound without one."""
        with self._database.read() as connection:
            return get_study(connection, name)

    def page(self, limit: int, after: tuple[float, str] | None = None, state: StudyState | None = None) -> Page:
        """Studies, newest first, starting behind a place (`StudyRow.place`), whose study may be gone."""
        order = (studies.c.created_at.desc(), studies.c.name.desc())
        query = sa.select(studies).order_by(*order).limit(limit + 1)
        if after is not None:
            query = query.where(sa.tuple_(studies.c.created_at, studies.c.name) < sa.tuple_(*map(sa.literal, after)))
        if state is not None:
            query = query.where(studies.c.state == state)
        with self._database.read() as connection:
            rows = [as_study(row) for row in connection.execute(query).mappings()]
        return Page(tuple(rows[:limit]), len(rows) > limit)

    def claim(self, owner: str, seconds: float, but_not: Collection[str] = ()) -> tuple[StudyRow, Lease] | None:
        """Take the next queued study, or a running one whose lease has expired, in the order of `place_in_line`.

        Those that may have ended the processes that drove them come last, and one at a time.

        Args:
            owner: The runner.
            seconds: The lease holds so long.
            but_not: Names of studies that it drives: where its process was stopped for longer than a lease holds, it
                would take them over from itself.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            query = sa.select(studies, counted(now).label("counted")).where(is_free(now), may_be_claimed(owner, now))
            query = query.where(studies.c.name.not_in(but_not))
            query = query.order_by(suspicion(now), IN_LINE, studies.c.created_at).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).mappings().first()
            if row is None:
                return None
            token = row["lease_token"] + 1
            changes = {
                "state": StudyState.RUNNING,
                "reason": "",
                "started_at": row["started_at"] or now,
                "lease_owner": owner,
                "lease_token": token,
                "lease_expires_at": now + seconds,
                "version": row["version"] + 1,
                "driven_at": now,
                "takeovers": row["counted"],
                "claimed_at": now,
                **NOTHING,
            }
            connection.execute(studies.update().where(studies.c.name == row["name"]).values(changes))
            kind = "study.started" if row["started_at"] is None else "study.taken_over"
            append(connection, row["name"], kind, now, {"runner": owner})
            return get_study(connection, row["name"]), Lease(row["name"], owner, token)

    def line(self, seconds: float, most: int) -> tuple[list[float], float]:
        """The places of at most so many queued studies that have waited for longer, in seconds, the first one first.

        Returns:
            The places, and the time by the clock of the database.
        """
        with self._database.read() as connection:
            now = self._database.now(connection)
            waits = sa.and_(studies.c.state == StudyState.QUEUED, now - seconds > WAITS_SINCE)
            query = sa.select(IN_LINE).where(waits).order_by(IN_LINE).limit(most)
            return [float(place) for place in connection.execute(query).scalars()], now

    def renew(self, lease: Lease, seconds: float, standing: Standing | None = None) -> Orders:
        """Extend the lease, and keep what the study has use for; the answer is what people want of it now.

        Raises:
            LeaseLost: It is gone.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            stands = {} if standing is None else standing.columns(now)
            changes = {"lease_expires_at": now + seconds, **_driven_until(now), **cleared_by_time(now), **stands}
            self._update_leased(connection, lease, changes)
            study, wished = get_study(connection, lease.study), wishes_of(connection, lease.study)
            return Orders(study.version, study.requested, study.spec, wished, study.driven_seconds)

    def fulfil(self, lease: Lease, wish: Wish) -> None:
        """The runner has done what was asked."""
        with self._database.write() as connection:
            self._update_leased(connection, lease, {"lease_owner": lease.owner})
            connection.execute(wishes.delete().where(wishes.c.id == wish.id))

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost unless the lease holds: called before each write to the study's trials.

        One that ran out but that nobody has claimed still holds: claiming is what ends it.
        """
        with self._database.read() as connection:
            if connection.execute(sa.select(studies.c.name).where(self._holds(lease))).first() is None:
                raise LeaseLost(f"the lease on study '{lease.study}' has passed to another runner")

    def check_within(self, connection: sa.Connection, lease: Lease) -> None:
        """Raise LeaseLost unless the lease holds until this transaction has ended.

        PostgreSQL keeps whoever claims the study waiting that long. SQLite has one writer at a time, which this
        transaction is if it has written.
        """
        query = sa.select(studies.c.name).where(self._holds(lease)).with_for_update(read=True)
        if connection.execute(query).first() is None:
            raise LeaseLost(f"the lease on study '{lease.study}' has passed to another runner")

    def end(
        self, lease: Lease, state: StudyState, reason: str, version: int | None = None, *, behind: bool = False
    ) -> StudyState:
        """Write how the study ended (or QUEUED to hand it over) and give the lease up, in one transaction.

        Args:
            lease: The runner's.
            state: Where it leaves the study. QUEUED to lay it down, asked to or not; PAUSED when it can't go on before
                somebody has done something about `reason`.
            reason: Why.
            version: Of the orders on which that was decided. When people have acted since, what has ended goes back to
                the queue, so that a budget raised in the last moment, or a trial added then, is not lost.
            behind: Whether it queues behind those that wait already; else it keeps its place among them.

        Returns:
            The state that was written: what people have asked for comes before QUEUED and PAUSED. If that is CANCELLED,
            nothing is written yet: the trials have to be closed before, or a crash would leave them open for ever.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            self._update_leased(connection, lease, _driven_until(now))
            study = get_study(connection, lease.study)
            if state in (StudyState.FINISHED, StudyState.FAILED) and version not in (None, study.version):
                state, reason = StudyState.QUEUED, "it was changed as it ended; the next runner goes on"
            if state in (StudyState.QUEUED, StudyState.PAUSED) and study.requested not in (None, state):
                if study.requested == StudyState.CANCELLED:
                    return StudyState.CANCELLED
                state, reason = study.requested, str(study.requested)
            check_move(lease.study, StudyState.RUNNING, state)
            changes = {
                "state": state,
                "reason": reason,
                "requested": None,
                "version": study.version + 1,
                "lease_expires_at": None,
                "lease_owner": None,
                "finished_at": now if state.is_over else None,
                "driven_at": None,
                "takeovers": 0,
                **NOTHING,
                "turned_at": now if behind and state == StudyState.QUEUED else None,
            }
            self._update_leased(connection, lease, changes)
            append(connection, lease.study, f"study.{state}", now, {"reason": reason})
            return state

    def append_event(self, lease: Lease, kind: str, details: dict[str, Any]) -> None:
        """Add an event of a driven study."""
        with self._database.write() as connection:
            self._update_leased(connection, lease, {"lease_owner": lease.owner, **cleared_by(kind)})
            append(connection, lease.study, kind, self._database.now(connection), details)

    def told(self, study: str, kinds: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
        """The kinds and the details of the study's events of some kinds, oldest first."""
        return [(event.kind, event.details) for event in events_of(self._database, study, kinds)]

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


def _has_this_spec(connection: sa.Connection, name: str, fingerprint: str) -> bool:
    """Whether there is such a study already; NameTaken where there is another one of this name."""
    known = connection.execute(sa.select(studies.c.fingerprint).where(studies.c.name == name)).scalar_one_or_none()
    if known is not None and known != fingerprint:
        raise NameTaken(
            f"a study named '{name}' exists with another spec: choose another name, or delete that study first", "name"
        )
    return known is not None


def _driven_until(now: float) -> dict[str, Any]:
    """Until now it has held what it said when it was heard last."""
    since = sa.func.coalesce(studies.c.driven_at, now)
    driven = studies.c.driven_seconds + sa.case((studies.c.held > 0, now - since), else_=0.0)
    return {"driven_seconds": driven, "driven_at": now}
