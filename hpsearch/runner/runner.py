"""One runner drives one study at a time; more studies at once need more runners on the same database."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hpsearch.basemodel import describe
from hpsearch.dataset.fingerprint import fingerprint
from hpsearch.dataset.load import load
from hpsearch.errors import DiskFull, HpsearchError, InvalidInput, LeaseLost, WorkerLost
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.adapter import Stop
from hpsearch.raytune.driver import drive
from hpsearch.raytune.place import Place
from hpsearch.results import Failure
from hpsearch.search import Lineage, Search, history
from hpsearch.settings import Settings
from hpsearch.spec.defaults import default_params
from hpsearch.storage import DATABASE_AWAY, Database, Lease, Studies, StudyRow, fenced, optuna_storage
from hpsearch.storage.tidy import tidy

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
TIDY_SECONDS = 6 * 3600.0
RENEW_SECONDS = 1.0
"""Also how soon it is heard what people want."""


class Heartbeat:
    """Renews a lease in a thread of its own; hears what people want of the study, and that the lease is lost."""

    def __init__(self, studies: Studies, lease: Lease, seconds: float) -> None:
        self.orders = studies.renew(lease, seconds)
        """What people want, as of the last beat."""
        self.lost = threading.Event()
        self._studies, self._lease, self._seconds = studies, lease, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def wish(self) -> Stop | None:
        """Whether the study must stop, and how."""
        if self.lost.is_set() or self.orders.requested == StudyState.CANCELLED:
            return Stop.NOW
        return Stop.IN_ORDER if self.orders.requested else None

    def _beat(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self.orders = self._studies.renew(self._lease, self._seconds)
            except LeaseLost:
                self.lost.set()
                return
            except Exception:  # a database that is away for a moment; if it stays away, the lease runs out by itself
                log.warning("lease not renewed", exc_info=True, extra={"study": self._lease.study})


class Runner:
    """Claims and drives studies until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        settings.prepare_home()
        self._settings = settings
        self._database = Database(settings.sql_url)
        self._studies = Studies(self._database)
        self._tidied_at = -TIDY_SECONDS
        self._storage = optuna_storage(settings.sql_url)
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self.stop = threading.Event()
        self.has_lost_its_node = False
        """Whether it ended because Ray's node on this machine died: only a new process can join the cluster anew."""

    def run(self) -> None:
        """Drive one study after another; tidy up now and then, in between."""
        while not self.stop.is_set():
            self._tidy()
            try:
                claimed = self._studies.claim(self._owner, self._settings.lease_seconds)
            except DATABASE_AWAY:
                log.warning("database away", exc_info=True)
                claimed = None
            if claimed is None:
                self.stop.wait(POLL_SECONDS)
                continue
            study, lease = claimed
            log.info("study claimed", extra={"study": study.name, "runner": self._owner})
            self._drive(study, lease)

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

    def _drive(self, study: StudyRow, lease: Lease) -> None:
        """Drive a claimed study to its end, and write how it ended. Whatever happens, the runner goes on."""
        try:
            with Heartbeat(self._studies, lease, self._settings.lease_seconds) as heartbeat:
                with fenced(self._storage, lambda connection: self._studies.check_within(connection, lease)):
                    state, reason, version = self._search(study, lease, heartbeat)
                state = self._studies.end(lease, state, reason, version)
            if state == StudyState.CANCELLED:  # perhaps only as the study was laid down
                history.close_open(self._storage, study.name, "the study was cancelled")
            log.info("study ended", extra={"study": study.name, "state": state, "reason": reason})
        except LeaseLost:
            log.warning("lease lost", extra={"study": study.name})
        except DATABASE_AWAY:  # nothing can be written: the lease runs out, and whoever is there then takes over
            log.warning("study given up: the database is away", exc_info=True, extra={"study": study.name})
        except Exception as error:  # a study that can't be driven fails with its reason, and the next one is claimed
            log.exception("study failed", extra={"study": study.name})
            text = str(error) if isinstance(error, HpsearchError) else f"{type(error).__name__}: {error}"
            self._end_failed(lease, text)

    def _end_failed(self, lease: Lease, text: str) -> None:
        try:
            self._studies.end(lease, StudyState.FAILED, text[:2000])
        except (LeaseLost, *DATABASE_AWAY):
            log.warning("end not written", exc_info=True, extra={"study": lease.study})

    def _search(self, study: StudyRow, lease: Lease, heartbeat: Heartbeat) -> tuple[StudyState, str, int | None]:
        """The state in which the study is left, why, and the version of the orders that this was decided on."""
        spec = study.spec
        claimed_at = time.monotonic()

        def event(kind: str, details: dict[str, Any]) -> None:
            self._studies.append_event(lease, kind, details)

        def should_stop() -> Stop | None:
            return heartbeat.wish or (Stop.IN_ORDER if self.stop.is_set() else None)

        try:
            model = describe(spec.model.base, spec.model.revision)
            split = load(spec.data)
        except InvalidInput as error:  # it was fine when it was queued: somebody has changed or moved it since
            return StudyState.FAILED, str(error), None
        examples = len(split.train)
        lineage = Lineage(model.model_type, spec.model.method, fingerprint(split.train), fingerprint(split.validation))
        search = Search(
            spec,
            self._storage,
            examples=examples,
            default_params=default_params(spec, examples),
            lineage=lineage,
            elapsed=lambda: study.driven_seconds + time.monotonic() - claimed_at,
            resumed_at=study.resumed_at or 0.0,
            fence=lambda: self._studies.check(lease),
            event=event,
            orders=lambda: heartbeat.orders,
            fulfilled=lambda wish: self._studies.fulfil(lease, wish),
        )
        place = Place(
            self._settings.artifacts_folder / spec.name,
            self._settings.token_cache_folder,
            self._settings.device_silent_seconds,
            self._settings.least_free_bytes,
            self._settings.study_bytes,
            self._settings.parked_trials,
            self._settings.device_stalled_seconds,
        )
        try:
            stopped = drive(search, model, examples, place, should_stop)
        except (LeaseLost, *DATABASE_AWAY):
            raise
        except WorkerLost as error:
            search.release(str(error))
            self.has_lost_its_node = True
            self.stop.set()  # whoever started this process starts it again, with a Ray that lives
            return StudyState.QUEUED, f"{error}; the next runner goes on", None
        except DiskFull as error:
            return StudyState.PAUSED, f"{error.code}: {error}", None
        except Exception:
            search.close(Failure.ERROR, "the study's driver failed")
            search.close_waiting("the study failed")
            raise
        if heartbeat.orders.requested == StudyState.CANCELLED:
            search.close(Failure.CANCELLED, "the study was cancelled")
            search.close_waiting("the study was cancelled")
            place.tidy(search.idle_snapshots(parked=0))
            return StudyState.CANCELLED, "cancelled", None
        if stopped:
            return StudyState.QUEUED, "its runner was stopped; the next one goes on", None
        search.close(Failure.ERROR, "the search ended while the trial was running")
        search.close_waiting("the search is over")
        search.note()
        ended_well, reason = search.verdict()
        return (StudyState.FINISHED if ended_well else StudyState.FAILED), reason, search.heeded
