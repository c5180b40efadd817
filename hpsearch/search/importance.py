"""How important each parameter was for being among the best: Optuna's PED-ANOVA (Watanabe et al. 2023)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from hpsearch.results.attributes import PARENT
from hpsearch.search.taught import Taught

FEWEST = 8
"""Completed trials below which nothing is said."""
BEST = 5
"""The best tenth is compared with all, but so many trials at least (as Optuna's documentation asks)."""


def importance(study: optuna.Study | None) -> dict[str, float]:
    """By parameter, adding up to 1; empty with too few trials, or when no parameter mattered.

    Trials that took another's weights over say nothing of their params.
    """
    complete = [] if study is None else study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    complete = [trial for trial in complete if PARENT not in trial.user_attrs]
    varying = _varying(complete)
    if study is None or len(complete) < FEWEST or not varying:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on few trials in a part of a conditional space: they are shown with the rest
        best = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, BEST / len(complete))))
        shown: Any = Taught(study, complete)
        found = get_param_importances(shown, evaluator=best, params=varying, normalize=False)
    total = math.fsum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}


def _varying(trials: list[FrozenTrial]) -> list[str]:
    """The parameters with at least two values."""
    values: dict[str, set[object]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, found in values.items() if len(found) > 1)
