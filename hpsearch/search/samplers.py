"""The spec's sampler as Optuna's. Always explicit: Optuna's defaults change between versions."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from hpsearch.search.projection import Projection
from hpsearch.spec.sampler import CmaEsSpec, CurvesSamplerSpec, GPSpec, QMCSpec, SamplerSpec, TPESpec
from hpsearch.spec.space import Params


def seed_of(study_seed: int, number: int, attempt: int = 0) -> int:
    """A seed for one draw: the same after any restart, another for every trial."""
    digest = hashlib.sha256(f"{study_seed}/{number}{f'/{attempt}' if attempt else ''}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler(
    spec: SamplerSpec,
    study_seed: int,
    number: int,
    attempt: int = 0,
    *,
    conditional: bool = False,
    defaults: Params | None = None,
    is_new: Callable[[Params], bool] = lambda _params: True,
    projection: Projection | None = None,
) -> BaseSampler:
    """The sampler that draws the params of a trial; all it knows of the past is in the study.

    Args:
        spec: Which; `auto` is resolved by now. A grid is not drawn from but listed (`draw.py`).
        study_seed: Of the spec.
        number: The trial's.
        attempt: The number of draws for it before, none of which could be used.
        conditional: Whether some trials have parameters that others don't.
        defaults: The `auto` defaults, a value for each parameter; for samplers that believe in them.
        is_new: Whether params may be tried and were not yet; asked by samplers that can choose the next best.
        projection: What would be trained of params, for samplers that predict it; None where that is all of them.
    """
    seed = seed_of(study_seed, number, attempt)
    if isinstance(spec, CurvesSamplerSpec):
        from hpsearch.search.curve_policy import CurveSampler  # loads scipy, which the API does without

        return CurveSampler(
            spec.startup_trials,
            study_seed,
            seed,
            is_repeated=attempt > 0,
            defaults=defaults,
            strength=spec.prior,
            is_new=is_new,
            projection=projection,
        )
    with warnings.catch_warnings():  # of what Optuna calls experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if isinstance(spec, QMCSpec):  # one sequence for the whole study: its place in it is kept in SQL
            return QMCSampler(scramble=True, seed=study_seed, independent_sampler=RandomSampler(seed=seed))
        if isinstance(spec, TPESpec):
            return TPESampler(
                n_startup_trials=spec.startup_trials,
                multivariate=spec.multivariate,
                group=spec.multivariate and conditional,
                constant_liar=spec.constant_liar,
                seed=seed,
            )
    if isinstance(spec, GPSpec):
        return GPSampler(n_startup_trials=spec.startup_trials, seed=seed, warn_independent_sampling=False)
    if isinstance(spec, CmaEsSpec):
        return CmaEsSampler(n_startup_trials=spec.startup_trials, seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)
