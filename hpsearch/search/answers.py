"""What a search answers: a trial to run, and what happens after a report."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.space import Params


class Decision(enum.Enum):
    """What happens after a report."""

    GO_ON = "go_on"
    PRUNE = "prune"
    FINISH = "finish"
    """The budget is spent and no trial has come to its end: this one ends here, with its best report."""
    ENDED = "ended"
    """The trial was closed: its curve can't be continued."""
    PAUSE = "pause"
    """It waits for the others of its population."""
    REUSE = "reuse"
    """An earlier study has trained the very same; `reuse` takes that over."""


@dataclass(frozen=True)
class Asked:
    """A trial to run, or to go on with."""

    number: int
    params: Params
    origin: str
    attempt: int = 1
    """How often it was handed out, this time included."""
    reported: int | None = None
    """The exposure of its last report; None before any."""
    config: FinetuneConfig | None = None
    """What it was trained with before it was interrupted."""
    snapshots: int = 0
    """The number that its snapshots lie under: its own, or that of the pruned trial that it goes on with."""
    inherits: tuple[int, int] | None = None
    """The trial whose weights it takes over, and at which exposure."""
    hands_over_at: int | None = None
    """From its first report there, others may go on."""
    alone_until: int | None = None
    """It has its device for itself until a report beyond this exposure; None when it may have company at once."""
