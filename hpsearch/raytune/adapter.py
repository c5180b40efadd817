"""The seam between Tune and Search: a searcher whose `suggest` is `ask`, a scheduler whose result is `report`.

Stock `OptunaSearch` with a Tune scheduler stores early-stopped trials as COMPLETE with a half-trained
value, leaves a trial with a NaN running for ever and loses each trial's last report. Here every message of
a trial, its last one too, is an ordinary result that the scheduler hands to Search.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from hpsearch.errors import DiskFull, WorkerLost
from hpsearch.raytune.devices import finish_everywhere, release_everywhere
from hpsearch.raytune.messages import KEY, Failed, Finished, Lost, Released, Replayed, Reported, decode
from hpsearch.raytune.placement import Placement
from hpsearch.results import Failure
from hpsearch.search import Asked, Decision, Search
from hpsearch.spec.finetune import FinetuneConfig

log = logging.getLogger(__name__)

HANDOVER_SECONDS = 12
"""Trials that are to stop in order get so long to come to the end of a step and to be kept."""

ASKED_AGAIN_SECONDS = 1.0

LOOK_SECONDS = 5.0
"""Between two looks at the node on which the driver runs: Tune would wait for ever for one that died."""

Resolve = Callable[[Asked], FinetuneConfig]


class Stop(enum.Enum):
    """How driving a study ends before its search does."""

    IN_ORDER = "in_order"
    """Each trial stops between two steps, and goes on from there when the study is driven again."""
    NOW = "now"
    """Trials are dropped where they are."""


ShouldStop = Callable[[], Stop | None]


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
    parked: int = 8
    """The snapshots of so many pruned trials, the best ones, are kept: a person may have them continued."""

    def progress(self, number: int) -> Path:
        """Folder of a trial's snapshots."""
        return self.artifacts / "progress" / str(number)

    def tidy(self, idle: Collection[int]) -> None:
        """Forget the snapshots under these numbers, from which nobody goes on."""
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


