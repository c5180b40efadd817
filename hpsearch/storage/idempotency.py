"""Requests that may be repeated: a key is kept in the transaction that it guards."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from hpsearch.errors import IdempotencyMismatch
from hpsearch.storage.tables import idempotency_keys, studies

IDEMPOTENCY_SECONDS = 7 * 24 * 3600


def digest(kind: str, study: str, body: str = "") -> str:
    """What a key is kept with: of the request as it was sent, so that the same is known whatever has happened since."""
    return hashlib.sha256(f"{kind} {study} {body}".encode()).hexdigest()


def study_of(connection: sa.Connection, key: str | None, request: str, now: float) -> str | None:
    """The study that an earlier request with this key was about; None for a new key, or no key.

    Raises:
        IdempotencyMismatch: The key was used for another request.
    """
    if key is None:
        return None
    kept = sa.and_(idempotency_keys.c.key == key, idempotency_keys.c.created_at >= now - IDEMPOTENCY_SECONDS)
    there = studies.c.name == idempotency_keys.c.study  # the key of one that was deleted is free again
    query = sa.select(idempotency_keys.c.request, idempotency_keys.c.study).where(kept, there)
    known = connection.execute(query).first()
    if known is None:
        return None
    if known.request != request:
        raise IdempotencyMismatch
    return str(known.study)


def keep(connection: sa.Connection, key: str | None, request: str, study: str, now: float) -> None:
    """Remember that the request was done; what is too old is forgotten."""
    of_old = idempotency_keys.c.created_at < now - IDEMPOTENCY_SECONDS
    connection.execute(idempotency_keys.delete().where(sa.or_(of_old, idempotency_keys.c.key == key)))
    if key is not None:
        row = {"key": key, "request": request, "study": study, "created_at": now}
        connection.execute(idempotency_keys.insert().values(row))
