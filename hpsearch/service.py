"""What every process of the service does: log lines a machine can read, UTC, and end with the one that started it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
PARENT = "HPSEARCH_PARENT_PID"
"""Set by `hpsearch serve` and `run` for the processes that they start."""


class Lines(logging.Formatter):
    """One line each: time, level, a sentence, then its fields. JSON when nobody looks at a terminal.

    Args:
        fields: Of every line of this process.
    """

    def __init__(self, **fields: object) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        own = {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        fields = {**self._fields, **own}
        text = record.getMessage()
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        if sys.stderr.isatty():
            return f"{at} {record.levelname.lower():7} {text} " + " ".join(f"{k}={v}" for k, v in fields.items())
        return json.dumps({"at": at, "level": record.levelname.lower(), "text": text, **fields}, default=str)


def begin() -> None:
    """What the API and the runner begin with."""
    use_utc()
    configure_logging()
    end_with_parent()


def use_utc() -> None:
    """Local time is UTC in this process: Optuna writes when trials began and ended without saying in which zone."""
    os.environ["TZ"] = "UTC"
    time.tzset()


def configure_logging(**fields: object) -> None:
    """Our own lines at INFO, libraries' at WARNING, on standard error; these fields are on all of them."""
    stream = logging.StreamHandler()
    stream.setFormatter(Lines(**fields))
    logging.basicConfig(level=logging.WARNING, handlers=[stream], force=True)
    logging.getLogger("hpsearch").setLevel(logging.INFO)


def end_with_parent() -> None:
    """End this process (SIGTERM) when the one that started it is gone, however that died."""
    parent = int(os.environ.pop(PARENT, "0"))  # not for the processes that this one starts
    if parent:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
