"""A study that ends the process which drives it, by a crash or for want of memory, ends the next one too.

So takeovers in a row without progress are counted. Whoever drove beside it has lost its runner as often, and nobody can
tell them apart at first. Therefore suspects are driven one at a time by each runner: those that get on are cleared, and
only the one that is to blame goes on dying, until it is left alone.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from hpsearch.lifecycle import StudyState
from hpsearch.storage.tables import studies

SUSPECT_AFTER = 2
"""After so many takeovers a study is driven without other suspects, and after all that are none."""

MOST_TAKEOVERS = 5
"""After so many it is not driven any more before a person resumes it."""

CLEARED_SECONDS = 900.0
"""Who is driven for so long is no suspect any more: models may load slowly, and others may have its turn."""

PROGRESS = frozenset({"trial.reported", "trial.completed", "trial.pruned", "trial.failed"})
"""Events of a study that gets on."""


def is_expired(now: float) -> sa.ColumnElement[bool]:
    """Its runner was not heard of any more."""
    return sa.and_(studies.c.state == StudyState.RUNNING, studies.c.lease_expires_at < now)


def counted(now: float) -> sa.ColumnElement[int]:
    """Takeovers in a row, with the one that a claim would be now."""
    return studies.c.takeovers + sa.case((is_expired(now), 1), else_=0)


def suspicion(now: float) -> sa.ColumnElement[int]:
    """0 of those that are none; who is less suspect is claimed first."""
    return sa.case((counted(now) >= SUSPECT_AFTER, counted(now)), else_=0)


def may_be_claimed(owner: str, now: float) -> sa.ColumnElement[bool]:
    """All but a second suspect beside the one that this runner drives."""
    other = studies.alias()
    drives_one = sa.exists().where(
        other.c.state == StudyState.RUNNING,
        other.c.lease_owner == owner,
        other.c.lease_expires_at >= now,
        other.c.takeovers >= SUSPECT_AFTER,
    )
    return sa.or_(suspicion(now) == 0, ~drives_one)


def cleared_by_time(now: float) -> dict[str, Any]:
    """The column of a study whose runner lives."""
    takeovers = sa.case((studies.c.claimed_at < now - CLEARED_SECONDS, 0), else_=studies.c.takeovers)
    return {"takeovers": takeovers}


def cleared_by(kind: str) -> dict[str, Any]:
    """The column of a study to which this happened."""
    return {"takeovers": 0} if kind in PROGRESS else {}
