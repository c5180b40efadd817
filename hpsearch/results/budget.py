"""Is it over? A pure function of what was asked and what has happened."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from hpsearch.results.trial import Failure, Trial, TrialState
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.objective import Direction

SAME_FAILURES = 5
"""So many trials in a row that failed for the same reason end the study: the next one would fail too."""


FREE = frozenset({Failure.WORKER_LOST, Failure.OUTDATED_CHECKPOINT, Failure.CANCELLED, Failure.INFEASIBLE})
"""Ends that use up nothing of the budget's trials."""


BROKEN = frozenset({Failure.ERROR, Failure.OUT_OF_MEMORY, Failure.WORKER_LOST, Failure.INVALID_DATA})
"""Failures that say that something is broken: a device, the data or the setup. That a trial diverges says that of its
params alone."""


INNOCENT = BROKEN - {Failure.OUT_OF_MEMORY}
"""Failures that say nothing of a trial's params once somebody has mended what was broken."""


def counts(trial: Trial) -> bool:
    """Whether a trial uses up one of the budget's trials: it was trained here, and its worker was not lost."""
    return trial.state != TrialState.WAITING and trial.failure not in FREE and trial.reused_from is None


def limit_reached(
    budget: BudgetSpec,
    trials: Sequence[Trial],
    elapsed: float,
    direction: Direction = "minimize",
    *,
    resumed_at: float = -math.inf,
    lost: Collection[int] = (),
) -> str | None:
    """The limit that leaves no room for another trial, in words; None while there is room.

    Args:
        budget: The limits.
        trials: All trials of the study, running ones too.
        elapsed: Seconds of the wall clock that the study has used.
        direction: Of the objective.
        resumed_at: When a person had an ended search go on; what had ended before leaves no trace in `until`.
        lost: The numbers of trials that use up nothing, for they are `forgiven`.
    """
    if left(budget, trials, lost) == 0:
        return f"all {budget.trials} trials of the budget were used"
    patience = budget.until.no_improvement_in if budget.until else None
    if patience is not None and _since_best(trials, direction, resumed_at) >= patience:
        return f"{patience} trials in a row were no better than the best before them"
    return spent(budget, trials, elapsed)


def left(budget: BudgetSpec, trials: Sequence[Trial], lost: Collection[int] = ()) -> float:
    """How many trials of the budget were not used yet; infinite without such a limit. See `limit_reached`."""
    if budget.trials is None:
        return math.inf
    return max(0, budget.trials - _used([trial for trial in trials if trial.number not in lost], budget.trials))


def _used(trials: Sequence[Trial], most: int) -> int:
    """Trials that count. Taking over what is known is free, but only as often as the budget has trials."""
    reused = sum(trial.reused_from is not None for trial in trials)
    replaced = {trial.replaces for trial in trials}  # with the one in its place it is one training
    return sum(counts(trial) and trial.number not in replaced for trial in trials) + max(0, reused - most)


def forgiven(trials: Sequence[Trial], resumed_at: float, *, most_failures: int | None = None) -> frozenset[int]:
    """The numbers of trials that had ended before a person had the search go on, and say nothing of their params.

    Nobody trained them, because the search was over; or the search failed, and they did of something that is mended by
    now: a machine that was broken for an hour is to cost a study neither its defaults nor its budget.

    Args:
        trials: All of the study.
        resumed_at: When that was.
        most_failures: Of the budget.
    """
    before = [trial for trial in trials if trial.state.is_finished and (trial.finished_at or 0.0) <= resumed_at]
    has_completed = any(trial.state == TrialState.COMPLETE for trial in before)
    has_failed = not has_completed or hopeless(before, most_failures=most_failures) is not None
    return frozenset(
        trial.number
        for trial in before
        if (has_failed and trial.failure in INNOCENT)
        or (trial.failure == Failure.CANCELLED and trial.stopped_by is None)
    )


