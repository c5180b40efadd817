"""When to stop a trial that is not promising. Each variant is an Optuna pruner; the axis is exposure.

No pruner acts on the baseline report or inside a trial's warm-up.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.spec.closed import Closed


class AutoPrunerSpec(Closed):
    """What suits the study."""

    type: Literal["auto"] = "auto"


class NoPrunerSpec(Closed):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


class CurvesPrunerSpec(Closed):
    """A trial stops when no later report of it is likely to beat the best one so far, by a model of all curves."""

    type: Literal["curves"] = "curves"
    chance: float = Field(0.1, gt=0, lt=1)
    """A trial stops when its chance is below this; in its second half it takes less, the less of it is left."""
    min_reports: int = Field(1, ge=1, le=1000)
    """Report intervals that every trial gets."""


class SuccessiveHalvingSpec(Closed):
    """Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934).

    At each rung (the end of the epoch of report `min_reports`, and `reduction_factor` times further each) a trial
    goes on if it is among the best 1 / reduction_factor of those that got there.
    """

    type: Literal["successive_halving"] = "successive_halving"
    min_reports: int = Field(2, ge=1, le=1000)
    """Reports before the first rung, rounded up to a whole epoch: first reports say little about the end."""
    reduction_factor: int = Field(3, ge=2, le=16)
    """One in this many goes on."""


class HyperbandSpec(Closed):
    """Hyperband (Li et al. 2017, https://arxiv.org/abs/1603.06560): successive halving at several strictnesses."""

    type: Literal["hyperband"] = "hyperband"
    min_reports: int = Field(1, ge=1, le=1000)
    """Reports before the first rung of the strictest bracket, rounded up to a whole epoch."""
    reduction_factor: int = Field(3, ge=2, le=16)
    """One in this many goes on."""


class PercentileSpec(Closed):
    """A trial stops when its best report is outside the best `percentile` percent at the same exposure."""

    type: Literal["percentile"] = "percentile"
    percentile: float = Field(50, gt=0, lt=100)
    """50 is the median rule."""
    startup_trials: int = Field(5, ge=1, le=1000)
    """Completed trials before any is stopped."""
    min_reports: int = Field(2, ge=1, le=1000)
    """Report intervals that every trial gets."""


class MedianSpec(Closed):
    """A trial stops when its best report is worse than the median of the others at the same exposure."""

    type: Literal["median"] = "median"
    startup_trials: int = Field(5, ge=1, le=1000)
    """Completed trials before any is stopped."""
    min_reports: int = Field(2, ge=1, le=1000)
    """Report intervals that every trial gets."""


class ThresholdSpec(Closed):
    """A trial stops when a report is worse than a value that a person knows to be hopeless."""

    type: Literal["threshold"] = "threshold"
    worst: float
    """In the objective's unit: a loss above it stops the trial, or an accuracy below it."""
    min_reports: int = Field(2, ge=1, le=1000)
    """Report intervals that every trial gets."""


class WilcoxonSpec(Closed):
    """A trial stops when it lies behind the best complete trial at too many reports of equal exposure for chance.

    Wilcoxon's signed-rank test of the differences (one-sided). It takes the reports for independent measurements, and
    those of one curve are not, so `p` is a dial and not a probability.
    """

    type: Literal["wilcoxon"] = "wilcoxon"
    p: float = Field(0.1, gt=0, lt=1)
    """The p-value below which a trial stops: with 0.1, behind at each of four reports; with 0.05, of five."""
    min_reports: int = Field(2, ge=1, le=1000)
    """Reports that every trial gets."""


Rule = Annotated[
    SuccessiveHalvingSpec | HyperbandSpec | PercentileSpec | MedianSpec | ThresholdSpec | WilcoxonSpec,
    Field(discriminator="type"),
]


class PatientSpec(Closed):
    """Another rule, which is heard only while a trial does not get better itself."""

    type: Literal["patient"] = "patient"
    pruner: Rule
    """The rule that is wrapped."""
    patience: int = Field(2, ge=1, le=1000)
    """Reports in a row without a new best one, before the rule may stop the trial."""
    min_delta: float = Field(0, ge=0)
    """What is no more than this better than the best before counts as no better, in the objective's unit."""


class PopulationSpec(Closed):
    """Population based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846).

    A population trains side by side. At each exchange the worst trials end, and another one takes the place of each: it
    goes on from where one of the best stands, with its weights and its optimizer's state, under params that are changed
    by chance. So what comes out is a schedule of params, not one config.
    """

    type: Literal["pbt"] = "pbt"
    population: int = Field(8, ge=2, le=1000)
    """Trials that train side by side; where there is no room for all, they take turns."""
    interval: int | None = Field(None, ge=1, le=1000)
    """Report intervals from one exchange to the next; left out, an epoch."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Part of the population that is worst and ends; as many are best and may be gone on from."""
    resample: float = Field(0.25, ge=0, le=1)
    """A parameter is drawn anew with this chance; else it is multiplied by 0.8 or 1.2, or the next choice is taken."""


PrunerSpec = Annotated[
    AutoPrunerSpec
    | CurvesPrunerSpec
    | NoPrunerSpec
    | SuccessiveHalvingSpec
    | HyperbandSpec
    | PercentileSpec
    | MedianSpec
    | ThresholdSpec
    | WilcoxonSpec
    | PatientSpec
    | PopulationSpec,
    Field(discriminator="type"),
]
