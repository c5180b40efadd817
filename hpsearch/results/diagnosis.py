"""What a trial's learning curve says of its fit: what went wrong, and what to change.

The limits were set by 807 recorded curves of fine-tunes (`benchmarks/diagnosis.py` shows who is told what).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from hpsearch.results.trial import Report, Trial, TrialState
from hpsearch.spec.objective import ObjectiveSpec

FEWEST = 3
"""Reports below which nothing is said, the baseline's included."""
LEAST = 0.005
"""Part of the baseline's value: what is gained or lost by less may be chance, or too little training."""
LOST = 0.1
"""A curve has turned once so large a part of what it gained over the baseline is lost again."""
ROSE = 0.05
"""A training loss that is larger by so large a part of it does not fall: batches differ."""


class Finding(enum.StrEnum):
    """What can be found."""

    NEVER_BETTER = "never_better"
    """Every report is worse than the untouched base model."""
    OVERFITTED = "overfitted"
    """After its best report it lost a good part of its gain, while the training loss did not rise."""
    UNSTABLE = "unstable"
    """After its best report it lost a good part of its gain, and the training loss rose too."""


REMEDIES: Mapping[Finding, Mapping[str, str]] = {
    Finding.NEVER_BETTER: {"learning_rate_multiplier": "low"},
    Finding.OVERFITTED: {"learning_rate_multiplier": "low", "dropout": "high", "weight_decay": "high"},
    Finding.UNSTABLE: {"learning_rate_multiplier": "low"},
}
"""To which side of its parameters each one points."""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a trial's fit."""

    finding: Finding
    text: str
    """For a person: what is seen, and what to try. Goes on from "it"."""


def diagnose(trial: Trial, objective: ObjectiveSpec) -> Diagnosis | None:
    """What is wrong with the fit of a trial that has ended; None if nothing is, or too little is known.

    Args:
        trial: With its reports; the first one is the baseline. Of one that took over another's weights nothing is said:
            its params are not what led there.
        objective: What counts as better.
    """
    has_ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    if not has_ended or trial.parent is not None or len(trial.reports) < FEWEST:
        return None
    sign = 1.0 if objective.direction == "minimize" else -1.0
    losses = [sign * float(getattr(report, objective.metric)) for report in trial.reports]
    place = min(range(1, len(losses)), key=losses.__getitem__)
    gain, least = losses[0] - losses[place], LEAST * abs(losses[0])
    if gain <= -least:
        return Diagnosis(Finding.NEVER_BETTER, _never_better(losses[0] * sign))
    if gain < least:
        return None
    if losses[-1] - losses[place] > max(LOST * gain, least):
        return _turned(trial.reports[place], trial.reports[-1], objective)
    return None


def _never_better(baseline: float) -> str:
    return (
        f"was worse than the untouched base model ({baseline:.4g}) all the time: try a lower learning rate multiplier"
    )


def _turned(best: Report, last: Report, objective: ObjectiveSpec) -> Diagnosis | None:
    if best.training_loss is None or last.training_loss is None:
        return None
    was, became = (getattr(report, objective.metric) for report in (best, last))
    metric = objective.metric.replace("_", " ")
    turned = f"was at its best after epoch {best.epoch:.3g}; by epoch {last.epoch:.3g}"
    losses = f"its training loss from {best.training_loss:.4g} to {last.training_loss:.4g}"
    seen = (
        f"{turned} its {metric} had gone from {was:.4g} to {became:.4g}, {losses}. The weights kept are those of its "
        "best report; try a lower learning rate multiplier"
    )
    if last.training_loss > (1 + ROSE) * best.training_loss:
        return Diagnosis(Finding.UNSTABLE, seen)
    return Diagnosis(Finding.OVERFITTED, f"{seen}, or more dropout or weight decay")
