"""How much may be spent. Whatever limit is reached first ends the search; its trials stop at their next report."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from hpsearch.spec.closed import Closed
from hpsearch.spec.space import refuse_truth

_PATTERN = r"(\d+(\.\d+)?[smhd])+"
_DURATION = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": f"^{_PATTERN}$"},
        {"type": "null"},
    ]
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """`"90m"`, `"1h30m"` or a number of seconds."""
    refuse_truth(value)
    if isinstance(value, str) and re.fullmatch(_PATTERN, value):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", value))
    if isinstance(value, str) and not re.fullmatch(r"[\d.eE+-]+", value):
        raise ValueError("seconds, or a duration such as 90m or 1h30m")
    return value


class UntilSpec(Closed):
    """An end that depends on what was found."""

    no_improvement_in: int = Field(ge=1, le=100_000)
    """The search ends when so many trials in a row were no better than the best before them."""


Seconds = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_seconds), WithJsonSchema(_DURATION)]


class BudgetExtension(Closed):
    """What is added to the limits of a study's budget."""

    trials: int | None = Field(None, ge=1, le=100_000)
    """So many trials more."""
    wall_clock: Seconds = None
    """Seconds more, or a duration such as `90m`."""
    gpu_hours: float | None = Field(None, gt=0)
    """Hours of device time more."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens more."""

    @model_validator(mode="after")
    def _check_something_is_added(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("say what to add: trials, wall_clock, gpu_hours or tokens")
        return self


class BudgetSpec(Closed):
    """Limits of the whole study."""

    trials: int | None = Field(20, ge=1, le=100_000)
    """Trials that ran to a result: completed, pruned or diverged. Retries of lost workers are free."""
    wall_clock: Seconds = None
    """Seconds that the study holds devices, or a duration such as `90m` or `8h`; no queue, pause or wait for a turn."""
    gpu_hours: float | None = Field(None, gt=0)
    """Hours of device time, summed over trials (without a GPU: hours of a core)."""
    tokens: int | None = Field(None, ge=1)
    """Training tokens, summed over trials."""
    failures: int | None = Field(None, ge=1, le=100_000)
    """The search fails after so many failed trials: an error, no memory, a lost worker, bad data. Not diverged ones."""
    until: UntilSpec | None = None
    """An end that depends on what was found, beside the limits."""

    @model_validator(mode="after")
    def _check_some_limit(self) -> Self:
        if self.trials is None and self.wall_clock is None and self.gpu_hours is None and self.tokens is None:
            raise ValueError("give at least one limit: trials, wall_clock, gpu_hours or tokens")
        return self
