"""What a study will cost, at most, before it is queued."""

from __future__ import annotations

from dataclasses import dataclass

from hpsearch.spec.defaults import default_hyperparameters, default_params, hyperparameters
from hpsearch.spec.points import active, all_points
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.space import IntChoices, IntRange
from hpsearch.spec.study import StudySpec


@dataclass(frozen=True)
class Rate:
    """How fast the last trials on a base model were trained."""

    study: str
    """Of the newest of them."""
    trials: int
    tokens_per_second: float
    """Training tokens by seconds of a device, evaluations included."""


@dataclass(frozen=True)
class Cost:
    """Training tokens, about: chat templates differ. Retries of lost workers are not in it. None: not to be told."""

    epoch: int | None
    """One pass over the training examples, each cut at `max_length`."""
    defaults: int | None
    """The trial of the `auto` defaults."""
    search: int | None
    """All trials, if none stops early and each has the most epochs. None too without a limit on trials or tokens."""
    confirmation: int | None
    """What confirms the best trials; 0 without."""
    rate: Rate | None
    """None where no trial on this model has completed yet."""
    device_hours: float | None
    """Search and confirmation at that rate."""


def cost(spec: StudySpec, tokens: int | None, examples: int, rate: Rate | None) -> Cost:
    """What a study will cost.

    Args:
        spec: Of the study.
        tokens: Of one pass over its training examples; None if they can't be counted.
        examples: So many they are.
        rate: Known from earlier trials.
    """
    if tokens is None:
        return Cost(None, None, None, None, rate, None)
    trial = tokens * most_epochs(spec, examples)
    trials = _most_trials(spec, examples)
    limits = [spec.budget.tokens, None if trials is None else trials * trial]
    search = min((limit for limit in limits if limit is not None), default=None)
    confirmation = 0 if spec.confirm is None else (spec.confirm.top + 1) * spec.confirm.seeds * trial
    usual = hyperparameters(spec, active(spec, default_params(spec, examples), examples), examples).epochs
    hours = None if rate is None else _hours(spec, search, confirmation, 3600 * rate.tokens_per_second)
    return Cost(tokens, tokens * usual, search, confirmation, rate, hours)


def _hours(spec: StudySpec, search: int | None, confirmation: int, tokens_per_hour: float) -> float | None:
    limits = [spec.budget.gpu_hours, None if search is None else search / tokens_per_hour]
    searched = min((limit for limit in limits if limit is not None), default=None)
    return None if searched is None else searched + confirmation / tokens_per_hour


def most_epochs(spec: StudySpec, examples: int) -> int:
    """Of the longest possible trial of a study."""
    asked = spec.search_space.epochs
    usual = default_hyperparameters(examples, spec.model.method).epochs
    if isinstance(asked, IntRange | IntChoices):
        most = asked.high if isinstance(asked, IntRange) else max(asked.choices)
        return max(most, usual) if "epochs" in spec.search_space.conditions() else most
    return usual if asked == "auto" else asked


def _most_trials(spec: StudySpec, examples: int) -> int | None:
    """That are trained as a whole; a trial that takes another's weights over is the rest of that one's place."""
    points = all_points(spec, examples)
    population = spec.pruner.population if isinstance(spec.pruner, PopulationSpec) else None
    limits = [spec.budget.trials, population, None if points is None else len(points)]
    return min((limit for limit in limits if limit is not None), default=None)
