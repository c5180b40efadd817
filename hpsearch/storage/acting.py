"""Who acts under which conditions, and the one transaction that an act is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpsearch.errors import ChangedMeanwhile
from hpsearch.lifecycle import Act, StudyState, WishKind, after
from hpsearch.storage import idempotency
from hpsearch.storage.database import Database
from hpsearch.storage.events import append
from hpsearch.storage.rows import StudyRow, get_study
from hpsearch.storage.tables import studies, wishes


@dataclass(frozen=True)
class Acting:
    """Who acts, and under which conditions."""

    by: str
    """The name of the token."""
    tags: Collection[str] = ()
    """The act counts only while the study has one of these tags (`StudyRow.tag`); without any, always."""
    key: str | None = None
    """Repeating an act with its key does nothing more."""

    def check(self, study: StudyRow) -> None:
        """Raise ChangedMeanwhile unless the study has one of the tags."""
        if self.tags and study.tag not in self.tags:
            raise ChangedMeanwhile(f"study '{study.name}' has changed since it was looked at: it is now '{study.tag}'")


@contextmanager
def act(
    database: Database,
    name: str,
    kind: Act,
    acting: Acting,
    request: str = "",
    *,
    within: sa.Connection | None = None,
) -> Iterator[Doing]:
    """One act's transaction, once it is known to be legal, wanted on this version, and not done already.

    Args:
        database: Where the study is.
        name: Its name.
        kind: Of act.
        acting: Who acts, and under which conditions.
        request: What a key stands for, besides the act and the study.
        within: A transaction on Optuna's tables that the act is a part of; a new one without.
    """
    digest = idempotency.digest(kind, name, request)
    with database.write() if within is None else database.joined(within) as connection:
        now = database.now(connection)
        study = get_study(connection, name)
        if idempotency.study_of(connection, acting.key, digest, now) is not None:
            yield Doing(connection, study, study.state, acting.by, now, is_new=False)
            return
        acting.check(study)
        target = after(kind, name, study.state)
        if study.requested == StudyState.CANCELLED:
            after(kind, name, StudyState.CANCELLED)  # it is as good as cancelled
        yield Doing(connection, study, target, acting.by, now)
        idempotency.keep(connection, acting.key, digest, name, now)


@dataclass(frozen=True)
class Doing:
    """One act while its transaction is open."""

    connection: sa.Connection
    study: StudyRow
    target: StudyState
    by: str
    now: float
    is_new: bool = True

    def change(self, event: str, values: dict[str, Any], **details: Any) -> None:
        """Change the study's row, move it to the act's state if it isn't driven, and say so."""
        if self.study.state not in (StudyState.RUNNING, self.target):
            over = self.target.is_over
            values = {
                **values,
                "state": self.target,
                "reason": str(self.target) if self.target != StudyState.QUEUED else "",
                "finished_at": self.now if over else None,
            }
            if self.study.state.is_over:
                values.setdefault("resumed_at", self.now)
        self._write(event, {**details, "state": str(values.get("state", self.study.state))}, values)

    def ask(self, event: str, wanted: StudyState) -> None:
        """Ask the study's runner to lay it down."""
        self._write(event, {}, {"requested": wanted})

    def wish(self, values: dict[str, Any]) -> int:
        """Keep a wish for the runner; the answer is its id."""
        row = wishes.insert().values(study=self.study.name, by=self.by, at=self.now, **values)
        return int(self.connection.execute(row.returning(wishes.c.id)).scalar_one())

    def is_wished(self, kind: WishKind, number: int) -> bool:
        """Whether the same was asked of a trial, and is not done yet."""
        asked = sa.and_(wishes.c.study == self.study.name, wishes.c.kind == kind, wishes.c.number == number)
        return self.connection.execute(sa.select(wishes.c.id).where(asked)).first() is not None

    def _write(self, event: str, details: dict[str, Any], values: dict[str, Any]) -> None:
        values = {**values, "version": self.study.version + 1}
        self.connection.execute(studies.update().where(studies.c.name == self.study.name).values(values))
        append(self.connection, self.study.name, event, self.now, {"by": self.by, **details})
