"""`hpsearch clean`: disk that nobody needs any more."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpsearch.settings import Settings


def clean(dry: bool, days: float | None) -> Iterator[str]:
    """Remove it, or only look; a line for each leftover, and one for their sum."""
    from hpsearch.storage import Database
    from hpsearch.storage.tidy import tidy

    settings = Settings()
    settings.prepare_home()
    age = settings.unused_days if days is None else days
    leftovers = tidy(Database(settings.sql_url), settings, Path(tempfile.gettempdir()), age, dry)
    for leftover in leftovers:
        yield f"{leftover.bytes / 2**20:10,.1f} MiB  {leftover.path}  ({leftover.why})"
    total = sum(leftover.bytes for leftover in leftovers) / 2**20
    yield f"{total:10,.1f} MiB  {'would be' if dry else 'is'} free again"
