"""Between Tune and Search: which Tune trial is which of the study's, what each is given, and if there is a next one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from hpsearch.errors import DiskFull
from hpsearch.raytune.devices import release
from hpsearch.raytune.health import Health
from hpsearch.raytune.holding import ASKED_AGAIN_SECONDS, Holding
from hpsearch.raytune.messages import Barred, InLine, Released, decode
from hpsearch.raytune.outcome import Outcome
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import Placement, Room
from hpsearch.raytune.stopping import Stopping
from hpsearch.search import Asked, Loss, Search
from hpsearch.spec.finetune import FinetuneConfig

ROOM_SECONDS = 1.0
"""How long it is taken for granted that the search has use for so many trials, while none comes or goes."""

CLUSTER_SECONDS = 2.0
"""Within this, a machine that joins is used, and none that has gone is counted on."""

DESERTED_SECONDS = 30.0
"""Devices that are set aside are tried again when for so long nothing was trained on any other."""

Resolve = Callable[[Asked], FinetuneConfig]


class Bridge:
    """What searcher, scheduler and stopper share.

    Args:
        search: The study's.
        resolve: Makes a trial's params a config.
        place: Where its files are.
        stopping: Whether its trials must end.
        placement: How many of them share the cluster.
        holding: What it may hold of the devices.
    """

    def __init__(
        self,
        search: Search,
        resolve: Resolve,
        place: Place,
        stopping: Stopping,
        *,
        placement: Placement,
        holding: Holding,
    ) -> None:
        self.search, self.stopping = search, stopping
        self._resolve, self._place, self._placement, self._holding = resolve, place, placement, holding
        self._health = Health()
        self._outcome = Outcome(search, place, self._health, holding, is_dropping=self.stops)
        self._known_room = (0, 0.0, -1)
        self._known_cluster = Room(0, 0), -math.inf
        self.rests = False
        """Whether the last thing Tune was told is that the study must wait for its turn."""
        self._numbers: dict[str, int] = {}
        self._barred: set[str] = set()
        self._ran_at = time.monotonic()
        self._asked_at = -ASKED_AGAIN_SECONDS
        self._is_over = False

    def __reduce__(self) -> Any:
        # Tune pickles its parts into its experiment folder. Ours hold a database URL, and are never restored.
        return (object, ())

    def stops(self) -> bool:
        """Whether every trial must end now. While none must, some may have to give their places to other studies."""
        is_due = self.stopping.is_due()
        if self.stopping.is_to_be_told():
            release(self.search.spec.name, self._health.actors_of(self._running()))
        if not is_due and not self.stopping.is_wanted:
            self._let_go_of(self._holding.give(self._running()))
            self._let_go_of_beginners()
        return is_due

    def _let_go_of(self, numbers: Iterable[int]) -> None:
        """Have their devices let go of trials between two steps."""
        for number in numbers:
            release(f"{self.search.spec.name}/{number}", self._health.actors_of([number]))

    def _let_go_of_beginners(self) -> None:
        """Out of time, trials end at their next report; those that load, or are at the baseline, are far from it."""
        if not self.search.is_out_of_time() or time.monotonic() - self._asked_at < ASKED_AGAIN_SECONDS:
            return
        self._asked_at = time.monotonic()
        try:
            self._let_go_of(self.search.unreported())
        except Exception as error:  # driving ends, and whoever drives decides
            self.stopping.went_wrong(error)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config for Tune; None to be asked again; FINISHED when nothing is left to do."""
        if self.stops() or self.stopping.is_wanted:
            return str(Searcher.FINISHED)
        running = len(self._running())
        most = self.search.spec.parallelism.max_concurrent_trials  # people may change it meanwhile
        taken = running + (self._placement.per_device - 1) * len(self._outcome.alone)
        try:
            there = self._there()
            room = there.trials - len(self._barred)
            free = min((there.sensible if most == "auto" else most) - running, room - taken)
            if free <= 0:
                self._holding.may_begin(running, running)  # which it may not: what is wanted is said
                return None
            useful = min(free, self._room(running))
            if not self._holding.may_begin(running, running + useful) and (useful or running):
                self.rests = not running
                return None if running else str(Searcher.FINISHED)
            self._make_room()
            self.search.set_aside({device: vars(each) for device, each in self._health.aside().items()})
            asked = self.search.ask(alone=self._has_room_for_one_alone(taken, room), kept=self._place.keeps)
            if asked is None:
                self._is_over = not running
                return None if running else str(Searcher.FINISHED)
            config = asked.config or self._resolve(asked)
            self.search.start(asked.number, config)
        except Exception as error:  # driving ends, and whoever drives decides
            self.stopping.went_wrong(error)
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = asked.number
        self._outcome.begun(asked.number, config, asked.alone_until)
        self._holding.begun(asked.number)
        return self._given(asked, config)

    def _given(self, asked: Asked, config: FinetuneConfig) -> dict[str, Any]:
        """What the trial's actor needs to know."""
        return {
            "study": self.search.spec.name,
            "number": asked.number,
            "config": config.model_dump_json(),
            "metric": self.search.spec.objective.metric,
            "capacity": self._placement.per_device,
            "adapter": str(self._place.artifacts / str(asked.number)),
            "progress": str(self._place.progress(asked.snapshots)),
            "inherits": None if asked.inherits is None else str(self._place.handed_over(*asked.inherits)),
            "hands_over_at": asked.hands_over_at,
            "hands_over_to": str(self._place.hands_over(asked.number)),
            "attempt": asked.attempt,
            "reported": asked.reported,
            "cache": None if self._place.cache is None else str(self._place.cache),
            "silent_seconds": self._place.silent_seconds,
            "stalled_seconds": self._place.stalled_seconds,
            "set_aside": sorted(self._health.aside()),
            "prove": asked.number < self.search.spec.verify,
            "alone_until": asked.alone_until,
        }

    def _has_room_for_one_alone(self, taken: int, room: int) -> bool:
        """A trial that has a device for itself takes all places there.

        The first one gets a device in any case, for which others may be let go of. More at once only have what is free,
        and only while no other study would have to make room.
        """
        if not self._outcome.alone:
            return True
        return taken + self._placement.per_device <= room and not self._holding.is_shared

    def _running(self) -> list[int]:
        return [number for number in self._numbers.values() if self.search.is_running(number)]

    def _there(self) -> Room:
        """What the cluster has room for. Asking it takes a while, so the answer is kept for one."""
        known, at = self._known_cluster
        if time.monotonic() - at > CLUSTER_SECONDS:
            known = self._placement.room()
            self._known_cluster = known, time.monotonic()
        return known

    def _room(self, running: int) -> int:
        """How many trials more the study has use for. Asking the search reads all trials, so the answer is kept."""
        known, at, its_running = self._known_room
        if running != its_running or time.monotonic() - at > ROOM_SECONDS:
            known = self.search.room()
            self._known_room = known, time.monotonic(), running
        return known

    def _make_room(self) -> None:
        """Raise DiskFull where there is none for another trial, even without the snapshots of pruned ones."""
        try:
            self._place.check_room()
        except DiskFull:
            self._place.tidy(self.search.idle_snapshots(parked=0))
            self._place.check_room()

    def receive(self, trial_id: str, text: str) -> bool:
        """A trial's message; the answer is whether the trial goes on."""
        message = decode(text)
        try:
            if isinstance(message, Barred):
                return self._stays_barred(trial_id, message)
            if isinstance(message, InLine):
                return self._stays_in_line(self._numbers[trial_id])
            return self._outcome.hear(self._numbers[trial_id], message)
        except Exception as error:  # driving ends, and whoever drives decides
            self.stopping.went_wrong(error)
        return False

    def _stays_barred(self, trial_id: str, message: Barred) -> bool:
        """Whether a share of devices that are set aside is held on; its trial goes elsewhere at once.

        Of a node that is about to go, too: Tune would give the actor that was placed there to the next trial.
        """
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self._barred.add(trial_id)
            why = "its node is about to go" if message.leaves else "its device is set aside"
            self.search.interrupt(number, f"{why}: {', '.join(message.devices)}", Loss.NONE)
        now = time.monotonic()
        if self._running():
            self._ran_at = now
        elif now - self._ran_at > DESERTED_SECONDS:
            self._health.forgive()
        is_needed = not (self._is_over or self.rests or self.stopping.is_wanted)
        stays = is_needed and (message.leaves or self._health.aside().keys() >= set(message.devices))
        if not stays:
            self._barred.discard(trial_id)
        return stays

    def _stays_in_line(self, number: int) -> bool:
        """Whether a trial waits on for its device; no device would tell it that it is to stop, or to make room."""
        is_too_late = self.search.is_out_of_time() and not self.search.finishes(number)
        if self.stopping.is_wanted or self._holding.is_giving(number) or is_too_late:
            return self._outcome.hear(number, Released("it waited for its device"))
        return True

    def ended(self, trial_id: str, lost: bool) -> None:
        """Tune has stopped a trial; `lost` when its process died."""
        number = self._numbers.pop(trial_id, None)
        self._barred.discard(trial_id)
        if number is None or not self.search.is_running(number) or self.stopping.error:
            return
        try:
            self._outcome.stopped(number, lost)
        except Exception as error:  # driving ends, and whoever drives decides
            self.stopping.went_wrong(error)
