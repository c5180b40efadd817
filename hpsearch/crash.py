"""Points where a process can be made to die, as by `kill -9`, or to hang: tests show there that nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from typing import Literal

CrashPoint = Literal[
    "after_baseline",
    "after_ask",
    "before_start",
    "after_start",
    "after_report",
    "after_failure",
    "after_retry",
    "before_tell",
    "after_tell",
    "after_snapshot",
    "after_exchange",
    "after_heir",
]

VARIABLE = "HPSEARCH_CRASH_AT"
"""`after_report`, or `after_report:3` to pass the point twice before. Unset outside of tests."""

HANG_VARIABLE = "HPSEARCH_HANG_AT"
"""A file: who finds it at a hang point takes it away and hangs. Unset outside of tests."""

_passed: Counter[str] = Counter()


def crash_point(name: CrashPoint) -> None:
    """Die here when the environment says so."""
    wanted, _, time = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] >= int(time or 1):
        os.kill(os.getpid(), signal.SIGKILL)


def hang_point() -> None:
    """Hang here for ever when the environment says so."""
    file = os.environ.get(HANG_VARIABLE)
    if not file:
        return
    try:
        os.unlink(file)
    except FileNotFoundError:
        return
    threading.Event().wait()
