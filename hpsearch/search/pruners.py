"""The spec's pruner as Optuna's, on the exposure axis. Their state is the study's reports, so it survives restarts."""

from __future__ import annotations

import copy
import math

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.trial import FrozenTrial

from hpsearch.results.curve import has_turned
from hpsearch.spec.objective import Direction
from hpsearch.spec.pruner import (
    CurvesPrunerSpec,
    HyperbandSpec,
    MedianSpec,
    NoPrunerSpec,
    PatientSpec,
    PercentileSpec,
    PopulationSpec,
    PrunerSpec,
    SuccessiveHalvingSpec,
    ThresholdSpec,
    WilcoxonSpec,
)


def pruner(
    spec: PrunerSpec, examples: int, reports_per_epoch: int, most_epochs: int, direction: Direction = "minimize"
) -> BasePruner:
    """The pruner, told the study's scale; `auto` is resolved by now.

    Rungs lie at the ends of epochs, because there every trial reports: one whose batch spans several report points
    reports only the last of them, and halving would file it under a later rung than its peers.

    Args:
        spec: Which rule.
        examples: Size of the training set.
        reports_per_epoch: Reports per pass over it.
        most_epochs: Of the longest possible trial.
        direction: Of the objective.
    """
    if isinstance(spec, PatientSpec):
        wrapped = pruner(spec.pruner, examples, reports_per_epoch, most_epochs, direction)
        return Patient(wrapped, spec.patience, spec.min_delta, direction)
    if isinstance(spec, WilcoxonSpec):
        return ReportByReport(spec.p, spec.min_reports)
    if isinstance(spec, CurvesPrunerSpec):
        from hpsearch.search.curve_policy import CurvePruner  # loads scipy, which the API does without

        return CurvePruner(spec.chance, spec.min_reports / reports_per_epoch)
    if isinstance(spec, SuccessiveHalvingSpec | HyperbandSpec):
        return _halving(spec, math.ceil(spec.min_reports / reports_per_epoch) * examples, most_epochs * examples)
    if isinstance(spec, PercentileSpec | MedianSpec | ThresholdSpec):
        # Rounded down: the report itself is recorded at the rounded exposure, and must not fall short.
        return _without_rungs(spec, int(spec.min_reports * examples / reports_per_epoch), direction)
    assert isinstance(spec, NoPrunerSpec | PopulationSpec)  # whom a population replaces, `population.py` decides
    return NopPruner()


class Patient(BasePruner):
    """Another pruner, heard only while a trial gets no better itself.

    Optuna's `PatientPruner` waits for one report more than its patience, makes `min_delta` what a trial must have got
    *worse* by, and does not ask the other pruner before: halving, which notes a trial's rungs when it is asked, would
    note them late.
    """

    def __init__(self, pruner: BasePruner, patience: int, min_delta: float, direction: Direction) -> None:
        self._pruner, self._patience, self._min_delta, self._direction = pruner, patience, min_delta, direction

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the other pruner stops the trial, and nothing speaks for it."""
        is_poor = self._pruner.prune(study, trial)
        values = [value for step, value in sorted(trial.intermediate_values.items()) if step]
        return is_poor and has_turned(values, self._direction, self._patience, self._min_delta)


class Trained(BasePruner):
    """Another pruner, shown what a trial has reported since it was trained.

    The baseline is its first report and the same for all: a trial that made the model worse would have it for its best.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self._pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """What the other pruner says."""
        shown = copy.copy(trial)
        shown.intermediate_values = {step: value for step, value in trial.intermediate_values.items() if step}
        return self._pruner.prune(study, shown)


class ReportByReport(BasePruner):
    """Wilcoxon's signed-rank test of the reports that a trial and the best one made at the same exposure.

    Optuna's `WilcoxonPruner` has the same test, and beside it compares the means of all values that either reported,
    which of curves of different lengths says nothing. The baseline is no pair: it is the same for all trials.
    """

    def __init__(self, p: float, min_reports: int) -> None:
        self._p, self._min_reports = p, min_reports

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is worse by the test."""
        from scipy.stats import wilcoxon  # which the API does without

        try:
            best = study.best_trial.intermediate_values
        except ValueError:  # none is complete
            return False
        own = trial.intermediate_values
        behind = [own[step] - best[step] for step in own if step and step in best]
        if len(behind) < self._min_reports or not any(behind):
            return False
        side = "greater" if study.direction == optuna.study.StudyDirection.MINIMIZE else "less"
        return bool(wilcoxon(behind, alternative=side, zero_method="zsplit").pvalue < self._p)


def _halving(spec: SuccessiveHalvingSpec | HyperbandSpec, first_rung: int, longest: int) -> BasePruner:
    if isinstance(spec, SuccessiveHalvingSpec):
        return SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=spec.reduction_factor)
    longest = max(longest, first_rung)
    return HyperbandPruner(min_resource=first_rung, max_resource=longest, reduction_factor=spec.reduction_factor)


def _without_rungs(spec: PercentileSpec | MedianSpec | ThresholdSpec, warmup: int, direction: Direction) -> BasePruner:
    if isinstance(spec, ThresholdSpec):
        if direction == "minimize":
            return ThresholdPruner(upper=spec.worst, n_warmup_steps=warmup)
        return ThresholdPruner(lower=spec.worst, n_warmup_steps=warmup)
    percentile = spec.percentile if isinstance(spec, PercentileSpec) else 50.0
    return Trained(PercentilePruner(percentile, n_startup_trials=spec.startup_trials, n_warmup_steps=warmup))
