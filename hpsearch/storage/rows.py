"""Studies as they are stored, and how they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa
from pydantic import ValidationError

from hpsearch.errors import StudyNotFound, StudyUnreadable
from hpsearch.lifecycle import StudyState, Wish, WishKind
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.study import StudySpec
from hpsearch.storage.database import Database
from hpsearch.storage.tables import studies, wishes


@dataclass(frozen=True)
class StudyRow:
    """One study as it is stored."""

    name: str
    spec_text: str
    """JSON; `spec` is what it says."""
    fingerprint: str
    state: StudyState
    reason: str
    requested: StudyState | None
    """PAUSED or CANCELLED: what its runner was asked for and has not done yet."""
    version: int
    """Grows with every act of a person and with every change of state."""
    created_by: str
    """The name of the token that it was created with."""
    created_at: float
    started_at: float | None
    finished_at: float | None
    resumed_at: float | None
    """When a person last let it go on after its end."""
    driven_seconds: float
    """How long it has held devices; time in the queue, waiting for its turn, paused or over does not count."""
    lease_owner: str | None
    lease_expires_at: float | None
    held: int
    """Trials that its runner has handed out and that have not ended, as of its last heartbeat."""
    share: int | None
    """Trials that it may hold, as of then; None while nobody drives it."""
    takeovers: int
    """How often in a row its runner was not heard of any more before the study had got on."""

    @cached_property
    def spec(self) -> StudySpec:
        """Read when it is asked for: a row whose spec can't be read is still listed, ended and deleted.

        Raises:
            StudyUnreadable: It is damaged, or of another version.
        """
        try:
            return StudySpec.model_validate(json.loads(self.spec_text))
        except ValidationError as error:
            why = str(as_invalid_spec(error))
        except ValueError as error:
            why = f"not JSON: {error}"
        raise StudyUnreadable(
            f"the spec of study '{self.name}' can't be read by this version of hpsearch ({why[:500]}): it is damaged, "
            "or a newer version wrote it; upgrade, then resume the study, or delete it"
        )

    @property
    def place(self) -> tuple[float, str]:
        """Its place in the list of studies: newest first, then by name."""
        return self.created_at, self.name

    @property
    def tag(self) -> str:
        """Names this version of this study: another study of the same name never has it."""
        return f"{round(self.created_at * 1000):x}-{self.version}"

    def check_is(self, known: StudyRow) -> None:
        """Raise StudyNotFound where this is another study of the same name."""
        if self.created_at != known.created_at:
            raise StudyNotFound(f"study '{self.name}' was deleted meanwhile; the one that has its name now is another")


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


def get_study(connection: sa.Connection, name: str) -> StudyRow:
    """The study of this name; StudyNotFound without one."""
    row = connection.execute(sa.select(studies).where(studies.c.name == name)).mappings().first()
    if row is None:
        raise StudyNotFound(f"there is no study named '{name[:63]}'")
    return as_study(row)


def wishes_of(connection: sa.Connection, study: str) -> tuple[Wish, ...]:
    """What people asked of the study's trials and is not done yet, oldest first."""
    rows = connection.execute(sa.select(wishes).where(wishes.c.study == study).order_by(wishes.c.id)).mappings()
    return tuple(
        Wish(row["id"], WishKind(row["kind"]), row["by"], json.loads(row["params"] or "null"), row["number"])
        for row in rows
    )


def as_study(row: sa.RowMapping) -> StudyRow:
    """A row of the table."""
    return StudyRow(
        name=row["name"],
        spec_text=row["spec"],
        fingerprint=row["fingerprint"],
        state=StudyState(row["state"]),
        reason=row["reason"],
        requested=StudyState(row["requested"]) if row["requested"] else None,
        version=row["version"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        resumed_at=row["resumed_at"],
        driven_seconds=row["driven_seconds"],
        lease_owner=row["lease_owner"],
        lease_expires_at=row["lease_expires_at"],
        held=row["held"],
        share=row["share"],
        takeovers=row["takeovers"],
    )


def count_by_state(database: Database) -> dict[str, int]:
    """How many studies are in each state."""
    query = sa.select(studies.c.state, sa.func.count()).group_by(studies.c.state)
    with database.read() as connection:
        found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    return {str(state): found.get(state, 0) for state in StudyState}
