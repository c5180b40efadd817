"""Leftovers go; what somebody needs, or may still be writing, stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpsearch.errors import DiskFull, UnknownDataset
from hpsearch.raytune.place import Place
from hpsearch.settings import Settings
from hpsearch.storage import Acting, Database, Datasets, Endings, Studies
from hpsearch.storage.tidy import DAY, tidy
from tests.builders import a_spec

DAYS = 14


def put(path: Path, days: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * 100)
    then = time.time() - days * DAY
    for each in (path, path.parent):
        os.utime(each, (then, then))
    return path


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_nobody_needs_goes_and_the_rest_stays(home_with_tables: Settings, tmp_path: Path, ended: int) -> None:
    settings, temporary = home_with_tables, tmp_path / "tmp"
    database = Database(settings.sql_url)
    uploads = Datasets(database, settings.datasets_folder)

    def upload(letter: str, days: float) -> tuple[str, Path]:
        part = settings.datasets_folder / "new"
        part.write_text(letter)
        row = uploads.add(part, letter * 64, "chat", 10, ())
        return row.id, put(uploads.path(row.id), days)

    used, used_file = upload("a", 100)
    fresh, fresh_file = upload("b", DAYS - 1)
    unused, unused_file = upload("c", DAYS + 1)
    # Whoever uploaded these died before the rows were written.
    rowless, rowless_used, rowless_fresh = (
        put(uploads.path(f"ds-{letter * 32}"), days) for letter, days in (("d", DAYS + 1), ("e", 100), ("f", DAYS - 1))
    )
    Studies(database).create(a_spec(data={"train": str(used_file), "validation": str(rowless_used)}))
    endings, alice = Endings(database), Acting("alice")
    for name in ("deleted", "born-again"):
        Studies(database).create(a_spec(name=name))
        endings.cancel(name, alice)
        endings.delete(name, alice)
    Studies(database).create(a_spec(name="born-again"))
    stays = [
        used_file,
        fresh_file,
        rowless_used,
        rowless_fresh,
        put(settings.datasets_folder / "ds-of-a-person.jsonl", 100),
        put(settings.artifacts_folder / "tickets/0/adapter.safetensors", 100),
        put(settings.artifacts_folder / "born-again/0/adapter.safetensors", 100),
        put(settings.artifacts_folder / "of-another-database/0/adapter.safetensors", 100),
        put(settings.artifacts_folder / "tickets/.1.abc/adapter.safetensors"),
        put(settings.artifacts_folder / "tickets/progress/3/1/snapshot.safetensors", 100),
        put(settings.artifacts_folder / ".deleted-now-1/0/adapter.safetensors"),
        put(settings.datasets_folder / "upload-new.part"),
        put(temporary / "hpsearch-tune-new/state"),
        put(temporary / "somebody-else/file", 100),
        put(temporary / f"ray/session_2026-01-01_00-00-00_000001_{os.getpid()}/logs/raylet.out", 100),
        put(temporary / f"ray/session_2026-01-01_00-00-00_000002_{ended}/logs/raylet.out", 1),
        put(temporary / f"ray/session_2026-01-01_00-00-00_000003_{ended}/logs/raylet.out", 100),
    ]
    (temporary / "ray/session_latest").symlink_to(stays[-1].parents[1])
    goes = [
        unused_file,
        rowless,
        put(settings.artifacts_folder / "deleted/0/adapter.safetensors"),
        put(settings.artifacts_folder / "tickets/.2.abc/adapter.safetensors", 2),
        put(settings.artifacts_folder / ".deleted-old-1/adapter.safetensors", 2),
        put(settings.datasets_folder / "upload-old.part", 2),
        put(temporary / "hpsearch-tune-old/state", 2),
        put(temporary / "hpsearch-adapter-old.tar", 2),
        put(temporary / f"ray/session_2026-01-01_00-00-00_000004_{ended}/logs/raylet.out", 100),
    ]
    then = time.time() - 100 * DAY
    for session in (temporary / "ray").glob("session_*_*"):
        os.utime(session, (then, then))
    os.utime(temporary / "hpsearch-tune-new")
    told = tidy(database, settings, temporary, DAYS, dry=True)
    assert all(path.exists() for path in [*stays, *goes])
    assert tidy(database, settings, temporary, DAYS) == told
    assert [path for path in stays if not path.exists()] == []
    assert [path for path in goes if path.exists()] == []
    assert sum(leftover.bytes for leftover in told) == 100 * len(goes)
    assert not list(settings.artifacts_folder.glob(".deleted-deleted-*"))
    assert uploads.get(used)
    assert uploads.get(fresh)
    with pytest.raises(UnknownDataset):
        uploads.get(unused)
    assert tidy(database, settings, temporary, DAYS) == []
    database.close()


def test_a_database_that_knows_no_uploads_removes_none(home_with_tables: Settings, tmp_path: Path) -> None:
    """Such as one that `hpsearch clean` makes where HPSEARCH_DATABASE_URL was forgotten."""
    database = Database(home_with_tables.sql_url)
    file = put(home_with_tables.datasets_folder / f"ds-{'a' * 32}.jsonl", 100)
    assert tidy(database, home_with_tables, tmp_path / "tmp", DAYS) == []
    assert file.exists()
    database.close()


class Between:
    """Called once, when all specs have been read."""

    def __init__(self, database: Database, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do
        self.statements: list[str] = []
        """Those that read specs while other writers wait."""
        sa.event.listen(database._engine, "after_cursor_execute", self._after)

    def _after(self, connection: sa.Connection, _: Any, statement: str, *__: Any) -> None:
        if not statement.startswith("SELECT hpsearch_studies.spec"):
            return
        if connection.get_execution_options().get("hpsearch_write"):
            self.statements.append(statement)
        elif self._do is not None:
            do, self._do = self._do, None
            do()


@pytest.mark.parametrize("happens", ["named", "uploaded", "nothing"])
def test_an_upload_that_somebody_needs_meanwhile_stays_and_nobody_waits_for_the_look_at_all_specs(
    migrated_url: str, home: Settings, happens: str
) -> None:
    database, others = Database(migrated_url), Database(migrated_url)
    uploads = Datasets(others, home.datasets_folder)

    def upload() -> Path:
        part = home.datasets_folder / "new"
        part.write_text("x" * 100)
        return uploads.path(uploads.add(part, "a" * 64, "chat", 10, ()).id)

    file = put(upload(), DAYS + 1)
    meanwhile: dict[str, Callable[[], object]] = {
        "named": lambda: Studies(others).create(a_spec(name="late", data={"train": str(file)})),
        "uploaded": upload,
        "nothing": lambda: None,
    }
    Studies(others).create(a_spec(name="early"))
    between = Between(database, meanwhile[happens])
    removed = [leftover.path for leftover in tidy(database, home, home.home, DAYS)]
    assert removed == ([file] if happens == "nothing" else [])
    assert file.exists() == (happens != "nothing")
    assert all("hpsearch_events.id >" in statement for statement in between.statements)
    assert between.statements or happens == "uploaded"
    for each in (database, others):
        each.close()


def test_weights_of_a_namesake_that_begins_meanwhile_stay(
    home_with_tables: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(home_with_tables.sql_url)
    Studies(database).create(a_spec(name="again"))
    Endings(database).cancel("again", Acting("alice"))
    Endings(database).delete("again", Acting("alice"))
    weights = put(home_with_tables.artifacts_folder / "again/0/adapter.safetensors")

    def begins_while_sizes_are_summed(_: Path) -> int:
        Studies(database).create(a_spec(name="again"))
        return 0

    monkeypatch.setattr("hpsearch.storage.tidy._size", begins_while_sizes_are_summed)
    assert tidy(database, home_with_tables, tmp_path / "tmp", DAYS) == []
    assert weights.exists()
    database.close()


def test_a_study_that_has_used_up_its_room_starts_no_trial(tmp_path: Path) -> None:
    place = Place(tmp_path / "tickets", None, most_bytes=250)
    for number in range(2):
        put(place.artifacts / f"{number}/adapter_model.safetensors")
        place.check_room()
    put(place.artifacts / "progress/2/snapshot.safetensors")
    with pytest.raises(DiskFull, match="HPSEARCH_STUDY_BYTES"):
        place.check_room()
