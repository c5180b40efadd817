"""What the API says of a verdict."""

from __future__ import annotations

from typing import Literal

from hpsearch.api.views import View


class ComparedView(View):
    """A trial that was trained again under fresh seeds, beside the `auto` defaults."""

    number: int
    is_defaults: bool
    searched: float | None
    """Its value in the search, which it was chosen by; null: it was stopped there."""
    losses: dict[str, float | None]
    """Its value under each fresh seed; null: it failed there."""
    mean: float | None
    """Of those; null: it failed under one of them."""
    gain: float | None
    """How much better than the defaults it is expected to be, after allowing for its having been chosen as the best."""
    low: float | None
    """Of the 95 % interval of the gain."""
    high: float | None
    probability: float | None
    """That it beats the defaults."""
    tied: bool
    """Whether it can't be told from the recommended one."""


class OnTestView(View):
    """What the recommended trial scores on the test split, which nothing was chosen by."""

    examples: int
    seeds: int
    """Fresh seeds that the figures are means over."""
    value: float | None
    """The objective there; null: it is not finite, or the split could not be read."""
    defaults: float | None
    """That of the defaults; null where they are recommended, or have none."""
    gain: float | None
    """How much better than the defaults it is there, after allowing for its having been chosen."""
    low: float | None
    """Of the 95 % interval of the gain, over other examples like these and other seeds."""
    high: float | None
    unread: str | None
    """Why the split could not be read."""


class VerdictView(View):
    """Whether the best trials are better than the defaults, or were lucky."""

    outcome: Literal["better", "unclear", "defaults", "unstable", "incomplete"]
    text: str
    recommended: int | None
    """Number of the trial to use."""
    seeds: int
    """Fresh seeds that all were trained under."""
    noise: float | None
    """By how much a value differs from one seed to the next, beside what a seed does to all: standard deviation."""
    candidates: list[ComparedView]
    """Best first."""
    test: OnTestView | None = None
    """Where the study has a test split (`data.test`)."""
    outdated: bool
    """Whether another trial has become the best one since."""
