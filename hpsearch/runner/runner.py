"""A runner claims queued studies and drives several at once; runners on one database share what there is to do."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from hpsearch.raytune.devices import count_devices
from hpsearch.runner.driving import Driving
from hpsearch.runner.fair import Fair
from hpsearch.runner.turns import Turn, rotate
from hpsearch.settings import Settings
from hpsearch.storage import DATABASE_AWAY, Database, Lease, Studies, StudyRow, optuna_storage
from hpsearch.storage.tidy import tidy

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
LOOK_SECONDS = 1.0
"""How often a runner whose places are all taken looks who waits."""

WAITED_SECONDS = 5.0
"""A queued study for which no other runner has had a place for so long waits for one of this runner's."""

TIDY_SECONDS = 6 * 3600.0

UNREADABLE_SECONDS = 30.0
"""After a claim that failed for another reason than the database being away, the next one waits so long."""


class Runner:
    """Claims and drives studies until it is told to stop.

    Args:
        settings: The operator's.
        cluster: The name of the Ray cluster that this process has joined.
    """

    def __init__(self, settings: Settings, cluster: str) -> None:
        settings.prepare_home()
        self._settings = settings
        self._database = Database(settings.sql_url)
        self._studies = Studies(self._database)
        self._tidied_at = -TIDY_SECONDS
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._drivers: dict[threading.Thread, Turn] = {}
        self._looked_at = -LOOK_SECONDS
        self.stop = threading.Event()
        self.needs_a_new_process = False
        """Whether it ended because Ray's node died, which it can't join anew, or a thread hangs, which it can't end."""
        self._hung: set[str] = set()
        fair = Fair(self._database, cluster, count_devices, settings.slice_seconds, settings.owner_weights)
        storage = optuna_storage(settings.sql_url)
        self._driving = Driving(
            settings,
            self._studies,
            storage,
            fair,
            is_stopping=self.stop.is_set,
            lost_node=self._give_up,
            hangs=self._hangs,
        )

    def run(self) -> None:
        """Drive studies, at most so many at once as the settings say; tidy up now and then.

        Raises:
            Exception: What nobody foresaw. The studies were laid down before, so a new process can take them over.
        """
        try:
            self._claim_and_drive()
        finally:
            self.stop.set()
            for driver in self._drivers:
                while driver.is_alive() and driver.name not in self._hung:
                    driver.join(POLL_SECONDS)

    def _claim_and_drive(self) -> None:
        while not self.stop.is_set():
            self._tidy()
            self._drivers = {driver: turn for driver, turn in self._drivers.items() if driver.is_alive()}
            claimed = None
            if len(self._drivers) < self._settings.studies_at_once:
                claimed = self._claimed()
            else:
                self._rotate()
            if claimed is None:
                self.stop.wait(POLL_SECONDS)
                continue
            name = claimed[0].name
            log.info("study claimed", extra={"study": name, "runner": self._owner})
            turn = Turn()
            # A daemon, because one that hangs must not keep the process; the others are waited for at the end.
            driver = threading.Thread(target=self._driving.drive, args=(*claimed, turn), name=name, daemon=True)
            driver.start()
            self._drivers[driver] = turn

    def _claimed(self) -> tuple[StudyRow, Lease] | None:
        try:
            driven = [driver.name for driver in self._drivers]
            return self._studies.claim(self._owner, self._settings.lease_seconds, but_not=driven)
        except DATABASE_AWAY:
            log.warning("database away", exc_info=True)
            return None
        except Exception:  # nobody foresaw it, and those that are driven already go on
            log.exception("study not claimed")
            self.stop.wait(UNREADABLE_SECONDS)
            return None

    def _rotate(self) -> None:
        """All places are taken: have some of them given to studies that wait."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            line, now = self._studies.line(WAITED_SECONDS, len(self._drivers))
            rotate(list(self._drivers.values()), line, now)
        except DATABASE_AWAY:
            log.warning("database away", exc_info=True)

    def _give_up(self) -> None:
        self.needs_a_new_process = True
        self.stop.set()  # whoever started this process starts it again, with a Ray that lives

    def _hangs(self, study: str) -> None:
        self._hung.add(study)  # what it holds of the devices is free when this process has ended
        self._give_up()

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied_at < TIDY_SECONDS:
            return
        self._tidied_at = time.monotonic()
        try:
            for leftover in tidy(
                self._database, self._settings, Path(tempfile.gettempdir()), self._settings.unused_days
            ):
                fields = {"path": str(leftover.path), "bytes": leftover.bytes, "reason": leftover.why}
                log.info("removed", extra=fields)
        except (OSError, *DATABASE_AWAY):
            log.warning("not tidied", exc_info=True)
