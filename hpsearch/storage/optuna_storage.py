"""Optuna's tables, in the same database as ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import optuna
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpsearch.storage.database import engine_arguments, set_pragmas

ATTEMPTS = 5

_FENCE: ContextVar[Callable[[sa.Connection], None] | None] = ContextVar("fence", default=None)

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeout, optuna.exceptions.StorageInternalError)
"""What is raised while the database does not answer, also to a thread that finds all connections waiting for it."""


def optuna_storage(url: str) -> optuna.storages.BaseStorage:
    """Optuna's storage, with the SQLite settings that several processes need."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says of each trial, our events say too
    # RDBStorage runs str.format on the URL (to fill in {SCHEMA_VERSION}): braces must not reach it.
    escaped = url.replace("{", "%7B").replace("}", "%7D")
    storage = _open(escaped, engine_arguments(url))
    event.listen(storage.engine, "commit", _check_fence)
    if url.startswith("sqlite"):
        event.listen(storage.engine, "connect", set_pragmas)
        storage.engine.dispose()  # connections opened before the listener lack the pragmas
    return storage


@contextmanager
def fenced(check: Callable[[sa.Connection], None]) -> Iterator[None]:
    """Call `check` at the end of every transaction that this thread makes on Optuna's tables within the block.

    What it raises takes the transaction back. Other threads drive other studies, each within a fence of its own.
    """
    outer = _FENCE.set(check)
    try:
        yield
    finally:
        _FENCE.reset(outer)


def _check_fence(connection: sa.Connection) -> None:
    check = _FENCE.get()
    if check is not None:
        check(connection)


def _open(url: str, arguments: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Open Optuna's tables; processes that start together all try to make them, and all but one fail once."""
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        except (IntegrityError, OperationalError, ProgrammingError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")