class Bridge:
    """What searcher, scheduler and stopper share: the Search, and which Tune trial is which of its trials."""

    def __init__(
        self,
        search: Search,
        resolve: Resolve,
        place: Place,
        should_stop: ShouldStop,
        placement: Placement,
    ) -> None:
        self.search = search
        self._resolve = resolve
        self._place = place
        self._should_stop, self._placement = should_stop, placement
        self._stopping_since: float | None = None
        self._told_at = 0.0
        self._looked_at = time.monotonic()
        self._numbers: dict[str, int] = {}
        self._pruned: set[int] = set()
        self.error: Exception | None = None
        """The first thing that went wrong while Tune called: kept, because Tune would pass it on as text only."""

    def __reduce__(self) -> Any:
        # Tune pickles its parts into its experiment folder. Ours hold a database URL, and are never restored.
        return (object, ())

    def stops(self) -> bool:
        """Whether every trial must end now. Those that are to stop in order are told here."""
        now = time.monotonic()
        if self.error is None and now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            if not _own_node_lives():
                self.error = WorkerLost("the runner's own Ray node died")
        wish = self._should_stop()
        if wish is Stop.NOW or not (self.error is None or isinstance(self.error, DiskFull)):
            return True
        if wish is None and self.error is None and not self.is_stopping:
            return False
        self._stopping_since = self._stopping_since or now
        if now - self._told_at > ASKED_AGAIN_SECONDS:  # again and again: a trial may be on its way to a device
            self._told_at = now
            release_everywhere(self.search.spec.name)
        return now - self._stopping_since > HANDOVER_SECONDS

    @property
    def is_stopping(self) -> bool:
        """Whether its trials were told to stop in order."""
        return self._stopping_since is not None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config for Tune; None to be asked again; FINISHED when nothing is left to do."""
        if self.stops() or self.is_stopping:
            return str(Searcher.FINISHED)
        running = sum(map(self.search.is_running, self._numbers.values()))
        wanted = self.search.spec.parallelism.max_concurrent_trials  # people may change it meanwhile
        if running >= (self._placement.sensible if wanted == "auto" else wanted):
            return None
        try:
            self._make_room()
            asked = self.search.ask()
            if asked is None:
                return None if running else str(Searcher.FINISHED)
            config = asked.config or self._resolve(asked)
            self.search.start(asked.number, config)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = asked.number
        return {
            "study": self.search.spec.name,
            "number": asked.number,
            "config": config.model_dump_json(),
            "metric": self.search.spec.objective.metric,
            "capacity": self._placement.per_device,
            "adapter": str(self._place.artifacts / str(asked.number)),
            "progress": str(self._place.progress(asked.snapshots)),
            "attempt": asked.attempt,
            "reported": asked.reported,
            "cache": None if self._place.cache is None else str(self._place.cache),
            "silent_seconds": self._place.silent_seconds,
            "prove": asked.number < self.search.spec.verify,
        }

    def receive(self, trial_id: str, text: str) -> bool:
        """Hand a trial's message to Search; the answer is whether the trial goes on."""
        number = self._numbers[trial_id]
        message = decode(text)
        try:
            if isinstance(message, Reported):
                decision = self.search.report(number, message.report, message.contract, message.warnings)
                if decision is Decision.FINISH:  # what the device says then is its last message
                    finish_everywhere(f"{self.search.spec.name}/{number}")
                    return True
                if decision is Decision.GO_ON:
                    return True
                if decision is Decision.REUSE:
                    self.search.reuse(number, self._place.artifacts / str(number))
                elif decision is Decision.PRUNE:
                    self._pruned.add(number)
            elif isinstance(message, Replayed):
                self.search.replayed(number, message.steps, message.company, message.deviation)
                return True
            elif isinstance(message, Finished):
                self.search.complete(number, message.best, message.contract, message.adapter)
            elif isinstance(message, Released):
                self.search.interrupt(number, message.text, in_order=True)
            elif isinstance(message, Failed):
                self._failed(number, message)
            elif isinstance(message, Lost):
                self.search.interrupt(number, message.text)
            elif not self.stops():
                self.search.interrupt(number, "the device dropped the trial")
            self._forget(number)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error
        return False

    def _make_room(self) -> None:
        """Raise DiskFull where there is none for another trial, even without the snapshots of pruned ones."""
        try:
            self._place.check_room()
        except DiskFull:
            self._place.tidy(self.search.idle_snapshots(parked=0))
            self._place.check_room()

    def _forget(self, number: int) -> None:
        """When a trial has ended, its snapshots are of no use, or those of another pruned one."""
        if self.search.has_ended(number):
            self._place.tidy(self.search.idle_snapshots(self._place.parked))

    def _failed(self, number: int, message: Failed) -> None:
        if message.failure is Failure.DISK_FULL:  # nobody's fault: the study pauses, and the trial goes on then
            self.search.interrupt(number, message.text, in_order=True)
            raise DiskFull(message.text)
        self.search.fail(number, message.failure, message.text)

    def ended(self, trial_id: str, lost: bool) -> None:
        """Tune has stopped a trial; `lost` when its process died."""
        number = self._numbers.pop(trial_id, None)
        if number is None or not self.search.is_running(number) or self.error:
            return
        try:
            if number in self._pruned:
                self.search.prune(number)
            elif lost:
                self.search.interrupt(number, "the process of the trial died")
            self._forget(number)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error


def _own_node_lives() -> bool:
    own = ray.get_runtime_context().get_node_id()
    try:
        return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())
    except Exception:  # without an answer nothing is known; without a head this process ends itself
        log.warning("own node not looked at: the cluster does not answer", exc_info=True)
        return True


class AskSearcher(Searcher):  # type: ignore[misc]
    """Tune asks it for trials."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See Bridge.suggest."""
        return self._bridge.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See Bridge.ended; the result was received when it came."""
        del result
        self._bridge.ended(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in SQL."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all state is in SQL."""


class ReportScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune tells it every result."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, or stop the trial."""
        del tune_controller
        go_on = self._bridge.receive(trial.trial_id, result[KEY])
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)


class StudyStopper(Stopper):  # type: ignore[misc]
    """Ends every trial when the study is cancelled or its lease is lost."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial alone: that is the scheduler's business."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """See Bridge.stops."""
        return self._bridge.stops()
