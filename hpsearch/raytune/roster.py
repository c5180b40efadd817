"""Who is on a device: the trials, what is asked of them, and the messages that they were sent.

Here the device's threads meet: those that answer calls, and the one that trains.
"""

from __future__ import annotations

import enum
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hpsearch.raytune.messages import STALLED_SECONDS, Lost, Message, Removed, Reported, Slot, encode, trial_of

SILENT_SECONDS = 10
"""A trial whose own process was not heard of for so long is dropped: the process died with its driver."""

LINE_SECONDS = 10
"""Who stands in line for the device and has not asked for so long has gone elsewhere."""


LET_GO = "the device let go of it"


class Refusal(enum.Enum):
    """Why a device does not take a trial on."""

    FULL = "full"
    """Or it takes on none any more."""
    RESERVED = "reserved"
    """One trial has it for itself, or is next to, or the trial that asks has to and others are still there."""


@dataclass(frozen=True)
class Work:
    """What the training thread finds between two ticks. Keys name trials."""

    slots: dict[str, Slot]
    """All trials that are on the device."""
    joining: list[str]
    leaving: dict[str, str]
    """And why."""
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
        self._leaving: dict[str, str] = {}
        self._finishing: set[str] = set()
        self._outdated: set[str] = set()
        self._is_closed = False
        self._stalled_seconds = STALLED_SECONDS
        self._outbox: dict[str, queue.Queue[Message]] = {}
        self._alone: set[str] = set()
        self._further: set[str] = set()
        self._line: dict[str, float] = {}

    def admit(self, key: str, slot: Slot, has_room_for_all: bool, *, lines_up: bool = True) -> Refusal | None:
        """Take a trial on, or say why not.

        Args:
            key: Names the trial's attempt.
            slot: What it needs.
            has_room_for_all: Whether it may be one more than share the device.
            lines_up: Where it has to have the device for itself: whether those that are there are let go of for that,
                and nobody else is taken on before, as long as it asks again and again.
        """
        with self._changed:
            earlier = {other for other in self._slots if trial_of(other) == trial_of(key)}
            others = self._slots.keys() - earlier
            if self._is_closed:
                return Refusal.FULL
            if self._is_reserved(key, slot, others):
                if slot.alone_until is not None and lines_up:
                    self._line_up(key, others)
                return Refusal.RESERVED
            if len(others) >= slot.capacity and not has_room_for_all:
                return Refusal.FULL
            self._line.pop(key, None)
            if slot.alone_until is not None:
                self._alone.add(key)
            self._outdated |= earlier  # their processes are gone, and nobody has missed them yet
            self._slots[key] = slot
            self._heard[key] = time.monotonic()
            self._outbox[key] = queue.Queue()
            self._joining.append(key)
            self._changed.notify_all()
            return None

    def _is_reserved(self, key: str, slot: Slot, others: set[str]) -> bool:
        """Whether another trial has the device for itself or stands in line for that; or this one has to, and can't."""
        asked_since = time.monotonic() - LINE_SECONDS
        self._line = {each: asked for each, asked in self._line.items() if asked > asked_since}
        if slot.alone_until is None:
            return bool(self._line) or not self._alone.isdisjoint(others)
        return bool(others) or next(iter(self._line), key) != key

    def _line_up(self, key: str, others: set[str]) -> None:
        """Those that are there go on elsewhere, or here afterwards; but one that is alone stays until it is cleared."""
        self._line[key] = time.monotonic()
        for other in others - self._alone:
            self._leaving.setdefault(other, "a trial under which a process died has the device for itself")
        self._changed.notify_all()

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
        with self._changed:
            if key in self._further:
                self._alone.discard(key)
        message = Removed() if outbox is None else outbox.get()
        with self._changed:
            if isinstance(message, Reported) and message.report.exposure > self._alone_until(key):
                self._further.add(key)
            self._changed.notify_all()
        return encode(message)

    def _alone_until(self, key: str) -> float:
        until = self._slots[key].alone_until if key in self._slots else None
        return math.inf if until is None else until

    def send(self, key: str, message: Message) -> None:
        """A message for whoever waits for the trial's next one; nothing when the trial is gone."""
        outbox = self._outbox.get(key)
        if outbox is not None:
            outbox.put(message)

    def release(self, study: str) -> None:
        """Ask for a study's trials to be let go of."""
        with self._changed:
            self._leaving |= {key: LET_GO for key in self._slots if key.startswith(f"{study}/")}
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
            self._alone.discard(key)
            self._further.discard(key)
            outbox = self._outbox.pop(key, None)
            if outbox is not None:
                outbox.put(Removed())
            self._changed.notify_all()

    def close(self) -> None:
        """Take no trial on any more, and ask for all to be let go of."""
        with self._changed:
            self._is_closed = True
            self._leaving |= dict.fromkeys(self._slots, LET_GO)
            self._changed.notify_all()

    def lose(self, text: str) -> None:
        """Take no trial on any more; all that are here have lost their worker."""
        with self._changed:
            self._is_closed = True
            for outbox in self._outbox.values():
                outbox.put(Lost(text))

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
            leaving, self._leaving = self._leaving, {}
            finishing, self._finishing = self._finishing, set()
            waiting = {key for key, outbox in self._outbox.items() if not outbox.empty()}
            return Work(dict(self._slots), joining, leaving, finishing, waiting, errands)
