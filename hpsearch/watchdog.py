"""A thread that works marks its progress; another thread notices when the marks stop.

A hang raises nothing: a lock that is never let go, a network file system that is away, a driver that waits for its GPU.
Marks are as small as the work allows, a micro-batch: how long a pass over a large validation split takes is no hang.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

LENGTHY = 6
"""What can mark nothing meanwhile, such as a download, may take so many times as long."""

LOOK_SECONDS = 1.0


@dataclass
class Progress:
    """Of the thread that makes it."""

    thread: threading.Thread = field(default_factory=threading.current_thread)
    marks: int = 0
    lengthy: str = ""
    """What it does now, if that is lengthy."""


_own: ContextVar[Progress | None] = ContextVar("progress", default=None)


def begin() -> Progress:
    """From now on this thread's marks count."""
    progress = Progress()
    _own.set(progress)
    return progress


def mark() -> None:
    """This thread gets on; nothing happens where nobody watches it."""
    progress = _own.get()
    if progress is not None:
        progress.marks += 1


@contextlib.contextmanager
def lengthy(what: str) -> Iterator[None]:
    """What is done inside may go long without a mark."""
    progress = _own.get()
    if progress is None:
        yield
        return
    mark()
    outside, progress.lengthy = progress.lengthy, what
    try:
        yield
    finally:
        progress.lengthy = outside
        mark()


def watch(progress: Progress, patience: Callable[[], float]) -> str:
    """Wait until a thread makes no progress any more; the answer says since when, and at what.

    A process that was stopped for hours, or a machine that slept, has not hung for hours: only time in which this
    thread runs counts.

    Args:
        progress: The thread's.
        patience: Seconds from mark to mark, at most; `LENGTHY` times that inside of `lengthy`.
    """
    seen, still, looked = progress.marks, 0.0, time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        still = still + min(now - looked, 2 * LOOK_SECONDS) if progress.marks == seen else 0.0
        seen, looked = progress.marks, now
        what = progress.lengthy
        if still > patience() * (LENGTHY if what else 1):
            return f"no progress for {still:.0f} s" + (f" while {what}" if what else "")


def where(progress: Progress) -> str:
    """The thread's stack as it is now, outermost call first."""
    frame = sys._current_frames().get(progress.thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "the thread has ended"
