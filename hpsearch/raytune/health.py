"""Which device fails whatever is trained on it, while others train well: it is set aside for a while.

Kept by whoever drives the study, so a restart begins anew. Where no other device trains, nothing says that it is the
device's fault; then the search itself notices that every trial fails for the same reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hpsearch.raytune.messages import Failed, Lost, Placed
from hpsearch.results import Failure
from hpsearch.results.budget import BROKEN

DEVICES_FAULT = BROKEN - {Failure.OUT_OF_MEMORY}
"""What may be a device's fault. A config that runs out of memory may be too large for a device that is well, and in a
space that has many of those three in a row are no rarity."""

IN_A_ROW = 3
"""So many failures in a row, of different configs, and the device is set aside."""

ASIDE_SECONDS = 30 * 60.0
"""Then it is tried again; one more failure, and it is set aside again."""


@dataclass
class Incident:
    """One failure; the death of a process is one for all trials that were there."""

    key: object
    configs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Aside:
    """A device that gets no trials for a while."""

    until: float
    """Seconds since the epoch."""
    reason: str


class Health:
    """Of the devices that train one study's trials.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._placed: dict[int, Placed] = {}
        self._reporting: set[int] = set()
        self._streaks: dict[str, list[Incident]] = {}
        self._aside: dict[str, Aside] = {}

    def aside(self) -> dict[str, Aside]:
        """The devices that are set aside now."""
        now = self._clock()
        self._aside = {device: each for device, each in self._aside.items() if each.until > now}
        return dict(self._aside)

    def forgive(self) -> None:
        """There is nothing else left to train on: try all devices again."""
        self._aside.clear()
        self._streaks.clear()

    def placed(self, number: int, placed: Placed) -> None:
        """A device has taken a trial on."""
        self._placed[number] = placed

    def node_of(self, number: int) -> str | None:
        """Ray's id of the node on which the trial is; None when no device has taken it on."""
        placed = self._placed.get(number)
        return None if placed is None else placed.node

    def actors_of(self, numbers: Iterable[int]) -> frozenset[str]:
        """The actors of the devices on which these trials are; of those that are on their way to one, nothing yet."""
        return frozenset(self._placed[number].actor for number in numbers if number in self._placed)

    def reported(self, number: int, exposure: int) -> None:
        """A trial gets on. The baseline alone proves nothing: it is evaluated once for all trials."""
        if not exposure:
            return
        self._reporting.add(number)
        placed = self._placed.get(number)
        if placed is not None:
            self._streaks.pop(placed.device, None)

    def left(self, number: int) -> None:
        """A trial is on no device any more."""
        self._placed.pop(number, None)
        self._reporting.discard(number)

    def failed(self, number: int, config: str, message: Failed | Lost) -> None:
        """A trial has failed, or its device's process has died under it; perhaps the device is set aside for that.

        Args:
            number: Of the trial.
            config: What tells its config from others.
            message: How it ended.
        """
        placed = self._placed.get(number)
        if placed is None or (isinstance(message, Failed) and message.failure not in DEVICES_FAULT):
            return
        streak = self._streaks.setdefault(placed.device, [])
        died = isinstance(message, Lost) and message.died
        key = ("process", placed.pid) if died else ("trial", number)
        if not streak or streak[-1].key != key:
            streak.append(Incident(key))
        streak[-1].configs.add(config)
        del streak[:-IN_A_ROW]
        # A config that was there each time may be what kills the device, not the other way round.
        is_suspect = len(streak) == IN_A_ROW and not set.intersection(*(incident.configs for incident in streak))
        if is_suspect and self._others_train(placed.device):
            reason = f"{IN_A_ROW} failures in a row of different configs while other devices train: {message.text}"
            self._aside[placed.device] = Aside(self._clock() + ASIDE_SECONDS, reason[:500])

    def _others_train(self, device: str) -> bool:
        return any(number in self._reporting and each.device != device for number, each in self._placed.items())
