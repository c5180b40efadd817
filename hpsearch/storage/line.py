"""Which studies may be claimed, and in which order."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from hpsearch.lifecycle import StudyState
from hpsearch.storage.tables import studies
from hpsearch.storage.takeovers import is_expired


def place_in_line(since: Any, priority: Any) -> Any:
    """Who is claimed first, lowest first: of a time and a number, or of their columns.

    A point of priority is worth a minute of waiting. So the highest starts first, and no stream of higher ones keeps a
    low one waiting for ever.

    Args:
        since: When it began to wait.
        priority: The study's.
    """
    return since - 60.0 * priority


WAITS_SINCE = sa.case(
    (studies.c.state == StudyState.RUNNING, studies.c.created_at),  # its runner died: it had its place already
    else_=sa.func.coalesce(studies.c.turned_at, studies.c.created_at),
)
IN_LINE = place_in_line(WAITS_SINCE, studies.c.priority)


def is_free(now: float) -> sa.ColumnElement[bool]:
    """Whether nobody drives it, and somebody should."""
    # One that was cancelled with nobody driving it, and whose trials are not closed: see `Endings.cancel`.
    half_cancelled = sa.and_(studies.c.state == StudyState.PAUSED, studies.c.requested == StudyState.CANCELLED)
    return sa.or_(studies.c.state == StudyState.QUEUED, half_cancelled, is_expired(now))
