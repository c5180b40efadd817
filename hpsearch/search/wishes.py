"""What people ask of a study's trials while it is searched: trials of their own, the end of some, others' going on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.trial import TrialState as OptunaState

from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Failure
from hpsearch.results.attributes import CONTINUES, INHERITED_AT, PARENT, SPARED, WISH
from hpsearch.results.trial import can_go_on
from hpsearch.search.record import Record


class Wishes:
    """Does what is asked, once: a wish is kept until `fulfilled` was told of it, so a crash repeats it.

    Args:
        record: Of the study's trials.
        orders: What people want of the study by now.
        fulfilled: Told of each wish that is done, or can't be done any more.
    """

    def __init__(self, record: Record, orders: Callable[[], Orders | None], fulfilled: Callable[[Wish], None]) -> None:
        self._record, self._orders, self._fulfilled = record, orders, fulfilled
        self.heeded: int | None = None
        """The version of the orders that were heeded last."""
        self._stops: dict[int, Wish] = {}

    def heed(self) -> None:
        """Do what was asked since the last time; the study has another spec when its budget was changed."""
        orders = self._orders()
        if orders is not None and orders.version != self.heeded:
            self._record.spec = orders.spec
            for wish in orders.wishes:
                if wish.kind is WishKind.ADD:
                    self._add(wish)
                elif wish.kind is WishKind.CONTINUE:
                    self._continue(wish)
                elif wish.number is not None:
                    self._stops[wish.number] = wish
            self.heeded = orders.version
        if self._stops:
            self._heed_stops()

    def stops(self, number: int) -> str | None:
        """Who wants the running trial to end at its next report; None when nobody does."""
        wish = self._stops.get(number)
        return None if wish is None else wish.by

    def _heed_stops(self) -> None:
        """A running trial ends at its next report; one that waits is not begun; the rest have ended by themselves."""
        for frozen in self._record.frozen():
            wish = self._stops.get(frozen.number)
            if wish is not None and frozen.state != OptunaState.RUNNING:
                if frozen.state == OptunaState.WAITING and frozen.user_attrs.get("curve"):
                    self._record.stopped(frozen.number, wish.by)
                    self._record.prune(frozen.number)  # it was interrupted: what it has learnt counts
                elif frozen.state == OptunaState.WAITING:
                    self._record.withdraw(frozen, Failure.CANCELLED, f"stopped by {wish.by}", by=wish.by)
                self._fulfilled(wish)
                del self._stops[frozen.number]

    def _add(self, wish: Wish) -> None:
        known = {frozen.user_attrs.get(WISH) for frozen in self._record.frozen()}
        if wish.id not in known:  # a process that died before this line's end has added it
            self._record.enqueue(wish.params or {}, {"origin": "hand", WISH: wish.id})
        self._fulfilled(wish)

    def _continue(self, wish: Wish) -> None:
        """The pruned trial goes on under a new number; nothing happens where it does already, or was not pruned."""
        trials = self._record.trials()
        known = {frozen.user_attrs.get(WISH) for frozen in self._record.frozen()}
        trial = trials[wish.number] if wish.number is not None and wish.number < len(trials) else None
        if trial is not None and can_go_on(trial, trials) and wish.id not in known:
            carried = [report.as_json() for report in trial.reports]
            attributes = {"curve": carried, "carried": len(carried), "attempts": trial.attempts}
            link: dict[str, Any] = {CONTINUES: trial.number, SPARED: True, WISH: wish.id}
            if trial.parent is not None:
                link |= {PARENT: trial.parent, INHERITED_AT: trial.inherited_at}
            self._record.enqueue(trial.params, {"origin": "continued", **link, **attributes})
        self._fulfilled(wish)
