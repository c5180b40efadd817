"""Where a study's trials come from: each is drawn by itself, or they are a population that exchanges weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

from hpsearch.results import Trial, TrialState
from hpsearch.results.budget import left
from hpsearch.search.draw import Points
from hpsearch.search.losses import suspects_first
from hpsearch.search.record import Record
from hpsearch.spec.points import Key, key
from hpsearch.spec.space import Params

MANY = 1 << 20
"""Trials; more than any cluster holds at once."""


class Strategy(Protocol):
    """What a search asks of it. `trials` are always all of the study, by number."""

    exhausted: str
    """Why a search has ended that no limit has ended."""
    exchanges_weights: bool
    """Whether trials go on from others' weights, which must be there then, and wait for each other."""

    @property
    def next(self) -> int | None:
        """The exposure of the next exchange; None when there is none."""

    def gather(self, trials: Sequence[Trial]) -> bool:
        """Line up trials that are due now; whether anything was done."""

    def ready(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that wait and may train now, the next one first."""

    def draws(self, trials: Sequence[Trial]) -> bool:
        """Whether there is room for a trial besides those that wait, whose params are still to be drawn."""

    def is_over(self, trials: Sequence[Trial]) -> bool:
        """Whether nothing is left to do, whatever the budget."""

    def room(self, trials: Sequence[Trial]) -> int:
        """How many trials could train now, beside those that do."""

    def must_wait(self, trial: Trial) -> bool:
        """Whether a trial that has just reported must wait for the others."""

    def needs_from(self, trials: Sequence[Trial]) -> float | None:
        """The exposure from which on snapshots that were handed over may be gone on from; None when none may be."""


class Independent:
    """Each trial is a point by itself, drawn when there is room for it. A `Strategy`, whose docstrings hold here.

    Args:
        record: Of the study's trials.
        points: Where params lie.
    """

    exhausted = "the search space is exhausted: every point was tried"
    exchanges_weights = False
    next: int | None = None

    def __init__(self, record: Record, points: Points) -> None:
        self._record, self._points = record, points

    def gather(self, trials: Sequence[Trial]) -> bool:  # noqa: ARG002
        """Nothing: trials are drawn one by one."""
        return False

    def ready(self, trials: Sequence[Trial]) -> list[Trial]:
        """All that wait."""
        return suspects_first(trial for trial in trials if trial.state == TrialState.WAITING)

    def draws(self, trials: Sequence[Trial]) -> bool:
        """While the budget lasts and points are left."""
        waiting = self.ready(trials)
        return not waiting or self.room(trials) > len(waiting)

    def is_over(self, trials: Sequence[Trial]) -> bool:
        """When all points were tried."""
        return not self.ready(trials) and self._untried(trials) == []

    def room(self, trials: Sequence[Trial]) -> int:
        """As many as points and budget are left."""
        untried = self._untried(trials)
        points = math.inf if untried is None else len(self.ready(trials)) + len(untried)
        return int(min(points, left(self._record.spec.budget, trials, self._record.forgiven), MANY))

    def _untried(self, trials: Sequence[Trial]) -> list[Params] | None:
        return self._points.untried(tried(trials, self._record.forgiven))

    def must_wait(self, trial: Trial) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def needs_from(self, trials: Sequence[Trial]) -> float | None:  # noqa: ARG002
        """No trial goes on from another."""
        return None


def tried(trials: Sequence[Trial], lost: Collection[int]) -> frozenset[Key]:
    """The points that were tried or are lined up. Where nothing varies there is one, which a failure doesn't use up.

    Args:
        trials: All of the study.
        lost: The numbers of those that use up none, for they are `forgiven`.
    """
    counted = [trial for trial in trials if trial.number not in lost]
    return frozenset(key(trial.params) for trial in counted if trial.params or trial.state != TrialState.FAIL)
