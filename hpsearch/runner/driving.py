"""One claimed study, from its claim to how it is left. Several are driven at once, each in a thread of its own."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hpsearch.basemodel import BaseModel, describe
from hpsearch.dataset.fingerprint import fingerprint
from hpsearch.dataset.load import load
from hpsearch.errors import (
    DiskFull,
    HpsearchError,
    HubUnavailable,
    InvalidInput,
    LeaseLost,
    StudyUnreadable,
    WorkerLost,
)
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.driver import drive
from hpsearch.raytune.holding import Holding
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import Stop
from hpsearch.results import Failure
from hpsearch.runner.fair import Fair
from hpsearch.runner.heartbeat import Heartbeat
from hpsearch.runner.turns import Turn
from hpsearch.search import Confirmation, Lineage, Search, history
from hpsearch.search.told import untold
from hpsearch.settings import Settings
from hpsearch.spec.defaults import default_params
from hpsearch.spec.study import StudySpec
from hpsearch.storage import DATABASE_AWAY, MOST_TAKEOVERS, Lease, Studies, StudyRow, fenced

log = logging.getLogger(__name__)


HUB_SECONDS = 15 * 60.0
"""While the model hub can't be asked, a study waits so long before it pauses."""

HUB_RETRY_SECONDS = 15.0
POLL_SECONDS = 0.2


Left = tuple[StudyState, str, int | None]
"""The state in which a study is left, why, and the version of the orders that this was decided on."""

DEADLY = (
    "the process that drove it ended {} times in a row before any of its trials got on: look in the runner's log for a "
    "crash, and in the kernel's for want of memory; then resume the study"
)


