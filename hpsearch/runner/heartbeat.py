"""A claimed study's heartbeat: it keeps the lease, says what the study holds, and hears what people want."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hpsearch.errors import LeaseLost
from hpsearch.lifecycle import StudyState
from hpsearch.raytune.stopping import Stop
from hpsearch.runner.fair import Fair
from hpsearch.shares import Need, Share
from hpsearch.storage import Lease, Standing, Studies

log = logging.getLogger(__name__)

RENEW_SECONDS = 1.0
"""Also how soon it is heard what people want."""

GATHER_SECONDS = 0.1
"""What changes within so short a time is said at once."""

HUNG_SECONDS = 600.0
"""Whoever drives a study looks every second or so at what people want, once its data are read."""

TOLD_SECONDS = 2.0
"""Between two events of a study's share: where it goes to and fro, the last one is told."""


class Heartbeat:
    """Renews a lease in a thread of its own, and tells the study's share as it changes.

    A thread that hangs must not keep its study for ever: when nobody has looked at `wish` for `HUNG_SECONDS`, the lease
    is left to run out. A process that was stopped for as long has not hung: only time in which beats come counts.

    Args:
        studies: The table of studies.
        lease: On the study.
        seconds: The lease is extended by so much at each beat.
        fair: The studies' shares.
        hangs: Told the study's name when whoever drives it hangs.
    """

    def __init__(
        self, studies: Studies, lease: Lease, seconds: float, fair: Fair, hangs: Callable[[str], None]
    ) -> None:
        self.orders = studies.renew(lease, seconds)
        """What people want, as of the last beat."""
        self.lost = threading.Event()
        self._studies, self._lease, self._seconds, self._fair, self._hangs = studies, lease, seconds, fair, hangs
        self._looks = 0
        self._need: Need | None = None
        self._told: int | None = None
        self._told_at = -TOLD_SECONDS
        self._soon, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {lease.study}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._soon.set()
        self._thread.join()

    def wish(self) -> Stop | None:
        """Whether the study must stop, and how. Whoever drives it asks all the time, and so shows that it lives."""
        self._looks += 1
        if self.lost.is_set() or self.orders.requested == StudyState.CANCELLED:
            return Stop.NOW
        return Stop.IN_ORDER if self.orders.requested else None

    def share(self, need: Need) -> Share:
        """Say what the study has use for; the answer is what it may hold, as far as is known."""
        if need != self._need:
            self._need = need
            self._soon.set()
        return self._fair.of(self._lease.study)

    def _beat(self) -> None:
        seen, unseen, beaten_at = 0, 0.0, time.monotonic()
        while not self._ended.is_set():
            if self._soon.wait(RENEW_SECONDS):
                self._ended.wait(GATHER_SECONDS)
                self._soon.clear()
            now = time.monotonic()
            unseen = unseen + min(now - beaten_at, 2 * RENEW_SECONDS) if 0 < seen == self._looks else 0.0
            seen, beaten_at = self._looks, now
            if unseen > HUNG_SECONDS:
                fields = {"study": self._lease.study, "seconds": HUNG_SECONDS}
                log.error("lease given up: the thread that drives the study hangs", extra=fields)
                self.lost.set()  # should it move again after all, it stops
                self._hangs(self._lease.study)
                return
            try:
                self._renew()
            except LeaseLost:
                self.lost.set()
                return
            except Exception:  # a database that is away for a moment; if it stays away, the lease runs out by itself
                log.warning("lease not renewed", exc_info=True, extra={"study": self._lease.study})

    def _renew(self) -> None:
        need, share = self._need, self._fair.of(self._lease.study)
        standing = None if need is None else Standing(self._fair.cluster, need, share.trials)
        self.orders = self._studies.renew(self._lease, self._seconds, standing)
        if need is not None:
            if need != share.need:
                self._fair.look()
            self._tell(need, share)

    def _tell(self, need: Need, share: Share) -> None:
        """An event where the study gets less than it has use for, and when that changes."""
        if share.need != need or share.devices == 0:  # not reckoned yet, or with nobody to train
            return
        limit = share.trials if share.trials < need.wanted else None
        now = time.monotonic()
        if limit != self._told and now - self._told_at >= TOLD_SECONDS:
            self._told, self._told_at = limit, now
            self._studies.append_event(self._lease, "study.share", {"trials": share.trials, "text": share.text})
