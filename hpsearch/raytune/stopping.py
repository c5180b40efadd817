"""How driving a study ends before its search does: because somebody wants that, or because something went wrong."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable

from hpsearch.errors import DiskFull
from hpsearch.raytune.devices import LOOK_SECONDS, end_devices_that_go, own_node_died
from hpsearch.raytune.holding import ASKED_AGAIN_SECONDS

HANDOVER_SECONDS = 12
"""Trials that are to stop in order get so long to come to the end of a step and to be kept."""


class Stop(enum.Enum):
    """How driving a study ends before its search does."""

    IN_ORDER = "in_order"
    """Each trial stops between two steps, and goes on from there when the study is driven again."""
    NOW = "now"
    """Trials are dropped where they are."""


ShouldStop = Callable[[], Stop | None]


class Stopping:
    """Whether a study's trials must end, and since when they were told to.

    Args:
        should_stop: Looked at all the time.
    """

    def __init__(self, should_stop: ShouldStop) -> None:
        self._should_stop = should_stop
        self._since: float | None = None
        self._told_at = 0.0
        self._looked_at = time.monotonic()
        self.error: Exception | None = None
        """The first thing that went wrong while Tune called: kept, because Tune would pass it on as text only."""

    @property
    def is_wanted(self) -> bool:
        """Whether its trials were told to stop in order."""
        return self._since is not None

    def went_wrong(self, error: Exception) -> None:
        """Driving ends, and whoever drives decides what to make of it."""
        self.error = self.error or error

    def is_due(self) -> bool:
        """Whether every trial must end now, in order or not."""
        now = time.monotonic()
        if self.error is None and now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            self.error = own_node_died()
            end_devices_that_go()
        wish = self._should_stop()
        if wish is Stop.NOW or not (self.error is None or isinstance(self.error, DiskFull)):
            return True
        if wish is None and self.error is None and not self.is_wanted:
            return False
        self._since = self._since or now
        return now - self._since > HANDOVER_SECONDS

    def is_to_be_told(self) -> bool:
        """Whether the devices are to be asked now to let go of the trials, which stop in order.

        Again and again, as long as the trials run: one may be on its way to a device.
        """
        if not self.is_wanted or time.monotonic() - self._told_at <= ASKED_AGAIN_SECONDS:
            return False
        self._told_at = time.monotonic()
        return True
