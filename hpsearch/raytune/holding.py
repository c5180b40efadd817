"""What a study holds of the devices: when it may take more, and which of its trials give their places to others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from hpsearch.raytune.devices import LOOK_SECONDS, own_node_died
from hpsearch.shares import Need, Share

ASKED_AGAIN_SECONDS = 1.0
"""Devices are asked so often to let go of something: it may be on its way to one."""

POLL_SECONDS = 0.1

RECKONED_SECONDS = 3.0
"""By then the shares follow what was said."""

LOADING_SLICES = 5
"""A trial that doesn't train yet keeps its place so long: what was loaded in vain is loaded again at the next turn."""

ShareOf = Callable[[Need], Share]
"""Told what a study has use for, it answers what the study may hold."""


def everything(need: Need) -> Share:
    """The share of a study that is alone."""
    return Share(need.wanted, need.wanted, need=need)


class Holding:
    """The places of one study's trials.

    Args:
        share: Its share, whenever it is asked.
        slice_seconds: A trial gives its place up after training so long at the earliest.
    """

    def __init__(self, share: ShareOf = everything, slice_seconds: float = 0.0) -> None:
        self._share, self._slice_seconds = share, slice_seconds
        self.per_device = 1
        self._need = Need(1, 0)
        self._begun: dict[int, float] = {}
        self._trains: dict[int, float] = {}
        self._giving: set[int] = set()
        self._asked_at = 0.0
        self._has_trained = False

    def wait(self, should_stop: Callable[[], object]) -> bool:
        """Wait until the study may hold something, and claim a place; False when told to stop.

        Raises:
            WorkerLost: The Ray node of this process died.
        """
        self._need = Need(max(1, self._need.wanted), 0, self.per_device)
        looked_at = time.monotonic()
        while not self._share(self._need).now:
            if should_stop():
                return False
            if time.monotonic() - looked_at > LOOK_SECONDS:
                looked_at = time.monotonic()
                if (error := own_node_died()) is not None:
                    raise error
            time.sleep(POLL_SECONDS)
        self._tell(self._need.wanted, 1)
        return True

    def room(self, wanted: int) -> int:
        """How many trials may be held now, the claimed place included, once it is reckoned that so many are of use."""
        self._tell(wanted, 1)
        deadline = time.monotonic() + RECKONED_SECONDS
        while (share := self._share(self._need)).need != self._need and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return max(1, share.now)

    @property
    def is_shared(self) -> bool:
        """Whether other studies have use for the devices."""
        return self._share(self._need).studies > 1

    def may_begin(self, running: int, wanted: int) -> bool:
        """Whether one trial more may begin now. If so, its place is claimed.

        Args:
            running: Trials of the study that run.
            wanted: Trials that it has use for, these included.
        """
        begins = running < min(wanted, self._share(self._need).now)
        self._tell(wanted, running + begins)
        return begins

    def _tell(self, wanted: int, held: int) -> None:
        self._need = Need(wanted, held, self.per_device)
        self._share(self._need)

    def begun(self, number: int) -> None:
        """A trial was handed out."""
        self._begun[number] = time.monotonic()
        self._trains.pop(number, None)
        self._giving.discard(number)

    def trains(self, number: int) -> None:
        """A trial has reported: the first time it does, also when it goes on, it has just been loaded."""
        self._has_trained = True
        self._trains.setdefault(number, time.monotonic())

    def has_had(self, seconds: float) -> bool:
        """Whether the study has had its slice: it has trained, and held something for so many seconds altogether.

        Where nothing has trained yet, the slice is longer, as it is for a trial.
        """
        return seconds >= self._slice_seconds * (1 if self._has_trained else LOADING_SLICES)

    def _is_ripe(self, number: int, now: float) -> bool:
        if number in self._trains:
            return now - self._trains[number] >= self._slice_seconds
        return now - self._begun[number] >= LOADING_SLICES * self._slice_seconds

    def is_giving(self, number: int) -> bool:
        """Whether a trial was asked to give its place to another study."""
        return number in self._giving

    def give(self, running: Collection[int]) -> frozenset[int]:
        """The trials that devices are to be asked now to let go of: others are to have their places.

        They are chosen once, those begun last first, and then named again and again until they are gone.
        """
        share, now = self._share(self._need), time.monotonic()
        if share.need == self._need and share.need.held == len(running):  # no trial has come or gone since it was told
            having = [number for number in running if number not in self._giving]
            ripe = [number for number in having if self._is_ripe(number, now)]
            ripe.sort(key=self._begun.__getitem__, reverse=True)
            self._giving.update(ripe[: max(0, share.release - (len(running) - len(having)))])
        giving = self._giving & set(running)
        if not giving or now - self._asked_at <= ASKED_AGAIN_SECONDS:
            return frozenset()
        self._asked_at = now
        return frozenset(giving)
