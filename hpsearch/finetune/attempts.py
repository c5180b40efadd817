"""The snapshots of one trial that is trained in attempts, each of which goes on where the one before it stood.

Each attempt writes into a folder of its own, named by its number: a worker that was thought dead and still writes
can't harm its successor. All attempts are on one curve, so whatever any of them wrote can be gone on from.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpsearch.crash import crash_point
from hpsearch.errors import DiskFull, InvalidInput, OutdatedCheckpoint, WorkerLost
from hpsearch.finetune import snapshot
from hpsearch.finetune.member import Member

log = logging.getLogger(__name__)

SHARE = 0.05
"""Part of the training time that writing snapshots may take."""

GUESSED_SPEED = 200e6
"""Bytes per second of copying and writing, until the first one was measured."""


class Attempt:
    """One attempt at a trial: where it begins, and its snapshots."""

    def __init__(self, trial: Path, number: int) -> None:
        """Begin; the folder of a trial that ended is gone, and nothing is written any more.

        Args:
            trial: Folder of the trial's snapshots.
            number: Of the attempt, from 1.
        """
        self._trial, self._number = trial, number
        self._folder = trial / str(number)
        self._cost = 0.0
        self._since = time.monotonic()
        with telling_disk_full():
            self._folder.mkdir(parents=True, exist_ok=True)

    def go_on(self, member: Member, reported: int | None, inherited: Path | None = None) -> bool:
        """Bring a fresh member to where the trial stood; False when there is nothing to go on from.

        Args:
            member: Just made.
            reported: The exposure of the last report that is known of the trial; None before any.
            inherited: Folder of the snapshot of another trial, from which this one began.

        Raises:
            WorkerLost: The trial was trained, and can't be continued: no snapshot, or one of another fine-tune.
            OutdatedCheckpoint: The same, since another version of hpsearch wrote it.
        """
        reasons: list[InvalidInput] = []
        for folder in self._earlier():
            try:
                saved = snapshot.read(folder)
                if saved is not None:
                    member.restore(saved)
                    return True
            except InvalidInput as error:
                reasons.append(error)
        if inherited is not None:
            try:
                saved = snapshot.read(inherited)
                if saved is not None:
                    member.take_over(saved)
                    return True
                reasons.append(InvalidInput(f"there is no checkpoint in {inherited}"))
            except InvalidInput as error:  # of whatever version: trained anew, it would begin from here again
                reasons.append(InvalidInput(str(error)))
        if reported:
            why = "; ".join(map(str, reasons)) or f"there is no checkpoint in {self._trial}"
            if any(isinstance(reason, OutdatedCheckpoint) for reason in reasons):
                raise OutdatedCheckpoint("the trial's checkpoint is of another version of hpsearch: it is trained anew")
            raise WorkerLost(f"the trial can't be continued: {why}")
        return False

    def _earlier(self) -> list[Path]:
        """The folders of the earlier attempts, the latest first."""
        numbers = (int(path.name) for path in self._trial.iterdir() if path.name.isdecimal())
        return [self._trial / str(number) for number in sorted(numbers, reverse=True) if number < self._number]

    @property
    def is_over(self) -> bool:
        """Whether the trial has ended, or a later attempt has taken it over and kept a snapshot."""
        return not self._folder.is_dir()

    def keep_best(self, member: Member, adapter: Path) -> None:
        """Write the trial's result: its best weights, which no later attempt has a folder of its own for.

        Raises:
            DiskFull: The disk has no room for them.
            WorkerLost: Nobody waits for them any more, and they may be another attempt's by now.
        """
        if self.is_over:
            raise WorkerLost("this attempt is over: a later one has taken the trial over, or it has ended")
        with telling_disk_full():
            member.save_best(adapter)

    def keep_if_due(self, member: Member) -> None:
        """Write a snapshot, unless the last one was so dear that it is too early for another.

        Raises:
            DiskFull: The disk has no room for it; the last one is whole.
        """
        elapsed = time.monotonic() - self._since
        if elapsed < self._cost / SHARE:
            return
        if not self._cost:
            self._cost = member.snapshot_bytes() / GUESSED_SPEED
            if elapsed < self._cost / SHARE:
                return
        self.keep(member)

    def hand_over(self, member: Member, folder: Path) -> None:
        """Write a snapshot that stays, for other trials to go on from; nothing where there is one already.

        Raises:
            DiskFull: The disk has no room for it.
            OSError: It could not be written.
        """
        if snapshot.exists(folder):
            return
        self.keep(member)
        with telling_disk_full():
            snapshot.share(self._folder, folder)

    def keep(self, member: Member) -> None:
        """Write a snapshot of where the member stands; earlier ones are forgotten.

        Raises:
            DiskFull: The disk has no room for it; the last one is whole.
        """
        if self.is_over:
            return
        started = time.monotonic()
        with telling_disk_full():
            snapshot.write(member.snapshot(), self._folder)
        crash_point("after_snapshot")
        for folder in self._earlier():
            shutil.rmtree(folder, ignore_errors=True)
        self._since = time.monotonic()
        self._cost = self._since - started


@contextmanager
def telling_disk_full() -> Iterator[None]:
    """Raise DiskFull where a file could not be written for want of room, whoever noticed."""
    try:
        yield
    except Exception as error:
        # safetensors passes the system's error on as text.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "(os error 28)" in str(error):
            raise DiskFull(f"no space left on the disk: {error}") from error
        raise
