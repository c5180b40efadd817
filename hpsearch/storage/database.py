"""One engine per process: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from hpsearch.errors import HpsearchError

VERSION_TABLE = "hpsearch_alembic_version"
"""Optuna keeps its own `alembic_version` in the same database."""

WRITERS_LOCK = 7042001
"""PostgreSQL's advisory lock of our writers."""

SQLITE_PRAGMAS = (
    "PRAGMA busy_timeout=60000",
    "PRAGMA synchronous=NORMAL",  # a commit survives the process; Optuna's cost 20 ms each without it
    "PRAGMA foreign_keys=ON",
)
WAL_ATTEMPTS = 50


def set_pragmas(connection: Any, _record: Any) -> None:
    """Make one new SQLite connection safe beside other processes."""
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(pragma)
    for attempt in range(WAL_ATTEMPTS):  # the switch to WAL happens once per file, and does not wait for others
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if attempt == WAL_ATTEMPTS - 1:
                raise
            time.sleep(0.1)
    cursor.close()


def engine_arguments(url: str) -> dict[str, Any]:
    """What both our engine and Optuna's need: pings for a server, patience for a file."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True, "pool_size": 5, "max_overflow": 10}


class Database:
    """Short transactions on our tables; the clock is the database's, so that leases compare one clock only."""

    def __init__(self, url: str) -> None:
        """Open, creating or migrating our tables if needed.

        Raises:
            HpsearchError: The URL is none, its driver is missing, or no database answers there.
        """
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        try:
            self._engine = sa.create_engine(url, **engine_arguments(url))
        except (sa.exc.ArgumentError, ImportError) as error:
            hint = "it looks like postgresql+psycopg://user:password@host/name, and needs hpsearch[postgres]"
            raise HpsearchError(f"HPSEARCH_DATABASE_URL: {error}; {hint}") from None
        if self.is_sqlite:
            event.listen(self._engine, "connect", set_pragmas)
            event.listen(self._engine, "connect", _hand_over_transactions)
            event.listen(self._engine, "begin", _begin)
        try:
            self._migrate()
        except sa.exc.OperationalError as error:
            where = self._engine.url.render_as_string(hide_password=True)
            raise HpsearchError(f"the database {where} can't be used: {error.orig}") from error

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One snapshot."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that commits at the end of the block, or leaves nothing.

        Writers take turns, on PostgreSQL as on SQLite: what a block has read stays true until it commits. They are
        few and take milliseconds; trials are not written here.
        """
        writing = self._engine.execution_options(hpsearch_write=True)
        with writing.connect() as connection, connection.begin():
            if not self.is_sqlite:
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})"))
            yield connection

    @contextmanager
    def joined(self, connection: sa.Connection) -> Iterator[sa.Connection]:
        """A transaction on Optuna's tables that has written becomes one of ours too, and takes its turn among them.

        On SQLite it has that already.
        """
        if not self.is_sqlite:
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})"))
        yield connection

    def now(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by the database's clock."""
        sqlite, postgres = "(julianday('now') - 2440587.5) * 86400.0", "extract(epoch FROM clock_timestamp())"
        query = f"SELECT {sqlite if self.is_sqlite else postgres}"
        return float(connection.execute(sa.text(query)).scalar_one())

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def _hand_over_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions behind our back


def _begin(connection: sa.Connection) -> None:
    # A write transaction takes its lock at once: upgrading a read lock fails under SQLite instead of waiting.
    write = connection.get_execution_options().get("hpsearch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
