"""How often a trial lost whoever trained it, what of that is held against it, and whether it has to train alone."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpsearch.results import Trial

RETRIES = 3
"""A trial that loses its worker is handed out again so often without getting further; the last time from its start,
under a new number."""

PATIENCE = 10
"""A trial's driver or node may die so often before it gets further; from then on that is its own loss."""


class Loss(enum.Enum):
    """Why nobody trains a trial any more that has not ended."""

    NONE = "none"
    """It was released between two steps: it loses nothing, however often."""
    OUTSIDE = "outside"
    """Its driver or its node died, with all that was there. That may be chance `PATIENCE` times in a row."""
    DEVICE = "device"
    """Its device's process died, where others may have been: from then on it is a suspect, who trains alone. What dies
    under a suspect is its own loss."""
    WORKER = "worker"
    """Its own process died, or its device, where nobody else was: perhaps it is what kills them."""


@dataclass(frozen=True)
class Losses:
    """Of one trial and those that it retries, since it got further than ever before."""

    lost: int
    """Held against it."""
    orphaned: int
    is_suspect: bool
    reached: int
    """The exposure beyond which all of this is forgotten."""

    @classmethod
    def of(cls, trial: Trial) -> Losses:
        """As they are kept on the trial."""
        if trial.exposure > trial.reached:
            return cls(0, 0, False, trial.exposure)
        return cls(trial.lost, trial.orphaned, trial.is_suspect, trial.reached)

    def with_one(self, loss: Loss) -> Losses:
        """And one more."""
        if loss is Loss.NONE:
            return self
        orphaned, died = self.orphaned + (loss is Loss.OUTSIDE), loss is Loss.DEVICE
        is_own = loss is Loss.WORKER or orphaned > PATIENCE or (died and self.is_suspect)
        return Losses(self.lost + is_own, orphaned, self.is_suspect or died, self.reached)

    def as_attributes(self) -> dict[str, Any]:
        """To be kept on the trial; see `history.as_trial`."""
        return {
            "lost": self.lost,
            "orphaned": self.orphaned,
            "suspect": self.is_suspect,
            "reached": self.reached,
        }


def suspects_first(waiting: Iterable[Trial]) -> list[Trial]:
    """The order in which trials that wait go on; otherwise it stays as it is.

    Suspects come first, for they need an empty device, which the one that died has left. Of them, who has lost least:
    the innocent ones are soon cleared, and a device that kills all of them is not taken for the fault of one.
    """
    return sorted(waiting, key=lambda trial: (1, 0) if trial.alone_until is None else (0, trial.lost))
