"""What is tried before the sampler's own: the defaults, the user's, and the best of earlier studies."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable

import optuna

from hpsearch.search.draw import Points
from hpsearch.search.memory import Memory
from hpsearch.search.whole import Event
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec


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
