"""Population based training: when all of a population stand at an exchange, the best take the places of the worst.

What is decided is written to SQL before any of it is done, and doing it again changes nothing: a process that dies
between any two steps is followed by one that finishes them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from hpsearch.crash import crash_point
from hpsearch.results import Failure, Trial, TrialState
from hpsearch.search import history
from hpsearch.search.draw import Points
from hpsearch.search.explore import explored, quantile_size
from hpsearch.search.losses import suspects_first
from hpsearch.search.record import Record
from hpsearch.search.samplers import seed_of
from hpsearch.spec.points import key
from hpsearch.spec.population import changeable
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.space import Params

EXCHANGES = "exchanges"
"""Study attribute: what was decided at each exchange so far; see `Population._decided`."""

ATTEMPTS = 100
"""Changes of params that are tried out until one is new and meets the requirements; the last one is taken then."""


@dataclass(frozen=True)
class Heir:
    """A trial that takes another's place."""

    replaces: int
    parent: int
    """Whose weights it goes on from."""
    params: Params


class Population:
    """The population of one study: a `Strategy`.

    Args:
        record: Of the study's trials.
        study: The same as Optuna keeps it.
        asked: Of the spec.
        points: Where params lie.
        exchanges: The exposures of all exchanges.
    """

    exhausted = "the population came to its end"
    exchanges_weights = True

    def __init__(
        self, record: Record, study: optuna.Study, asked: PopulationSpec, points: Points, exchanges: Sequence[int]
    ) -> None:
        self._record, self._study, self._asked, self._points = record, study, asked, points
        self._exchanges = exchanges
        names = changeable(points.spec.search_space)
        self._spaces = {name: points.distributions[name] for name in names}

    @property
    def next(self) -> int | None:
        """The exposure of the next exchange; None behind the last one."""
        done = len(self._study.user_attrs.get(EXCHANGES, ()))
        return self._exchanges[done] if done < len(self._exchanges) else None

    def missing(self, trials: Sequence[Trial]) -> int:
        """How many of its first members were not lined up yet; one that was never trained leaves its place."""
        founders = [t for t in _members(trials) if t.parent is None and t.failure != Failure.INFEASIBLE]
        return max(0, self._asked.population - len(founders))

    def ready(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that wait and may train now, the one that is furthest behind first."""
        limit, members = self.next, {trial.number for trial in _members(trials)}
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        able = [t for t in waiting if limit is None or t.exposure < limit or t.number not in members]
        return suspects_first(sorted(able, key=lambda trial: (trial.exposure, trial.number)))

    def draws(self, trials: Sequence[Trial]) -> bool:  # noqa: ARG002
        """Never: its members are lined up."""
        return False

    def must_wait(self, trial: Trial) -> bool:
        """Whether a trial that has just reported must wait for the others."""
        return self.next is not None and not trial.is_spared and trial.exposure >= self.next

    def is_over(self, trials: Sequence[Trial]) -> bool:
        """Whether all have ended, and none is missing."""
        return not self.missing(trials) and all(trial.state.is_finished for trial in trials)

    def room(self, trials: Sequence[Trial]) -> int:
        """How many trials could train now, beside those that do."""
        if self._is_due(trials):
            return sum(trial.state == TrialState.WAITING for trial in trials)
        return len(self.ready(trials)) + self.missing(trials)

    def needs_from(self, trials: Sequence[Trial]) -> float | None:
        """The exposure from which on snapshots that were handed over may be gone on from; None when none may be."""
        if all(trial.state.is_finished for trial in trials):
            return None
        done = len(self._study.user_attrs.get(EXCHANGES, ()))
        return self._exchanges[done - 1] if done else 0

    def gather(self, trials: Sequence[Trial]) -> bool:
        """Line up the first members, and exchange where all stand at an exchange; whether anything was done."""
        missing = self.missing(trials)
        for _ in range(missing):
            self._record.enqueue({}, {"origin": "search"})
        is_due = self._is_due(trials)
        if is_due:
            self._decide(trials)
        decided = self._study.user_attrs.get(EXCHANGES, ())
        # What was decided before the last time was done before that was decided.
        return (bool(decided) and self._carry_out(decided[-1], trials)) or is_due or missing > 0

    def _is_due(self, trials: Sequence[Trial]) -> bool:
        at, living = self.next, [trial for trial in _members(trials) if not trial.state.is_finished]
        waits = all(trial.state == TrialState.WAITING and trial.exposure >= (at or 0) for trial in living)
        return at is not None and bool(living) and waits and not self.missing(trials)

    def _decide(self, trials: Sequence[Trial]) -> None:
        at = self.next
        spec = self._record.spec
        sign, metric = (1 if spec.objective.direction == "minimize" else -1), spec.objective.metric
        members = _members(trials)
        replaced = {trial.replaces for trial in trials}
        failed = [t for t in members if _has_failed(t) and t.number not in replaced]
        living = [trial for trial in members if not trial.state.is_finished]
        living.sort(key=lambda trial: (sign * float(getattr(trial.reports[-1], metric)), trial.number))
        size = quantile_size(len(living) + len(failed), self._asked.quantile)
        worst = living[len(living) - max(0, size - len(failed)) :]
        best = living[: min(size, len(living) - len(worst))]
        heirs: list[Heir] = []
        for loser in [*failed, *worst] if best else []:
            heirs.append(self._heir(loser, best, known=[heir.params for heir in heirs]))
        decided = {
            "exposure": at,
            "ranked": [[trial.number, float(getattr(trial.reports[-1], metric))] for trial in living],
            "heirs": [vars(heir) for heir in heirs],
        }
        self._record.decided(EXCHANGES, [*self._study.user_attrs.get(EXCHANGES, ()), decided])
        crash_point("after_exchange")

    def _heir(self, loser: Trial, best: Sequence[Trial], known: Sequence[Params]) -> Heir:
        seed, at = self._points.spec.seed, self.next or 0
        dice = random.Random(f"exchange at {at}: {seed_of(seed, loser.number)}")
        parent = dice.choice(best)
        taken = {key(params) for params in (parent.params, *known)}
        for _ in range(ATTEMPTS):
            params = explored(parent.params, self._spaces, self._asked.resample, dice)
            if key(params) not in taken and self._points.unmet(params) is None:
                break
        else:
            params = parent.params
        return Heir(loser.number, parent.number, params)

    def _carry_out(self, decided: dict[str, Any], trials: Sequence[Trial]) -> bool:
        """Whether anything was left to do."""
        ranked, is_new = [number for number, _ in decided["ranked"]], False
        for heir in (Heir(**fields) for fields in decided["heirs"]):
            if all(trial.replaces != heir.replaces for trial in trials):
                is_new = True
                self._line_up(heir, trials[heir.parent])
                crash_point("after_heir")
            if trials[heir.replaces].state == TrialState.WAITING:
                is_new = True
                rank = f"rank {ranked.index(heir.replaces) + 1} of {len(ranked)} at exposure {decided['exposure']}"
                self._record.replaced(
                    heir.replaces,
                    f"population based training: {rank}; a trial that goes on from trial {heir.parent} takes its place",
                )
        return is_new

    def _line_up(self, heir: Heir, parent: Trial) -> None:
        begins = dataclasses.replace(
            parent,
            parent=heir.parent,
            inherited_at=parent.exposure,
            replaces=heir.replaces,
            carried=len(parent.reports),
        )
        self._record.enqueue(heir.params, {"origin": "pbt", **history.heritage(begins)})


def _members(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that a population is of: not those that a person has had continued, and no lost ones with retries."""
    retried = {trial.retry_of for trial in trials}
    return [trial for trial in trials if not trial.is_spared and trial.number not in retried]


def _has_failed(trial: Trial) -> bool:
    """Whether its place is free: not when a person has ended it."""
    return trial.state == TrialState.FAIL and trial.failure not in (Failure.CANCELLED, Failure.INFEASIBLE)
