"""Which params next. Each variant is an Optuna sampler; seeds come from the study's seed and the trial number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.spec.closed import Closed

MOST_POINTS = 10_000
"""A space of more points is never listed: nobody fine-tunes so often."""


class AutoSamplerSpec(Closed):
    """What suits the study: a grid where the budget has room for every point, else `curves`."""

    type: Literal["auto"] = "auto"


class CurvesSamplerSpec(Closed):
    """A Gaussian process over params and learning curves: draws where the predicted end promises most."""

    type: Literal["curves"] = "curves"
    startup_trials: int = Field(4, ge=1, le=64)
    """First trials before the model is used: evenly spread, but with a prior one near the defaults."""
    prior: float = Field(10.0, ge=0, le=1000)
    """Belief in the `auto` defaults: what params promise is weighed by their nearness to these, to the power of `prior`
    over the trial's number. 0: none."""


class TPESpec(Closed):
    """Tree-structured Parzen estimator (Bergstra et al. 2011): models good and bad params, draws where they differ."""

    type: Literal["tpe"] = "tpe"
    startup_trials: int = Field(8, ge=1, le=1000)
    """Random trials before the model is used."""
    multivariate: bool = True
    """Model the parameters together, so that their interactions count."""
    constant_liar: bool = True
    """Treat running trials as bad ones, so that parallel trials spread out."""


class RandomSpec(Closed):
    """Independent draws."""

    type: Literal["random"] = "random"


class QMCSpec(Closed):
    """A scrambled Sobol sequence: random, but evenly spread."""

    type: Literal["qmc"] = "qmc"


class GPSpec(Closed):
    """Gaussian process with expected improvement: strong for few trials of a smooth objective, slow above 200."""

    type: Literal["gp"] = "gp"
    startup_trials: int = Field(8, ge=1, le=1000)
    """Random trials before the model is used."""


class CmaEsSpec(Closed):
    """Covariance matrix adaptation (Hansen 2016): for numeric parameters and more than about 100 trials."""

    type: Literal["cmaes"] = "cmaes"
    startup_trials: int = Field(8, ge=1, le=1000)
    """Random trials before the model is used."""


class GridSpec(Closed):
    """Every point once, in an order shuffled by the seed; then the study ends, because nothing is left to try."""

    type: Literal["grid"] = "grid"
    points: int = Field(5, ge=2, le=100)
    """A range without a step is cut into so many even points (even in the logarithm for `log`)."""


SamplerSpec = Annotated[
    AutoSamplerSpec | CurvesSamplerSpec | TPESpec | GPSpec | CmaEsSpec | QMCSpec | RandomSpec | GridSpec,
    Field(discriminator="type"),
]
