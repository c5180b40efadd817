"""The seam between Tune and Search: a searcher whose `suggest` is `ask`, a scheduler whose result is `report`.

Stock `OptunaSearch` with a Tune scheduler stores early-stopped trials as COMPLETE with a half-trained
value, leaves a trial with a NaN running for ever and loses each trial's last report. Here every message of
a trial, its last one too, is an ordinary result that the scheduler hands to Search.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from typing import Any

from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from hpsearch.errors import DiskFull
from hpsearch.raytune.devices import LOOK_SECONDS, finish_everywhere, node_lives, own_node_died, release_everywhere
from hpsearch.raytune.health import Health
from hpsearch.raytune.holding import ASKED_AGAIN_SECONDS, Holding
from hpsearch.raytune.messages import (
    KEY,
    Barred,
    Failed,
    Finished,
    Lost,
    Message,
    Placed,
    Released,
    Replayed,
    Reported,
    decode,
)
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import Placement
from hpsearch.results import Failure
from hpsearch.search import Asked, Decision, Loss, Search
from hpsearch.spec.finetune import FinetuneConfig

log = logging.getLogger(__name__)

HANDOVER_SECONDS = 12
"""Trials that are to stop in order get so long to come to the end of a step and to be kept."""

ROOM_SECONDS = 1.0
"""How long it is taken for granted that the search has use for so many trials, while none comes or goes."""

DESERTED_SECONDS = 30.0
"""Devices that are set aside are tried again when for so long nothing was trained on any other."""

Resolve = Callable[[Asked], FinetuneConfig]


class Stop(enum.Enum):
    """How driving a study ends before its search does."""

    IN_ORDER = "in_order"
    """Each trial stops between two steps, and goes on from there when the study is driven again."""
    NOW = "now"
    """Trials are dropped where they are."""


ShouldStop = Callable[[], Stop | None]


class Bridge:
    """What searcher, scheduler and stopper share: the Search, and which Tune trial is which of its trials."""

    def __init__(
        self,
        search: Search,
        resolve: Resolve,
        place: Place,
        should_stop: ShouldStop,
        *,
        placement: Placement,
        holding: Holding,
    ) -> None:
        self.search = search
        self._resolve = resolve
        self._place = place
        self._should_stop, self._placement = should_stop, placement
        self._holding = holding
        self._known_room = (0, 0.0, -1)
        self.rests = False
        """Whether the last thing Tune was told is that the study must wait for its turn."""
        self._stopping_since: float | None = None
        self._told_at = 0.0
        self._looked_at = time.monotonic()
        self._numbers: dict[str, int] = {}
        self._configs: dict[int, str] = {}
        self._health = Health()
        self._barred: set[str] = set()
        self._ran_at = time.monotonic()
        self._pruned: set[int] = set()
        self._is_over = False
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
            self.error = own_node_died()
        wish = self._should_stop()
        if wish is Stop.NOW or not (self.error is None or isinstance(self.error, DiskFull)):
            return True
        if wish is None and self.error is None and not self.is_stopping:
            self._holding.give(self._running())
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
        running = len(self._running())
        most = self.search.spec.parallelism.max_concurrent_trials  # people may change it meanwhile
        allowed = self._placement.sensible if most == "auto" else most
        free = min(allowed, self._placement.room - len(self._barred)) - running
        try:
            if free <= 0:
                self._holding.may_begin(running, running)  # which it may not: what is wanted is said
                return None
            room = min(free, self._room(running))
            if not self._holding.may_begin(running, running + room) and (room or running):
                self.rests = not running
                return None if running else str(Searcher.FINISHED)
            self._make_room()
            self.search.set_aside({device: vars(each) for device, each in self._health.aside().items()})
            asked = self.search.ask()
            if asked is None:
                self._is_over = not running
                return None if running else str(Searcher.FINISHED)
            config = asked.config or self._resolve(asked)
            self.search.start(asked.number, config)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = asked.number
        self._configs[asked.number] = config.hyperparameters.model_dump_json()
        self._holding.begun(asked.number)
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
            "stalled_seconds": self._place.stalled_seconds,
            "set_aside": sorted(self._health.aside()),
            "prove": asked.number < self.search.spec.verify,
        }

    def _running(self) -> list[int]:
        return [number for number in self._numbers.values() if self.search.is_running(number)]

    def _room(self, running: int) -> int:
        """How many trials more the study has use for. Asking the search reads all trials, so the answer is kept."""
        known, at, its_running = self._known_room
        if running != its_running or time.monotonic() - at > ROOM_SECONDS:
            known = self.search.room()
            self._known_room = known, time.monotonic(), running
        return known

    def receive(self, trial_id: str, text: str) -> bool:
        """Hand a trial's message to Search; the answer is whether the trial goes on."""
        message = decode(text)
        try:
            if isinstance(message, Barred):
                return self._stays_barred(trial_id, message)
            number = self._numbers[trial_id]
            if self._goes_on(number, message):
                return True
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

    def _stays_barred(self, trial_id: str, message: Barred) -> bool:
        """Whether a share of devices that are set aside is held on; its trial goes elsewhere at once."""
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self._barred.add(trial_id)
            self.search.interrupt(number, f"its device is set aside: {', '.join(message.devices)}", Loss.NONE)
        now = time.monotonic()
        if self._running():
            self._ran_at = now
        elif now - self._ran_at > DESERTED_SECONDS:
            self._health.forgive()
        is_needed = not (self._is_over or self.rests or self.is_stopping)
        stays = is_needed and self._health.aside().keys() >= set(message.devices)
        if not stays:
            self._barred.discard(trial_id)
        return stays

    def _goes_on(self, number: int, message: Message) -> bool:
        if isinstance(message, Reported):
            return self._reported(number, message)
        if isinstance(message, Placed):
            self._health.placed(number, message)
            self.search.trained_on(number, message.device)
            return True
        if isinstance(message, Replayed):
            self.search.replayed(number, message.steps, message.company, message.deviation)
            return True
        self._left(number, message)
        return False

    def _reported(self, number: int, message: Reported) -> bool:
        self._holding.trains(number)
        self._health.reported(number, message.report.exposure)
        decision = self.search.report(number, message.report, message.contract, message.warnings)
        if decision is Decision.FINISH:  # what the device says then is its last message
            finish_everywhere(f"{self.search.spec.name}/{number}")
        elif decision is Decision.REUSE:
            self.search.reuse(number, self._place.artifacts / str(number))
        elif decision is Decision.PRUNE:
            self._pruned.add(number)
        return decision in (Decision.GO_ON, Decision.FINISH)

    def _left(self, number: int, message: Message) -> None:
        """The device trains it no more."""
        if isinstance(message, Failed | Lost):
            self._health.failed(number, self._configs[number], message)
        self._health.left(number)
        if isinstance(message, Finished):
            self.search.complete(number, message.best, message.contract, message.adapter)
        elif isinstance(message, Released):
            gives = self._holding.is_giving(number)
            self.search.interrupt(number, "another study has its place" if gives else message.text, Loss.NONE)
        elif isinstance(message, Failed):
            self._failed(number, message)
        elif isinstance(message, Lost):
            self.search.interrupt(number, message.text)
        elif not self.stops():
            self.search.interrupt(number, "the device dropped the trial", Loss.OUTSIDE)

    def _forget(self, number: int) -> None:
        """When a trial has ended, its snapshots are of no use, or those of another pruned one."""
        if self.search.has_ended(number):
            self._place.tidy(self.search.idle_snapshots(self._place.parked))

    def _failed(self, number: int, message: Failed) -> None:
        if message.failure is Failure.DISK_FULL:  # nobody's fault: the study pauses, and the trial goes on then
            self.search.interrupt(number, message.text, Loss.NONE)
            self._place.tidy(self.search.idle_snapshots(parked=0))  # those of pruned trials may be what is in the way
            raise DiskFull(message.text)
        self.search.fail(number, message.failure, message.text)

    def _how_lost(self, number: int) -> tuple[str, Loss]:
        node = self._health.node_of(number)
        if node is not None and not node_lives(node):
            return "the node of the trial died", Loss.OUTSIDE
        return "the process of the trial died", Loss.WORKER

    def ended(self, trial_id: str, lost: bool) -> None:
        """Tune has stopped a trial; `lost` when its process died."""
        number = self._numbers.pop(trial_id, None)
        self._barred.discard(trial_id)
        if number is None or not self.search.is_running(number) or self.error:
            return
        try:
            if number in self._pruned:
                self.search.prune(number)
            elif lost:
                self.search.interrupt(number, *self._how_lost(number))
            self._health.left(number)
            self._forget(number)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error


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

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune's own choice. The actor of a trial that has ended goes when no other trial takes it over at once.

        It holds a share of a device, which is another study's then. Tune would keep one for later.
        """
        controller = tune_controller._tune_controller  # there is no public way
        if not any(trial.status == Trial.PENDING for trial in controller.get_live_trials()):
            controller._cleanup_cached_actors(force_all=True)
        return super().choose_trial_to_run(tune_controller)

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
