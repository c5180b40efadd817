"""Requests that may be repeated: a key is kept in the transaction that it guards."""

from __future__ import annotations

import sqlalchemy as sa

from hpsearch.errors import IdempotencyMismatch
from hpsearch.storage.tables import idempotency_keys, studies

IDEMPOTENCY_SECONDS = 7 * 24 * 3600


def study_of(connection: sa.Connection, key: str | None, request: str, now: float) -> str | None:
    """The study that an earlier request with this key was about; None for a new key, or no key.

    Raises:
        IdempotencyMismatch: The key was used for another request.
    """
    connection.execute(idempotency_keys.delete().where(idempotency_keys.c.created_at < now - IDEMPOTENCY_SECONDS))
    if key is None:
        return None
    known = connection.execute(sa.select(idempotency_keys).where(idempotency_keys.c.key == key)).mappings().first()
    if known is None:
        return None
    if known["request"] != request:
        raise IdempotencyMismatch
    name: str = known["study"]
    if connection.execute(sa.select(studies.c.name).where(studies.c.name == name)).first() is None:
        connection.execute(idempotency_keys.delete().where(idempotency_keys.c.key == key))  # deleted since: free again
        return None
    return name


def keep(connection: sa.Connection, key: str | None, request: str, study: str, now: float) -> None:
    """Remember that the request was done."""
    if key is not None:
        row = {"key": key, "request": request, "study": study, "created_at": now}
        connection.execute(idempotency_keys.insert().values(row))
