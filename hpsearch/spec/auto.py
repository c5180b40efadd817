"""What `sampler: {type: auto}` and `pruner: {type: auto}` mean for a study."""

from __future__ import annotations

from hpsearch.spec.pruner import AutoPrunerSpec, CurvesPrunerSpec, PopulationSpec, PrunerSpec
from hpsearch.spec.sampler import MOST_POINTS, AutoSamplerSpec, CurvesSamplerSpec, GridSpec, QMCSpec, SamplerSpec
from hpsearch.spec.study import StudySpec


def with_search_resolved(spec: StudySpec) -> StudySpec:
    """The spec with its sampler and pruner named."""
    return spec.model_copy(update={"sampler": resolved_sampler(spec), "pruner": resolved_pruner(spec)})


def resolved_sampler(spec: StudySpec) -> SamplerSpec:
    """The sampler that searches: every point where the budget has room for all, else by curves.

    A population is drawn at once, when nothing is known: evenly.
    """
    if not isinstance(spec.sampler, AutoSamplerSpec):
        return spec.sampler
    if isinstance(spec.pruner, PopulationSpec):
        return QMCSpec()
    fits = spec.budget.trials is not None and spec.search_space.size() <= min(spec.budget.trials, MOST_POINTS)
    return GridSpec() if fits else CurvesSamplerSpec()


def resolved_pruner(spec: StudySpec) -> PrunerSpec:
    """The rule that stops trials."""
    return CurvesPrunerSpec() if isinstance(spec.pruner, AutoPrunerSpec) else spec.pruner
