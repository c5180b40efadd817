"""Where a study's trials leave their files, and whether there is room for more."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import DiskFull
from hpsearch.raytune.messages import STALLED_SECONDS
from hpsearch.search import Asked


@dataclass(frozen=True)
class Place:
    """Where a study's trials leave their files, and what the devices need to know besides."""

    artifacts: Path
    """Folder of the study: one folder of weights per trial, and `progress` for what goes on."""
    cache: Path | None = None
    """Folder of tokenised data, for all studies; None when every worker should tokenise."""
    silent_seconds: float = 60
    """A device that does not answer for so long is killed."""
    least_free_bytes: int = 0
    """No trial starts while the disk has less room than this."""
    most_bytes: int | None = None
    """No trial starts while the study's weights and snapshots take more than this."""
    parked: int = 4
    """The snapshots of so many pruned trials, the best ones, are kept: a person may have them continued."""
    stalled_seconds: float = STALLED_SECONDS
    """A device that makes no progress for so long is replaced."""

    def progress(self, number: int) -> Path:
        """Folder of a trial's snapshots."""
        return self.artifacts / "progress" / str(number)

    def hands_over(self, number: int) -> Path:
        """Folder of what a trial hands over, by exposure."""
        return self.artifacts / "exchange" / str(number)

    def handed_over(self, number: int, exposure: int) -> Path:
        """Folder of the snapshot that a trial has handed over at an exposure."""
        return self.hands_over(number) / str(exposure)

    def keeps(self, asked: Asked) -> bool:
        """Whether there is a snapshot that a trial can go on from: its own, or the one that it inherits."""
        folders = list(self.progress(asked.snapshots).glob("*"))
        folders += [] if asked.inherits is None else [self.handed_over(*asked.inherits)]
        return any(file for folder in folders for file in folder.glob("*.safetensors"))

    def tidy(self, idle: Collection[int], needed_from: float = 0) -> None:
        """Forget the snapshots from which nobody goes on.

        Args:
            idle: Numbers of trials.
            needed_from: What was handed over below this exposure is not needed; the default keeps all of it.
        """
        for folder in self.artifacts.glob("exchange/*/*"):
            if folder.name.isdecimal() and int(folder.name) < needed_from:
                shutil.rmtree(folder, ignore_errors=True)
        for emptied in (*self.artifacts.glob("exchange/*"), self.artifacts / "exchange"):
            with contextlib.suppress(OSError):  # not empty, or not there
                emptied.rmdir()
        kept = self.artifacts / "progress"
        for folder in kept.iterdir() if kept.is_dir() else ():
            if folder.name.isdecimal() and int(folder.name) in idle:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty, or not there
            kept.rmdir()

    def check_room(self) -> None:
        """Raise DiskFull when there is less than the least room, or the study has used up its own."""
        self.artifacts.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.artifacts).free
        if free < self.least_free_bytes:
            left, least = free / 2**20, self.least_free_bytes / 2**20
            raise DiskFull(
                f"the disk of {self.artifacts} has {left:,.0f} MiB left, and no trial starts below {least:,.0f} MiB "
                "(HPSEARCH_LEAST_FREE_BYTES): free some, then resume the study"
            )
        if self.most_bytes is None:
            return
        used = _bytes_of_weights(self.artifacts)
        if used >= self.most_bytes:
            raise DiskFull(
                f"the study's weights and snapshots take {used / 2**20:,.0f} MiB, and no trial starts above "
                f"{self.most_bytes / 2**20:,.0f} MiB (HPSEARCH_STUDY_BYTES): raise it, then resume the study"
            )


def _bytes_of_weights(folder: Path) -> int:
    """Of all files of tensors below a folder. Devices write, rename and remove some while this looks."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".safetensors"):
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(place) / name).stat().st_size
    return total
