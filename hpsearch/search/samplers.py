"""The spec's sampler as Optuna's. Always explicit: Optuna's defaults change between versions."""

from __future__ import annotations

import hashlib

from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from hpsearch.spec.sampler import CmaEsSpec, GPSpec, QMCSpec, SamplerSpec, TPESpec


def seed_of(study_seed: int, number: int) -> int:
    """A seed for one draw: the same after any restart, another for every trial."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler(spec: SamplerSpec, study_seed: int, number: int) -> BaseSampler:
    """The sampler that draws the params of trial `number`; all it knows of the past is in the study."""
    if isinstance(spec, QMCSpec):  # one sequence for the whole study: its place in it is kept in SQL
        return QMCSampler(scramble=True, seed=study_seed, independent_sampler=RandomSampler(seed=study_seed))
    seed = seed_of(study_seed, number)
    if isinstance(spec, TPESpec):
        return TPESampler(
            n_startup_trials=spec.startup_trials,
            multivariate=spec.multivariate,
            constant_liar=spec.constant_liar,
            seed=seed,
        )
    if isinstance(spec, GPSpec):
        return GPSampler(n_startup_trials=spec.startup_trials, seed=seed)
    if isinstance(spec, CmaEsSpec):
        return CmaEsSampler(n_startup_trials=spec.startup_trials, seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)
