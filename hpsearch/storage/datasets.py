"""Uploaded datasets: the file in the home, named by its content; the row in SQL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from hpsearch.errors import UnknownDataset
from hpsearch.storage.database import Database
from hpsearch.storage.tables import datasets


@dataclass(frozen=True)
class DatasetRow:
    """One uploaded dataset; equal content has the equal id."""

    id: str
    bytes: int
    format: str
    examples: int
    warnings: tuple[str, ...]
    created_at: float


class Datasets:
    """The table of datasets and the folder beside it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def add(self, upload: Path, sha256: str, form: str, examples: int, warnings: tuple[str, ...]) -> DatasetRow:
        """Keep a checked upload; the file is moved into the folder. Adding the same content again changes nothing."""
        identifier = f"ds-{sha256[:32]}"
        size = upload.stat().st_size
        with self._database.write() as connection:
            upload.replace(self.path(identifier))  # in the turn in which the row is written: `tidy` removes both in one
            if connection.execute(sa.select(datasets.c.id).where(datasets.c.id == identifier)).first() is None:
                connection.execute(
                    datasets.insert().values(
                        id=identifier,
                        bytes=size,
                        format=form,
                        examples=examples,
                        warnings=json.dumps(warnings),
                        created_at=self._database.now(connection),
                    )
                )
        return self.get(identifier)

    def get(self, identifier: str) -> DatasetRow:
        """The dataset of this id; UnknownDataset without one."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(datasets).where(datasets.c.id == identifier)).mappings().first()
        if row is None or not self.path(identifier).is_file():
            raise UnknownDataset(f"there is no uploaded dataset '{identifier[:64]}'; upload it with POST /v1/datasets")
        return DatasetRow(
            row["id"], row["bytes"], row["format"], row["examples"], tuple(json.loads(row["warnings"])),
            row["created_at"],
        )  # fmt: skip

    def path(self, identifier: str) -> Path:
        """Where the content lies."""
        return self._folder / f"{identifier}.jsonl"