class Driving:
    """What driving a study needs besides the study; one for all studies of a runner.

    Args:
        settings: The operator's.
        studies: The table of studies.
        storage: Where Optuna keeps the trials.
        fair: The studies' shares.
        is_stopping: Whether the runner lays its studies down.
        lost_node: Told when Ray's node on this machine died.
        hangs: Told the name of a study when the thread that drives it hangs.
    """

    def __init__(
        self,
        settings: Settings,
        studies: Studies,
        storage: Any,
        fair: Fair,
        *,
        is_stopping: Callable[[], bool],
        lost_node: Callable[[], None],
        hangs: Callable[[str], None],
    ) -> None:
        self._settings, self._studies, self._storage, self._fair = settings, studies, storage, fair
        self._is_stopping, self._lost_node, self._hangs = is_stopping, lost_node, hangs

    def drive(self, study: StudyRow, lease: Lease, turn: Turn) -> None:
        """Drive a claimed study to its end, and write how it ended. Nothing that goes wrong gets out of here."""
        if study.takeovers >= MOST_TAKEOVERS:
            log.error("study paused: its runners die", extra={"study": study.name, "takeovers": study.takeovers})
            self._lay_down(lease, StudyState.PAUSED, DEADLY.format(study.takeovers))
            return
        if study.requested == StudyState.CANCELLED and not study.takeovers:  # before it was claimed: `Endings.cancel`
            self._end(lease, StudyState.QUEUED, "cancelled")
            return
        try:
            with Heartbeat(self._studies, lease, self._settings.lease_seconds, self._fair, self._hangs) as heartbeat:
                with fenced(lambda connection: self._studies.check_within(connection, lease)):
                    state, reason, version = self._search(study, lease, heartbeat, turn)
                state = self._leave(lease, state, reason, version, behind=turn.gives_way)
            log.info("study ended", extra={"study": study.name, "state": state, "reason": reason})
        except LeaseLost:
            log.warning("lease lost", extra={"study": study.name})
        except DATABASE_AWAY:  # nothing can be written: the lease runs out, and whoever is there then takes over
            log.warning("study given up: the database is away", exc_info=True, extra={"study": study.name})
        except StudyUnreadable as error:  # a version that can read it goes on with its trials once it is resumed
            log.warning("study failed", exc_info=True, extra={"study": study.name})
            self._lay_down(lease, StudyState.FAILED, str(error))
        except HubUnavailable as error:
            log.warning("study paused", exc_info=True, extra={"study": study.name})
            text = f"{error.code}: {error}; resume the study once the hub answers"
            self._lay_down(lease, StudyState.PAUSED, text)
        except InvalidInput as error:  # it was fine when it was queued: somebody has changed or moved it since
            log.warning("study failed", exc_info=True, extra={"study": study.name})
            self._end(lease, StudyState.FAILED, str(error))
        except Exception as error:  # a study that can't be driven fails with its reason, and the others go on
            log.exception("study failed", extra={"study": study.name})
            text = str(error) if isinstance(error, HpsearchError) else f"{type(error).__name__}: {error}"
            self._end(lease, StudyState.FAILED, text)

    def _leave(
        self, lease: Lease, state: StudyState, reason: str, version: int | None = None, *, behind: bool = False
    ) -> StudyState:
        """Write how the study ended; somebody may have cancelled it as it was laid down. See `Studies.end`."""
        left = self._studies.end(lease, state, reason, version, behind=behind)
        if left == StudyState.CANCELLED != state:
            with fenced(lambda connection: self._studies.check_within(connection, lease)):
                history.close_open(self._storage, lease.study, "the study was cancelled")
            for each in untold(history.load(self._storage, lease.study), partial(self._studies.told, lease.study)):
                self._studies.append_event(lease, *each)
            shutil.rmtree(self._settings.confirmation_folder(lease.study), ignore_errors=True)
            self._studies.end(lease, left, "cancelled")
        return left

    def _lay_down(self, lease: Lease, state: StudyState, text: str) -> None:
        """The study can't go on now; what the runner before this one has trained waits for when it can."""
        try:
            with fenced(lambda connection: self._studies.check_within(connection, lease)):
                history.interrupt_running(self._storage, lease.study)
        except (LeaseLost, *DATABASE_AWAY):
            log.warning("trials not laid down", exc_info=True, extra={"study": lease.study})
        self._end(lease, state, text)

    def _end(self, lease: Lease, state: StudyState, text: str) -> None:
        try:
            self._leave(lease, state, text[:2000])
        except (LeaseLost, *DATABASE_AWAY):
            log.warning("end not written", exc_info=True, extra={"study": lease.study})

    def _search(self, study: StudyRow, lease: Lease, heartbeat: Heartbeat, turn: Turn) -> Left:
        """How the study is left, after its search and, if that is wanted, the confirmation of its best trials."""
        spec = study.spec

        def event(kind: str, details: dict[str, Any]) -> None:
            self._studies.append_event(lease, kind, details)

        def should_stop() -> Stop | None:
            return heartbeat.wish() or (Stop.IN_ORDER if self._is_stopping() or turn.gives_way else None)

        told = partial(self._studies.told, lease.study)
        model = _described(spec, should_stop, event)
        if model is None:
            return StudyState.QUEUED, "it was stopped while it waited for the model hub", None
        examples, lineage = _learns_from(spec, model)
        defaults = default_params(spec, examples)
        search = Search(
            spec,
            self._storage,
            examples=examples,
            default_params=defaults,
            lineage=lineage,
            elapsed=lambda: heartbeat.orders.driven_seconds,
            resumed_at=study.resumed_at or 0.0,
            fence=lambda: self._studies.check(lease),
            event=event,
            told=told,
            orders=lambda: heartbeat.orders,
            fulfilled=lambda wish: self._studies.fulfil(lease, wish),
        )
        holding = Holding(heartbeat.share, self._settings.slice_seconds)
        turn.begin(holding, lambda: heartbeat.orders)

        def driven(each: Search, place: Place) -> Left | None:
            def drive_it() -> bool:
                return drive(each, model, examples, place, should_stop, holding=holding)

            return self._driven(each, place, drive_it, heartbeat, turn)

        place = place_of(self._settings, spec.name)
        left = driven(search, place)
        if left is not None:
            return left
        ended_well, reason = search.end()
        place.tidy(search.idle_snapshots(place.parked), search.needed_from())
        if ended_well and search.spec.confirm is not None:
            confirmation = Confirmation(
                search,
                self._storage,
                examples=examples,
                default_params=defaults,
                fence=lambda: self._studies.check(lease),
                event=event,
                told=told,
                orders=lambda: heartbeat.orders,
            )
            beside = replace(place, artifacts=self._settings.confirmation_folder(spec.name))
            left = driven(confirmation, beside)
            if left is None or left[0] == StudyState.CANCELLED:
                shutil.rmtree(beside.artifacts, ignore_errors=True)  # nobody is handed these weights
            if left is not None:
                return left
            confirmation.close(Failure.ERROR, "the confirmation ended while the trial was running")
            confirmation.close_waiting("the confirmation is over")
            search.judged(confirmation.verdict().as_json())
        return (StudyState.FINISHED if ended_well else StudyState.FAILED), reason, search.heeded

    def _driven(
        self, search: Search, place: Place, drive_it: Callable[[], bool], heartbeat: Heartbeat, turn: Turn
    ) -> Left | None:
        """Drive a search; None once its trials have come to their ends, else how the study is left."""
        try:
            stopped = drive_it()
        except (LeaseLost, *DATABASE_AWAY):
            raise
        except WorkerLost as error:
            search.release(str(error))
            self._lost_node()
            return StudyState.QUEUED, f"{error}; the next runner goes on", None
        except DiskFull as error:
            return StudyState.PAUSED, f"{error.code}: {error}", None
        except Exception:
            search.close(Failure.ERROR, "the study's driver failed")
            raise
        if heartbeat.orders.requested == StudyState.CANCELLED:
            search.close(Failure.CANCELLED, "the study was cancelled")
            search.close_waiting("the study was cancelled")
            place.tidy(search.idle_snapshots(parked=0), search.needed_from())
            return StudyState.CANCELLED, "cancelled", None
        if stopped:
            reason = "its runner was stopped; the next one goes on"
            if turn.gives_way:
                reason = "another study that waited has its place; it goes on at its next turn"
            return StudyState.QUEUED, reason, None
        return None


