"""The spec's pruner as Optuna's, on the exposure axis. Their state is the study's reports, so it survives restarts."""

from __future__ import annotations

import math

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner

from hpsearch.spec.pruner import HyperbandSpec, NoPrunerSpec, PrunerSpec, SuccessiveHalvingSpec


def pruner(spec: PrunerSpec, examples: int, reports_per_epoch: int, most_epochs: int) -> BasePruner:
    """The pruner, told the study's scale.

    Rungs lie at the ends of epochs, because there every trial reports: one whose batch spans several report points
    reports only the last of them, and halving would file it under a later rung than its peers.

    Args:
        spec: Which rule.
        examples: Size of the training set.
        reports_per_epoch: Reports per pass over it.
        most_epochs: Of the longest possible trial.
    """
    if isinstance(spec, NoPrunerSpec):
        return NopPruner()
    first_rung = math.ceil(spec.min_reports / reports_per_epoch) * examples
    if isinstance(spec, SuccessiveHalvingSpec):
        return SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=spec.reduction_factor)
    if isinstance(spec, HyperbandSpec):
        longest = max(most_epochs * examples, first_rung)
        return HyperbandPruner(min_resource=first_rung, max_resource=longest, reduction_factor=spec.reduction_factor)
    # Rounded down: the report itself is recorded at the rounded exposure, and must not fall short.
    warmup = int(spec.min_reports * examples / reports_per_epoch)
    return PercentilePruner(spec.percentile, n_startup_trials=spec.startup_trials, n_warmup_steps=warmup)
