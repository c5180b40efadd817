"""What a study with population based training must be like, and when its population exchanges weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.expression import names_in
from hpsearch.spec.finetune import CHANGEABLE, MOST_PHASES
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.sampler import GridSpec, SamplerSpec
from hpsearch.spec.space import FloatChoices, FloatRange, SearchSpace


def changeable(space: SearchSpace) -> list[str]:
    """The parameters of a search space that may change in the middle of a training."""
    return [name for name in space.varying() if name in CHANGEABLE]


def places(asked: PopulationSpec, space: SearchSpace, epochs: int, reports_per_epoch: int) -> tuple[int, ...]:
    """At which reports, counted from 1, weights are exchanged: behind the longest warm-up, before the last report."""
    interval, last = asked.interval or reports_per_epoch, epochs * reports_per_epoch
    return tuple(place for place in range(interval, last, interval) if place > _most_warmup(space) * last)


def exchanges(
    asked: PopulationSpec, space: SearchSpace, epochs: int, reports_per_epoch: int, examples: int
) -> tuple[int, ...]:
    """The exposures of the exchanges: those of these reports, with so many training examples."""
    found = places(asked, space, epochs, reports_per_epoch)
    return tuple(math.ceil(place * examples / reports_per_epoch) for place in found)


def faults(
    asked: PopulationSpec, space: SearchSpace, sampler: SamplerSpec, budget: BudgetSpec, reports_per_epoch: int
) -> Iterator[str]:
    """Why a study can't be searched so, in sentences that name the field."""
    varying = space.varying()
    if "epochs" in varying:
        yield "pruner pbt: search_space.epochs must be one number, for all of a population train equally long"
    if not changeable(space):
        known = ", ".join(CHANGEABLE)
        yield f"pruner pbt: nothing in search_space varies that can change in the middle of a training ({known})"
    for name, condition in space.conditions().items():
        moved = sorted(names_in(condition) & set(changeable(space)))
        if moved:
            yield f"pruner pbt: search_space.{name}.when depends on {moved[0]}, which changes while a trial trains"
    if isinstance(sampler, GridSpec):
        yield "pruner pbt: sampler.type grid lists all points, and a population is a few; leave the sampler out"
    if budget.trials is not None and budget.trials < asked.population:
        yield f"pruner pbt: budget.trials ({budget.trials}) is less than pruner.population ({asked.population})"
    if budget.until is not None:
        yield "pruner pbt: budget.until would end a population in the middle; leave it out"
    if isinstance(space.epochs, int):
        fault = fault_of_exchanges(asked, space, space.epochs, reports_per_epoch)
        if fault is not None:
            yield fault


def fault_of_exchanges(asked: PopulationSpec, space: SearchSpace, epochs: int, reports_per_epoch: int) -> str | None:
    """Why trials of so many epochs can't be exchanged so, if they can't."""
    interval, found = asked.interval or reports_per_epoch, places(asked, space, epochs, reports_per_epoch)
    every = f"a trial has {epochs * reports_per_epoch} reports, and exchanges are every {interval}, behind the warm-up"
    if not found:
        return (
            f"pruner pbt: nothing would ever be exchanged: {every}; lower pruner.interval, "
            "or raise objective.reports_per_epoch"
        )
    if len(found) > MOST_PHASES:
        return f"pruner pbt: at most {MOST_PHASES:,} exchanges: {every}; raise pruner.interval"
    return None


def _most_warmup(space: SearchSpace) -> float:
    """The largest part of a trial that may be its warm-up."""
    warmup = space.warmup_fraction
    if isinstance(warmup, FloatRange):
        return warmup.high
    if isinstance(warmup, FloatChoices):
        return max(warmup.choices)
    return 0.0 if isinstance(warmup, str) else warmup