def place_of(settings: Settings, study: str) -> Place:
    """Where a study's trials leave their files, as the operator wants it."""
    return Place(
        artifacts=settings.artifacts_folder / study,
        cache=settings.token_cache_folder,
        silent_seconds=settings.device_silent_seconds,
        least_free_bytes=settings.least_free_bytes,
        most_bytes=settings.study_bytes,
        parked=settings.parked_trials,
        stalled_seconds=settings.device_stalled_seconds,
    )


def _described(
    spec: StudySpec, should_stop: Callable[[], object], event: Callable[[str, dict[str, Any]], None]
) -> BaseModel | None:
    """Facts about the base model; None when told to stop before the hub could be asked.

    Raises:
        InvalidInput: It can't be used.
        HubUnavailable: The hub could not be asked for too long.
    """
    deadline, is_told = time.monotonic() + HUB_SECONDS, False
    while True:
        try:
            return describe(spec.model.base, spec.model.revision)
        except HubUnavailable as error:
            if time.monotonic() > deadline:
                raise
            if not is_told:
                event("study.waits_for_hub", {"text": str(error)})
                is_told = True
        again = time.monotonic() + HUB_RETRY_SECONDS
        while time.monotonic() < again:
            if should_stop():
                return None
            time.sleep(POLL_SECONDS)


def _learns_from(spec: StudySpec, model: BaseModel) -> tuple[int, Lineage]:
    """How many examples it trains on, and which. They are not kept: the devices read them for themselves."""
    split = load(spec.data.unsealed(None))
    prints = fingerprint(split.train), fingerprint(split.validation)
    return len(split.train), Lineage(model.model_type, spec.model.method, *prints)
