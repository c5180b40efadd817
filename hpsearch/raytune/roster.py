"""Who is on a device: the trials, what is asked of them, and the messages that they were sent.

Here the device's threads meet: those that answer calls, and the one that trains.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hpsearch.raytune.messages import STALLED_SECONDS, Lost, Message, Removed, Slot, encode, trial_of

SILENT_SECONDS = 10
"""A trial whose own process was not heard of for so long is dropped: the process died with its driver."""


@dataclass(frozen=True)
class Work:
    """What the training thread finds between two ticks. Keys name trials."""

    slots: dict[str, Slot]
    """All trials that are on the device."""
    joining: list[str]
    leaving: set[str]
    finishing: set[str]
    waiting: set[str]
    """Nobody has dealt with their last message yet."""
    errands: list[Callable[[], None]]


class Roster:
    """Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._heard: dict[str, float] = {}
        self._joining: list[str] = []
        self._errands: list[Callable[[], None]] = []
        self._leaving: set[str] = set()
        self._finishing: set[str] = set()
        self._outdated: set[str] = set()
        self._is_closed = False
        self._stalled_seconds = STALLED_SECONDS
        self._outbox: dict[str, queue.Queue[str]] = {}

    def admit(self, key: str, slot: Slot, has_room_for_all: bool) -> bool:
        """Take a trial on; False when the device is full, or takes on none any more."""
        with self._changed:
            earlier = {other for other in self._slots if trial_of(other) == trial_of(key)}
            is_full = len(self._slots) - len(earlier) >= slot.capacity
            if self._is_closed or (is_full and not has_room_for_all):
                return False
            self._outdated |= earlier  # their processes are gone, and nobody has missed them yet
            self._slots[key] = slot
            self._heard[key] = time.monotonic()
            self._outbox[key] = queue.Queue()
            self._joining.append(key)
            self._changed.notify_all()
            return True

    def wants(self, key: str) -> bool:
        """Whether somebody still wants the trial to be trained here."""
        with self._changed:
            return key in self._slots and key not in self._leaving

    def touch(self, key: str) -> None:
        """The trial's process lives."""
        with self._changed:
            if key in self._slots:
                self._heard[key] = time.monotonic()

    def next_message(self, key: str) -> str:
        """Wait for the trial's next message. Asking for it says that the one before was dealt with."""
        outbox = self._outbox.get(key)
        message = encode(Removed()) if outbox is None else outbox.get()
        with self._changed:
            self._changed.notify_all()
        return message

    def send(self, key: str, message: Message) -> None:
        """A message for whoever waits for the trial's next one; nothing when the trial is gone."""
        outbox = self._outbox.get(key)
        if outbox is not None:
            outbox.put(encode(message))

    def release(self, study: str) -> None:
        """Ask for a study's trials to be let go of."""
        with self._changed:
            self._leaving |= {key for key in self._slots if key.startswith(f"{study}/")}
            self._changed.notify_all()

    def finish(self, trial: str) -> None:
        """Ask for a trial to be ended where it stands."""
        with self._changed:
            self._finishing |= {key for key in self._slots if trial_of(key) == trial}
            self._changed.notify_all()

    def remove(self, key: str) -> None:
        """Drop a trial: it ended, was pruned or was cancelled."""
        with self._changed:
            self._slots.pop(key, None)
            self._heard.pop(key, None)
            outbox = self._outbox.pop(key, None)
            if outbox is not None:
                outbox.put(encode(Removed()))
            self._changed.notify_all()

    def close(self) -> None:
        """Take no trial on any more, and ask for all to be let go of."""
        with self._changed:
            self._is_closed = True
            self._leaving |= set(self._slots)
            self._changed.notify_all()

    def lose(self, text: str) -> None:
        """Take no trial on any more; all that are here have lost their worker."""
        with self._changed:
            self._is_closed = True
            for outbox in self._outbox.values():
                outbox.put(encode(Lost(text)))

    @property
    def stalled_seconds(self) -> float:
        """How long its trials are patient with the training thread; without any, whoever last sent it on an errand."""
        return max((slot.stalled_seconds for slot in list(self._slots.values())), default=self._stalled_seconds)

    def wait_until_empty(self, seconds: float) -> None:
        """Until the last trial was removed, but no longer."""
        with self._changed:
            self._changed.wait_for(lambda: not self._slots, timeout=seconds)

    def do(self, errand: Callable[[], None], stalled_seconds: float) -> None:
        """Have the training thread do something between two ticks, and be so patient with it."""
        with self._changed:
            self._stalled_seconds = stalled_seconds
            self._errands.append(errand)
            self._changed.notify_all()

    def trials(self) -> list[str]:
        """The keys of the trials on the device."""
        with self._changed:
            return list(self._slots)

    # For the training thread.

    def wait_for_work(self, training: Iterable[str], seconds: float) -> None:
        """Until something is asked for, or one of those that train can make a step; but no longer."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work(training), timeout=seconds)

    def _has_work(self, training: Iterable[str]) -> bool:
        if self._joining or self._leaving or self._finishing or self._errands:
            return True
        return any(key not in self._outbox or self._outbox[key].empty() for key in training)

    def silent(self) -> list[str]:
        """Trials whose own processes are gone."""
        with self._changed:
            outdated, self._outdated = self._outdated & self._slots.keys(), set()
            heard_since = time.monotonic() - SILENT_SECONDS
            return [key for key in self._slots if key in outdated or self._heard[key] < heard_since]

    def take(self) -> Work:
        """What there is to do; it is not handed out again."""
        with self._changed:
            joining, self._joining = self._joining, []
            errands, self._errands = self._errands, []
            leaving, self._leaving = self._leaving, set()
            finishing, self._finishing = self._finishing, set()
            waiting = {key for key, outbox in self._outbox.items() if not outbox.empty()}
            return Work(dict(self._slots), joining, leaving, finishing, waiting, errands)
