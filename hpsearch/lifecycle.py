"""Where a study stands, which moves are legal, and what people may do to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hpsearch.errors import IllegalMove
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec


class StudyState(enum.StrEnum):
    """The state of a study."""

    QUEUED = "queued"
    """Accepted; waits for a runner."""
    RUNNING = "running"
    """A runner holds its lease and drives it."""
    PAUSED = "paused"
    """Stopped, by a person or because something is in the way that a person has to mend; can go on."""
    FINISHED = "finished"
    """A limit of its budget was reached."""
    FAILED = "failed"
    """It can't go on; `reason` says why."""
    CANCELLED = "cancelled"
    """Ended by a person, for good."""

    @property
    def is_over(self) -> bool:
        """Nothing more will happen unasked."""
        return self in (StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED)


class Act(enum.StrEnum):
    """What a person may do to a study."""

    PAUSE = "pause"
    """Stop it; nothing is lost."""
    RESUME = "resume"
    """Let it go on: a paused one, or a failed one whose reason was mended."""
    EXTEND = "extend"
    """Raise its budget, also after its end."""
    CONFIRM = "confirm"
    """Train its best trials again under fresh seeds, also after its end."""
    CHANGE = "change"
    """Another priority or parallelism."""
    ADD_TRIAL = "add_trial"
    """Line up params of one's own."""
    STOP_TRIAL = "stop_trial"
    """End one trial at its next report."""
    CONTINUE_TRIAL = "continue_trial"
    """Let a pruned trial go on to its end."""
    FORGET_BORROWED = "forget_borrowed"
    """Take away what earlier studies lend its sampler."""
    CANCEL = "cancel"
    """End it for good; its trials are kept."""
    DELETE = "delete"
    """Forget it with all its trials and weights. (The state is the one that it is forgotten in.)"""


_QUEUED, _RUNNING, _PAUSED = StudyState.QUEUED, StudyState.RUNNING, StudyState.PAUSED
_FINISHED, _FAILED, _CANCELLED = StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED
_OPEN = {state: state for state in (_QUEUED, _RUNNING, _PAUSED)}
_OPEN_OR_AGAIN = {**_OPEN, _FINISHED: _QUEUED, _FAILED: _QUEUED}

ACTS: dict[Act, dict[StudyState, StudyState]] = {
    Act.PAUSE: dict.fromkeys(_OPEN, _PAUSED),
    Act.RESUME: {_QUEUED: _QUEUED, _RUNNING: _RUNNING, _PAUSED: _QUEUED, _FAILED: _QUEUED},
    Act.EXTEND: _OPEN_OR_AGAIN,
    Act.CONFIRM: {**_OPEN, _FINISHED: _QUEUED},
    Act.CHANGE: _OPEN,
    Act.ADD_TRIAL: _OPEN_OR_AGAIN,
    Act.STOP_TRIAL: _OPEN,
    Act.CONTINUE_TRIAL: _OPEN_OR_AGAIN,
    Act.FORGET_BORROWED: {**_OPEN, _FINISHED: _FINISHED, _FAILED: _FAILED},
    Act.CANCEL: dict.fromkeys((*_OPEN, _CANCELLED), _CANCELLED),
    Act.DELETE: {state: state for state in StudyState if state.is_over},
}
"""For each act the states in which it is legal, each with the state that follows. A running study takes its runner to
get there: it is told at its next heartbeat."""

MOVES: dict[StudyState, frozenset[StudyState]] = {
    _QUEUED: frozenset({_RUNNING, _PAUSED, _CANCELLED}),
    _RUNNING: frozenset({_QUEUED, _PAUSED, _FINISHED, _FAILED, _CANCELLED}),
    _PAUSED: frozenset({_QUEUED, _CANCELLED}),
    _FINISHED: frozenset({_QUEUED}),
    _FAILED: frozenset({_QUEUED}),
    _CANCELLED: frozenset(),
}
"""From each state, the states that may follow, whoever acts. RUNNING to QUEUED is a runner that hands over; what is
over comes back to QUEUED by a person only."""


class WishKind(enum.StrEnum):
    """What a person may ask of a study's trials."""

    ADD = "add"
    STOP = "stop"
    CONTINUE = "continue"


@dataclass(frozen=True)
class Wish:
    """Something asked of a study's trials, kept until its runner has done it. Ids are never used again."""

    id: int
    kind: WishKind
    by: str
    params: Params | None = None
    """Of a trial to add."""
    number: int | None = None
    """The trial to stop, or to continue."""


@dataclass(frozen=True)
class Orders:
    """What people want of a study now, as its runner hears it with every heartbeat."""

    version: int
    """Grows with every act."""
    requested: StudyState | None
    """PAUSED or CANCELLED when the runner should lay the study down."""
    spec: StudySpec
    """Its budget, priority and parallelism may differ from those that the search began with."""
    wishes: tuple[Wish, ...]
    driven_seconds: float = 0.0
    """How long it has held devices, all its runners together."""


def check_move(name: str, current: StudyState, target: StudyState) -> None:
    """Raise IllegalMove unless the table allows it."""
    if target not in MOVES[current]:
        raise IllegalMove(f"study '{name}' is {current}; it can't become {target}")


def after(act: Act, name: str, current: StudyState) -> StudyState:
    """The state that an act leads to; IllegalMove when it is not legal now."""
    target = ACTS[act].get(current)
    if target is None:
        legal = ", ".join(ACTS[act])
        hint = "; cancel it first" if act is Act.DELETE else ""
        raise IllegalMove(f"study '{name}' is {current}: {act.replace('_', ' ')} is for {legal} ones{hint}")
    return target