def _since_best(trials: Sequence[Trial], direction: Direction, since: float) -> int:
    """How many trials have ended since the best one did, and since a time; 0 before any has completed."""
    ended = sorted(
        (trial for trial in trials if trial.state.is_finished),
        key=lambda trial: (trial.finished_at or 0.0, trial.number),
    )
    values = [
        (place, trial.value)
        for place, trial in enumerate(ended)
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    if not values:
        return 0
    sign = 1.0 if direction == "minimize" else -1.0
    best, _ = min(values, key=lambda found: (sign * found[1], found[0]))
    return sum(counts(trial) for trial in ended[best + 1 :] if (trial.finished_at or 0.0) > since)


class Limit(NamedTuple):
    """One of the budget's."""

    name: str
    """The field of the budget."""
    text: str
    """That it was used up."""


def spent(budget: BudgetSpec, trials: Sequence[Trial], elapsed: float) -> str | None:
    """That time or tokens are used up, which stops running trials too; None while none are."""
    limit = limit_spent(budget, trials, elapsed)
    return None if limit is None else limit.text


def limit_spent(budget: BudgetSpec, trials: Sequence[Trial], elapsed: float) -> Limit | None:
    """The limit on time or tokens that is used up; None while none is."""
    if budget.wall_clock is not None and elapsed >= budget.wall_clock:
        return Limit("wall_clock", f"the wall-clock budget of {budget.wall_clock:g} s was used")
    trained = [trial for trial in trials if trial.reused_from is None]
    if budget.gpu_hours is not None and sum(trial.device_seconds for trial in trained) >= budget.gpu_hours * 3600:
        return Limit("gpu_hours", f"the budget of {budget.gpu_hours:g} device hours was used")
    if budget.tokens is not None and sum(trial.tokens for trial in trained) >= budget.tokens:
        return Limit("tokens", f"the budget of {budget.tokens:,} training tokens was used")
    return None


def has_better(trials: Sequence[Trial]) -> bool:
    """Whether a search would leave something without those trials that the end of its budget cuts short."""
    return any(trial.state == TrialState.COMPLETE and not trial.cut_short for trial in trials)


def to_finish(trials: Sequence[Trial], *, is_spent: bool, state: TrialState = TrialState.WAITING) -> list[Trial]:
    """Trials that wait and are to end with what they have, where the search ends: else that would be lost.

    Args:
        trials: All of the study.
        state: Of those that are asked for.
        is_spent: Whether its time or tokens are used up. Then all that have learnt something, where the search would
            leave nothing else. In any case those that were interrupted when they had been told to end.
    """
    lost = is_spent and not has_better(trials)
    asked = (trial for trial in trials if trial.state == state)
    return [trial for trial in asked if trial.cut_short or (lost and has_learnt(trial))]


def has_learnt(trial: Trial) -> bool:
    """Whether a trial has reported on what was trained under its number."""
    return any(report.exposure > 0 for report in trial.reports[trial.carried :])


def hopeless(trials: Sequence[Trial], resumed_at: float = -math.inf, *, most_failures: int | None = None) -> str | None:
    """Why the next trial would fail as well: the last ones to end all failed for the same reason. None otherwise.

    Or so many have failed as the budget allows.

    What had ended when a person had the search go on says nothing: they may have mended the cause.
    """
    retried = {trial.retry_of for trial in trials}  # a lost trial that gets another chance says nothing yet
    ended = [
        trial
        for trial in trials
        if trial.state.is_finished and trial.number not in retried and not _says_nothing(trial)
        if (trial.finished_at or 0.0) > resumed_at
    ]
    ended.sort(key=lambda trial: (trial.finished_at or 0.0, trial.number))
    broken = [trial for trial in ended if trial.failure in BROKEN]
    if most_failures is not None and len(broken) >= most_failures:
        what = f"the last with '{broken[-1].failure}': {broken[-1].failure_text}"
        return f"{len(broken)} trials failed, the limit of the budget (budget.failures) is {most_failures}; {what}"
    last = ended[-SAME_FAILURES:]
    reasons, devices = {trial.failure for trial in last}, {trial.device for trial in last}
    if len(last) < SAME_FAILURES or len(reasons) != 1 or reasons <= {None, Failure.DIVERGED}:
        return None
    others = {trial.device for trial in trials if trial.state == TrialState.RUNNING and trial.reports} - devices
    if others and None not in devices:
        return None  # others train meanwhile: the devices may be to blame, and such are set aside
    return f"{SAME_FAILURES} trials in a row failed with '{last[-1].failure}': {last[-1].failure_text}"


def _says_nothing(trial: Trial) -> bool:
    """Of whether the next one would fail: nobody trained it, by wish or because a search was over.

    Nor do a person's own params that don't meet the requirements.
    """
    return trial.failure == Failure.CANCELLED or (trial.failure == Failure.INFEASIBLE and trial.origin != "search")
