"""What a trial's learning curve says of its fit: what went wrong, and what to change.

The limits were set by 807 recorded curves of fine-tunes (`benchmarks/diagnosis.py` shows who is told what).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hpsearch.results.trial import Report, Trial, TrialState
from hpsearch.spec.objective import ObjectiveSpec

FEWEST = 3
"""Reports below which nothing is said, the baseline's included."""
LOST = 0.1
"""A curve has turned once so large a part of what it gained over the baseline is lost again."""
LATE = 0.1
"""A curve that gains so large a part of all it gains in its last quarter has not come to its end."""


class Finding(enum.StrEnum):
    """What can be found."""

    NEVER_BETTER = "never_better"
    """No report is better than the untouched base model."""
    OVERFITTED = "overfitted"
    """After its best report it lost a good part of its gain, while the training loss went on falling."""
    UNSTABLE = "unstable"
    """After its best report it lost a good part of its gain, and the training loss did not fall either."""
    UNDERTRAINED = "undertrained"
    """It ended while it still got better."""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a trial's fit."""

    finding: Finding
    text: str
    """For a person: what is seen, and what to change. Goes on from "it"."""


def diagnose(trial: Trial, objective: ObjectiveSpec) -> Diagnosis | None:
    """What is wrong with the fit of a trial that has ended; None if nothing is, or too little is known.

    Args:
        trial: With its reports; the first one is the baseline.
        objective: What counts as better.
    """
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or len(trial.reports) < FEWEST:
        return None
    sign = 1.0 if objective.direction == "minimize" else -1.0
    losses = [sign * float(getattr(report, objective.metric)) for report in trial.reports]
    place = min(range(1, len(losses)), key=losses.__getitem__)
    best, last, gain = trial.reports[place], trial.reports[-1], losses[0] - losses[place]
    if gain <= 0:
        return Diagnosis(Finding.NEVER_BETTER, _never_better(losses[0] * sign))
    if losses[-1] - losses[place] > LOST * gain:
        return _turned(best, last, objective)
    is_whole = trial.state == TrialState.COMPLETE and not trial.cut_short
    late = (_at(0.75 * last.exposure, trial.reports, losses) - losses[place]) / gain
    if is_whole and late > LATE:
        return Diagnosis(Finding.UNDERTRAINED, _undertrained(late))
    return None


def _never_better(baseline: float) -> str:
    return f"was never better than the untouched base model ({baseline:.4g}): try a lower learning rate multiplier"


def _turned(best: Report, last: Report, objective: ObjectiveSpec) -> Diagnosis:
    was, became = (getattr(report, objective.metric) for report in (best, last))
    metric = objective.metric.replace("_", " ")
    seen = (
        f"was best after {best.epoch:g} of {last.epoch:g} epochs; then its {metric} went from {was:.4g} to {became:.4g}"
    )
    kept = "The weights kept are those of its best report"
    if best.training_loss is None or last.training_loss is None or last.training_loss >= best.training_loss:
        return Diagnosis(
            Finding.UNSTABLE,
            f"{seen}, and its training loss did not fall. {kept}; try a lower learning rate multiplier",
        )
    return Diagnosis(
        Finding.OVERFITTED,
        f"{seen} while its training loss fell from {best.training_loss:.4g} to {last.training_loss:.4g}. {kept}; "
        "try a lower learning rate multiplier, fewer epochs, or more dropout or weight decay",
    )


def _undertrained(late: float) -> str:
    return (
        f"still got better when it ended: its last quarter brought {late:.0%} of all it gained. Try more epochs or a "
        "higher learning rate multiplier"
    )


def _at(exposure: float, reports: tuple[Report, ...], losses: list[float]) -> float:
    """The loss between two reports, by a straight line."""
    after = next(place for place, report in enumerate(reports) if report.exposure >= exposure)
    one, other = reports[after - 1], reports[after]
    part = (exposure - one.exposure) / (other.exposure - one.exposure)
    return losses[after - 1] + part * (losses[after] - losses[after - 1])
