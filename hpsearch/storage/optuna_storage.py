"""Optuna's tables, in the same database as ours."""

from __future__ import annotations

import optuna
from sqlalchemy import event

from hpsearch.storage.database import engine_arguments, set_pragmas


def optuna_storage(url: str) -> optuna.storages.BaseStorage:
    """Optuna's storage, with the SQLite settings that several processes need."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says of each trial, our events say too
    # RDBStorage runs str.format on the URL (to fill in {SCHEMA_VERSION}): braces must not reach it.
    escaped = url.replace("{", "%7B").replace("}", "%7D")
    storage = optuna.storages.RDBStorage(escaped, engine_kwargs=engine_arguments(url))
    if url.startswith("sqlite"):
        event.listen(storage.engine, "connect", set_pragmas)
        storage.engine.dispose()  # connections opened before the listener lack the pragmas
    return storage
