"""What is tried before the sampler's own: the defaults, the user's, and the best of earlier studies.

And what of that is tried again when a person has an ended search go on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence

import optuna

from hpsearch.results import Trial, TrialState
from hpsearch.results.budget import forgiven, left
from hpsearch.search.draw import Points
from hpsearch.search.memory import Memory
from hpsearch.search.record import Record
from hpsearch.search.whole import Event
from hpsearch.spec.points import key
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec

ASKED_FOR = frozenset({"defaults", "first_trials", "borrowed", "hand"})
"""Origins of params that a sampler does not come upon again."""


def begin(study: optuna.Study, spec: StudySpec, firsts: Iterable[tuple[str, Params]]) -> None:
    """Line up a search's first trials.

    Args:
        study: As Optuna keeps it; nothing is in it, or what a search that died while it began has left.
        spec: The same.
        firsts: Origin and params of each, in order.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([spec.objective.metric])
    for origin, params in firsts:
        study.enqueue_trial(params, user_attrs={"origin": origin}, skip_if_exists=True)
    # Written last: a search that dies before this line begins again, and skips what is lined up already.
    study.set_user_attr("spec", json.loads(spec.model_dump_json()))


def borrowed(memory: Memory | None, study: optuna.Study, spec: StudySpec, points: Points, event: Event) -> list[Params]:
    """Learn from earlier studies; the answer is the best of it, to be tried here first."""
    lent = [] if memory is None else memory.borrow(study, spec.warm_start, points)
    if spec.warm_start is None:
        return []
    event("study.borrowed", {"trials": len(lent), "studies": sorted({one["study"] for one in lent})})
    return [one["params"] for one in lent[: spec.warm_start.first_trials]]


def try_again(record: Record, resumed_at: float, ends: Callable[[Sequence[Trial]], str | None]) -> None:
    """Forgive what has failed of something that is mended; line up again what was asked for, as far as there is room.

    Args:
        record: Of the study's trials.
        resumed_at: When a person had the ended search go on.
        ends: Why no other trial is started, if so.
    """
    budget, trials = record.spec.budget, record.trials()
    record.forgive(forgiven(trials, resumed_at, most_failures=budget.failures))
    room = left(budget, trials, record.forgiven) - sum(trial.state == TrialState.WAITING for trial in trials)
    for place, trial in enumerate(_lost(trials, record.forgiven) if ends(trials) is None else ()):
        if place < room:
            record.retry(trial)


def _lost(trials: Sequence[Trial], forgiven_ones: Collection[int]) -> list[Trial]:
    """Trials that were asked for, are forgiven, and were not tried otherwise since."""
    later = {trial.retry_of for trial in trials} | {trial.replaces for trial in trials}
    known = {key(trial.params) for trial in trials if trial.state != TrialState.FAIL}
    return [
        trial
        for trial in trials
        if trial.number in forgiven_ones and trial.number not in later
        if key(trial.params) not in known and _origin(trial, trials) in ASKED_FOR
    ]


def _origin(trial: Trial, trials: Sequence[Trial]) -> str:
    while trial.retry_of is not None:
        trial = trials[trial.retry_of]
    return trial.origin
