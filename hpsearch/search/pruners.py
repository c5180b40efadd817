"""The spec's pruner as Optuna's, on the exposure axis. Their state is the study's reports, so it survives restarts."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, PercentilePruner, SuccessiveHalvingPruner

from hpsearch.spec.pruner import HyperbandSpec, PercentileSpec, PrunerSpec, SuccessiveHalvingSpec


def pruner(spec: PrunerSpec, report_interval: float, most_exposure: int) -> BasePruner:
    """The pruner, told the study's scale.

    Args:
        spec: Which rule.
        report_interval: Training examples between two reports.
        most_exposure: Training examples that the longest possible trial sees.
    """
    if isinstance(spec, SuccessiveHalvingSpec):
        return SuccessiveHalvingPruner(
            min_resource=_exposure(spec.min_reports, report_interval), reduction_factor=spec.reduction_factor
        )
    if isinstance(spec, HyperbandSpec):
        return HyperbandPruner(
            min_resource=_exposure(spec.min_reports, report_interval),
            max_resource=max(most_exposure, 1),
            reduction_factor=spec.reduction_factor,
        )
    if isinstance(spec, PercentileSpec):
        return PercentilePruner(
            spec.percentile,
            n_startup_trials=spec.startup_trials,
            n_warmup_steps=_exposure(spec.min_reports, report_interval),
        )
    return NopPruner()


def _exposure(reports: int, report_interval: float) -> int:
    # Rounded down: the report itself is recorded at the rounded exposure, and must not fall short of its rung.
    return max(1, int(reports * report_interval))
