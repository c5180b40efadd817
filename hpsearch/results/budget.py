"""Is it over? A pure function of what was asked and what has happened."""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.results.trial import Failure, Trial, TrialState
from hpsearch.spec.budget import BudgetSpec

SAME_FAILURES = 5
"""So many trials in a row that failed for the same reason end the study: the next one would fail too."""


def counts(trial: Trial) -> bool:
    """Whether a trial uses up one of the budget's trials: not while it waits, nor when its worker was lost."""
    return trial.state != TrialState.WAITING and trial.failure not in (Failure.WORKER_LOST, Failure.CANCELLED)


def limit_reached(budget: BudgetSpec, trials: Sequence[Trial], elapsed: float) -> str | None:
    """The limit that leaves no room for another trial, in words; None while there is room.

    Args:
        budget: The limits.
        trials: All trials of the study, running ones too.
        elapsed: Seconds since the study started.
    """
    if budget.trials is not None and sum(map(counts, trials)) >= budget.trials:
        return f"all {budget.trials} trials of the budget were used"
    return spent(budget, trials, elapsed)


def spent(budget: BudgetSpec, trials: Sequence[Trial], elapsed: float) -> str | None:
    """The limit on time or tokens that is used up, which stops running trials too; None while none is."""
    if budget.wall_clock is not None and elapsed >= budget.wall_clock:
        return f"the wall-clock budget of {budget.wall_clock:g} s was used"
    last = [trial.reports[-1] for trial in trials if trial.reports]
    if budget.gpu_hours is not None and sum(report.seconds for report in last) >= budget.gpu_hours * 3600:
        return f"the budget of {budget.gpu_hours:g} device hours was used"
    if budget.tokens is not None and sum(report.tokens for report in last) >= budget.tokens:
        return f"the budget of {budget.tokens:,} training tokens was used"
    return None


def hopeless(trials: Sequence[Trial]) -> str | None:
    """Why the next trial would fail as well: the last ones to end all failed for the same reason. None otherwise."""
    retried = {trial.retry_of for trial in trials}  # a lost trial that gets another chance says nothing yet
    ended = [trial for trial in trials if trial.state.is_finished and trial.number not in retried]
    ended.sort(key=lambda trial: (trial.finished_at or 0.0, trial.number))
    last = ended[-SAME_FAILURES:]
    reasons = {trial.failure for trial in last}
    if len(last) < SAME_FAILURES or len(reasons) != 1 or reasons <= {None, Failure.DIVERGED, Failure.CANCELLED}:
        return None
    return f"{SAME_FAILURES} trials in a row failed with '{last[-1].failure}': {last[-1].failure_text}"
