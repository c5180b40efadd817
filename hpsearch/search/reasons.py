"""Why a rule stopped a trial, in words that can be checked against the curves."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from hpsearch.spec.pruner import CurvesPrunerSpec, PatientSpec, PrunerSpec, ThresholdSpec, WilcoxonSpec


def why_pruned(spec: PrunerSpec, study: optuna.Study, trial: FrozenTrial) -> str:
    """A sentence on a trial whose last report was the one too many.

    Args:
        spec: The study's pruner, nothing `auto`.
        study: With that pruner, and all that has been reported.
        trial: As it was when it was judged.
    """
    return f"pruner {spec.type}: {_why(spec, study, trial)}"


def _why(spec: PrunerSpec, study: optuna.Study, trial: FrozenTrial) -> str:
    if isinstance(spec, PatientSpec):
        return f"it no longer got better by itself, and by {spec.pruner.type}, {_why(spec.pruner, study, trial)}"
    if isinstance(spec, ThresholdSpec):
        return f"its last report, {_last(trial):.4f}, is worse than pruner.worst ({spec.worst:g})"
    if isinstance(spec, CurvesPrunerSpec):
        return _unlikely(study, trial)
    if isinstance(spec, WilcoxonSpec):
        return _behind_the_best(study, trial)
    return _standing(study, trial)


def _unlikely(study: optuna.Study, trial: FrozenTrial) -> str:
    from hpsearch.search.curve_policy import CurvePruner  # loads scipy, which the API does without

    assert isinstance(study.pruner, CurvePruner)
    odds = study.pruner.odds(study, trial)
    assert odds is not None  # it was stopped by them
    return (
        f"its chance to do better than {odds.best:.4f}, the best report so far, was {_percent(odds.chance)}; "
        f"to go on takes {_percent(odds.needed)} here"
    )


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part >= 1e-3 else "below 0.1 %"


def _behind_the_best(study: optuna.Study, trial: FrozenTrial) -> str:
    best, own = study.best_trial, trial.intermediate_values
    common = [step for step in own if step and step in best.intermediate_values]
    behind = sum(_is_better(study, best.intermediate_values[step], own[step]) for step in common)
    return f"trial {best.number}, the best, was better at {behind} of the {len(common)} reports that both have made"


def _standing(study: optuna.Study, trial: FrozenTrial) -> str:
    step, own = max(trial.intermediate_values), _last(trial)
    others = [
        other.intermediate_values[step]
        for other in study.get_trials(deepcopy=False)
        if other.number != trial.number and step in other.intermediate_values
    ]
    better = sum(_is_better(study, value, own) for value in others)
    return f"it stood at {own:.4f}, and {better} of the {len(others)} other trials that came so far stood better there"


def _last(trial: FrozenTrial) -> float:
    return trial.intermediate_values[max(trial.intermediate_values)]


def _is_better(study: optuna.Study, value: float, than: float) -> bool:
    return value < than if study.direction == optuna.study.StudyDirection.MINIMIZE else value > than
