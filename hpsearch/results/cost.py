"""What a study will cost, at most, before it is queued."""

from __future__ import annotations

from dataclasses import dataclass

from hpsearch.spec.space import IntChoices, IntRange
from hpsearch.spec.study import StudySpec


@dataclass(frozen=True)
class Rate:
    """How fast a trial of an earlier study on the same base model was trained."""

    study: str
    number: int
    tokens_per_second: float
    """Training tokens by seconds of its device, evaluations included."""


@dataclass(frozen=True)
class Cost:
    """Training tokens, about: chat templates differ. None: not to be told."""

    epoch: int | None
    """One pass over the training examples, each cut at `max_length`."""
    defaults: int | None
    """A trial of the `auto` defaults, as far as the search space has them."""
    search: int | None
    """The whole search, if no trial stops early and each has the most epochs. None too without a limit on either."""
    confirmation: int | None
    """What confirms the best trials, at most; 0 without."""
    rate: Rate | None
    """None where no trial on this model has ended yet."""
    gpu_hours: float | None = None
    """The budget's limit for the search."""

    @property
    def device_hours(self) -> float | None:
        """Search and confirmation at that rate."""
        if self.rate is None or self.confirmation is None:
            return None
        speed = 3600 * self.rate.tokens_per_second
        limits = [self.gpu_hours, None if self.search is None else self.search / speed]
        search = min((limit for limit in limits if limit is not None), default=None)
        return None if search is None else search + self.confirmation / speed


def cost(spec: StudySpec, tokens: int | None, default_epochs: int, rate: Rate | None) -> Cost:
    """What a study will cost.

    Args:
        spec: Of the study.
        tokens: Of its training examples; None if they can't be counted.
        default_epochs: What `auto` means for these.
        rate: Known from an earlier study.
    """
    if tokens is None:
        return Cost(None, None, None, None, rate, spec.budget.gpu_hours)
    usual, most = _epochs(spec, default_epochs)
    trial = tokens * most
    limits = [spec.budget.tokens, None if spec.budget.trials is None else spec.budget.trials * trial]
    search = min((limit for limit in limits if limit is not None), default=None)
    trainings = 0 if spec.confirm is None else (spec.confirm.top + 1) * spec.confirm.seeds
    return Cost(tokens, tokens * usual, search, trainings * trial, rate, spec.budget.gpu_hours)


def _epochs(spec: StudySpec, default: int) -> tuple[int, int]:
    """Of a trial of the defaults, and the most of any."""
    asked = spec.search_space.epochs
    if isinstance(asked, IntRange):
        return int(asked.nearest(default)), asked.high
    if isinstance(asked, IntChoices):
        return int(asked.nearest(default)), max(asked.choices)
    fixed = default if asked == "auto" else asked
    return fixed, fixed
