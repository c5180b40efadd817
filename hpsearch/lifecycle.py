"""Where a study stands, and which moves are legal."""

from __future__ import annotations

import enum

from hpsearch.errors import IllegalMove


class StudyState(enum.StrEnum):
    """The state of a study."""

    QUEUED = "queued"
    """Accepted; waits for a runner."""
    RUNNING = "running"
    """A runner holds its lease and drives it."""
    PAUSED = "paused"
    """Stopped by a person; can go on."""
    FINISHED = "finished"
    """A limit of its budget was reached."""
    FAILED = "failed"
    """It can't go on; `reason` says why."""
    CANCELLED = "cancelled"
    """Ended by a person."""

    @property
    def is_over(self) -> bool:
        """Nothing more will happen unasked."""
        return self in (StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED)


MOVES: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset({StudyState.RUNNING, StudyState.CANCELLED, StudyState.FAILED}),
    StudyState.RUNNING: frozenset(
        {StudyState.QUEUED, StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED, StudyState.PAUSED}
    ),
    StudyState.PAUSED: frozenset({StudyState.QUEUED, StudyState.CANCELLED}),
    StudyState.FINISHED: frozenset(),
    StudyState.FAILED: frozenset(),
    StudyState.CANCELLED: frozenset(),
}
"""From each state, the states that may follow. RUNNING to QUEUED is a runner that stops and hands over."""


def check_move(name: str, current: StudyState, target: StudyState) -> None:
    """Raise IllegalMove unless the table allows it."""
    if target not in MOVES[current]:
        raise IllegalMove(f"study '{name}' is {current}; it can't become {target}")
