"""The shares of all studies on this cluster, as of a moment ago."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from hpsearch.shares import NONE, Share, divide
from hpsearch.storage import Database, claims

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Studies that other runners drive are looked at so often."""

REST_SECONDS = 0.2
"""Between two looks, however much changes."""


class Fair:
    """Reckons the shares in a thread of its own, from what all runners say in SQL.

    Args:
        database: Where they say it.
        cluster: The name of the Ray cluster.
        devices: How many it has now.
        slice_seconds: The shortest turn.
        owner_weights: By owner.
    """

    def __init__(
        self,
        database: Database,
        cluster: str,
        devices: Callable[[], int],
        slice_seconds: float,
        owner_weights: Mapping[str, float],
    ) -> None:
        self.cluster = cluster
        self._database, self._devices = database, devices
        self._slice_seconds, self._owner_weights = slice_seconds, owner_weights
        self._shares: Mapping[str, Share] = {}
        self._soon = threading.Event()
        threading.Thread(target=self._reckon, name="shares", daemon=True).start()

    def of(self, study: str) -> Share:
        """A study's share; nothing before it is known."""
        return self._shares.get(study, NONE)

    def look(self) -> None:
        """Something has changed."""
        self._soon.set()

    def _reckon(self) -> None:
        rest = threading.Event()
        while True:
            self._soon.wait(LOOK_SECONDS)
            self._soon.clear()
            try:
                found = claims(self._database, self.cluster)
                devices = self._devices() if found else 0
                self._shares = divide(found, devices, self._slice_seconds, self._owner_weights)
            except Exception:  # the database or the cluster is away for a moment: what was known still holds
                log.warning("shares not reckoned", exc_info=True)
            rest.wait(REST_SECONDS)
