"""Disk that nobody needs any more: what deleted studies, killed processes and forgotten uploads left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hpsearch.settings import Settings
from hpsearch.storage.database import Database
from hpsearch.storage.events import DELETED
from hpsearch.storage.tables import datasets, events, studies

DAY = 24 * 3600.0
ASIDE = ".deleted-"
"""How the folder of a study begins that is being removed; no study's name begins so."""
UPLOAD = re.compile("ds-[0-9a-f]{32}")
"""What an upload is called: its row, its file but for the suffix, and wherever a spec names it."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may go."""

    path: Path
    bytes: int
    why: str


def tidy(database: Database, settings: Settings, temporary: Path, days: float, dry: bool = False) -> list[Leftover]:
    """Remove leftovers, and say what went. What is in use, or younger than it must be, stays.

    Args:
        database: Which studies and uploads there are.
        settings: Where the home is.
        temporary: The machine's folder of temporary files; Ray's sessions lie in `ray/` below it.
        days: Uploads that no study names, and Ray's sessions of processes that are gone, stay so long.
        dry: Only say what would go.
    """
    found = [*_half_written(settings, temporary), *_ray(temporary, days)]
    for leftover in () if dry else found:
        remove(leftover.path)
    return [*_of_deleted_studies(database, settings, dry), *found, *_unused_uploads(database, settings, days, dry)]


def put_aside(folder: Path) -> Path | None:
    """Give a study's weights a name that no study has, at once, however large they are; None when there are none.

    What then breaks off is found by `tidy`.
    """
    aside = folder.with_name(f"{ASIDE}{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def remove(path: Path) -> None:
    """A file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _of_deleted_studies(database: Database, settings: Settings, dry: bool) -> list[Leftover]:
    """Only what this database knows to be deleted: a folder that it knows nothing of may be another database's."""
    folders = [path for path in settings.artifacts_folder.iterdir() if path.is_dir()]
    with database.read() as connection:
        living = set(connection.execute(sa.select(studies.c.name)).scalars())
        gone = sa.and_(
            events.c.study.in_([folder.name for folder in folders if folder.name not in living]),
            events.c.kind == DELETED,
        )
        deleted = set(connection.execute(sa.select(events.c.study).where(gone)).scalars())
    found = []
    for folder in folders:
        if folder.name not in deleted:
            continue
        leftover = Leftover(folder, _size(folder), "its study was deleted")
        with database.write() as connection:  # while no namesake can begin: what is removed is the deleted one's
            if connection.execute(sa.select(studies.c.name).where(studies.c.name == folder.name)).first() is not None:
                continue
            aside = None if dry else put_aside(folder)
        if aside is not None:
            remove(aside)
        found.append(leftover)
    return found


def _half_written(settings: Settings, temporary: Path) -> Iterator[Leftover]:
    """What a process that was killed was writing; a day old, for one that lives may still be at it."""
    places = (
        (settings.datasets_folder, ("upload-*.part", "hub-*")),
        (settings.artifacts_folder, (f"{ASIDE}*", "[!.]*/.*")),
        (temporary, ("hpsearch-tune-*", "hpsearch-adapter-*.tar")),
    )
    for folder, patterns in places:
        for pattern in patterns:
            for path in folder.glob(pattern):
                if _is_ours(path) and _idle_days(path) > 1:
                    yield Leftover(path, _size(path), "half written, by a process that is gone")


def _ray(temporary: Path, days: float) -> Iterator[Leftover]:
    """Ray's session folders end with the number of the process that began them. A node's may live without it."""
    sessions = temporary / "ray"
    newest = (sessions / "session_latest").resolve()
    for path in sessions.glob("session_*_*"):
        process = path.name.rpartition("_")[2]
        if path.is_symlink() or path == newest or not process.isdigit() or not _is_ours(path):
            continue
        if not _lives(int(process)) and _idle_days(path) > days:
            yield Leftover(path, _size(path), "a Ray session that has ended")


def _unused_uploads(database: Database, settings: Settings, days: float, dry: bool) -> list[Leftover]:
    """Of rows, and of files whose row was not written any more. Nobody waits while they are looked for.

    A database that knows no uploads may be the wrong one for this home: it says nothing of files.
    """
    with database.read() as connection:
        known = set(connection.execute(sa.select(datasets.c.id)).scalars())
    stored = {path.stem for path in settings.datasets_folder.glob("ds-*.jsonl") if UPLOAD.fullmatch(path.stem)}
    paths = {each: settings.datasets_folder / f"{each}.jsonl" for each in (known | stored if known else ())}
    idle = {identifier: path for identifier, path in paths.items() if _idle_days(path) > days}
    if not idle:
        return []
    with database.read() as connection:
        seen = connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one()  # first
        specs = connection.execute(sa.select(studies.c.spec)).scalars()
        named = {identifier for spec in specs for identifier in UPLOAD.findall(spec)}
    found = []
    for identifier, path in sorted(idle.items()):
        leftover = Leftover(path, _size(path), "an upload that no study names")
        if identifier not in named and (dry or _forget(database, identifier, path, days, seen)):
            found.append(leftover)
    return found


def _forget(database: Database, identifier: str, path: Path, days: float, seen: int) -> bool:
    """Remove row and file while no other writer can name or renew them, if none has since an event."""
    began = sa.and_(events.c.id > seen, events.c.kind == "study.queued")
    with database.write() as connection:
        since = sa.select(studies.c.spec).where(studies.c.name.in_(sa.select(events.c.study).where(began)))
        if _idle_days(path) <= days or any(identifier in spec for spec in connection.execute(since).scalars()):
            return False
        connection.execute(datasets.delete().where(datasets.c.id == identifier))
        path.unlink(missing_ok=True)
    return True


def _size(path: Path) -> int:
    total = 0
    for each in (path, *(path.rglob("*") if path.is_dir() else ())):
        with contextlib.suppress(OSError):  # gone meanwhile
            total += each.lstat().st_size if not each.is_dir() else 0
    return total


def _idle_days(path: Path) -> float:
    """Days since the file, or anything in the folder, was written; very many when it is not there."""
    try:
        newest: float = max(each.lstat().st_mtime for each in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:
        return float("inf") if not path.exists() else 0.0
    return (time.time() - newest) / DAY


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
