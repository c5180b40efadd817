"""How candidates that were trained again under fresh seeds stand to each other and to the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpsearch.results.layout import FEWEST_SEEDS, Layout, is_usable, two_way
from hpsearch.results.sealed import SealedScore
from hpsearch.results.shrinkage import Shrunk, Spread, dunnett, shrink

TAIL = 0.025


@dataclass(frozen=True)
class Candidate:
    """A trial that was trained again."""

    number: int
    """Of the trial in the study."""
    is_defaults: bool
    """Whether it is the `auto` defaults."""
    searched: float | None
    """Its value in the search itself: chosen among many, so it is not used to estimate how good it is."""
    losses: Mapping[int, float | None]
    """The objective by fresh seed. None or not finite: it failed (diverged, out of memory) under that one. A seed
    that is absent was not trained, or has not ended yet."""
    sealed: Mapping[int, SealedScore] = field(default_factory=dict)
    """What it scores on the test split, by fresh seed; empty without one. Nothing is decided by it."""


@dataclass(frozen=True)
class Compared:
    """A candidate in the verdict; figures are in the objective's unit, None where it could not be compared."""

    number: int
    is_defaults: bool
    searched: float | None
    losses: dict[str, float | None]
    """The objective by fresh seed, as far as it was trained; None: it failed."""
    mean: float | None
    """Over the seeds that count, as measured: the best one's is optimistic."""
    gain: float | None
    """Over the defaults, positive is better in either direction; corrected for having been chosen, so it is not the
    difference of the means. None for the defaults themselves."""
    low: float | None
    high: float | None
    """The 95 % interval of the gain."""
    probability: float | None
    """That it beats the defaults."""
    tied: bool
    """Whether it is another one that cannot be told from the recommended one."""


@dataclass(frozen=True)
class Missing:
    """Trainings that did not come to their ends, by no fault of their params."""

    broken: int
    """Broke off."""
    unbegun: int
    """Were not begun, because too many others failed."""
    reason: str
    """Of the last one that broke off, or else of the last one that failed."""


@dataclass(frozen=True)
class Standing:
    """What is known before it is decided on."""

    candidates: tuple[Compared, ...]
    layout: Layout
    shrunk: Shrunk | None
    """Of the trials of the search that are compared; None if nothing is."""
    failed: dict[int, list[int]]
    """The seeds under which a candidate failed."""
    defaults: int | None
    sign: float
    """1 where smaller is better, else -1."""
    favourite: int | None
    """The best trial of the search, by what the search itself measured."""
    missing: Missing | None = None
    """The trainings that are missing; None if none is."""

    @property
    def unstable(self) -> bool:
        """Whether the search's best failed, or all did."""
        return self.favourite in self.failed or (0 < len(self.candidates) == len(self.failed))

    @property
    def leader(self) -> Compared | None:
        """The best one that was trained often enough."""
        return self.candidates[0] if self.layout.means and self.layout.seeds >= FEWEST_SEEDS else None

    @property
    def chosen(self) -> list[int]:
        """The trials of the search that are compared, in the order of what is believed of them."""
        return [number for number in self.layout.means if number != self.defaults]

    def believed(self, number: int) -> Spread | None:
        """Where the gain of a trial over the defaults is believed to be; None where it has none."""
        if self.shrunk is None or self.defaults not in self.layout.means or number == self.defaults:
            return None
        place = self.chosen.index(number)
        gains = self.shrunk.gains(self.layout.means[self.defaults])
        return Spread(gains.weights, gains.at[place : place + 1], gains.scale, gains.freedom)

    def name(self, number: int) -> str:
        """What a person calls a candidate."""
        return f"the defaults (trial {number})" if number == self.defaults else f"trial {number}"


def standing(candidates: Sequence[Candidate], sign: float, missing: Missing | None = None) -> Standing:
    """Compare candidates; `sign` is 1 where smaller is better, else -1."""
    failed = {
        one.number: sorted(seed for seed, loss in one.losses.items() if not is_usable(loss)) for one in candidates
    }
    failed = {number: seeds for number, seeds in failed.items() if seeds}
    defaults = next((one.number for one in candidates if one.is_defaults), None)
    losses = {
        one.number: {seed: sign * loss for seed, loss in one.losses.items() if loss is not None}
        for one in candidates
        if one.number not in failed
    }
    layout = two_way(losses, defaults)
    chosen = [number for number in layout.means if number != defaults]
    shrunk, gains = None, {}
    if layout.freedom and chosen:
        means = np.array([layout.means[number] for number in chosen])
        shrunk = shrink(means, layout.seeds, layout.residuals, layout.freedom)
        if defaults in layout.means:
            gains = dict(zip(chosen, _gains(shrunk, layout, layout.means[defaults]), strict=True))
    compared = [_compared(one, layout, gains.get(one.number), sign) for one in candidates]
    compared.sort(key=lambda one: _place(one, sign))
    of_search = [one for one in compared if not one.is_defaults and one.searched is not None]
    best = min(of_search, key=lambda one: (_or_last(one.searched, sign), one.number), default=None)
    favourite = best.number if best else None
    return Standing(tuple(compared), layout, shrunk, failed, defaults, sign, favourite, missing)


def _gains(shrunk: Shrunk, layout: Layout, control: float) -> list[tuple[float, float, float, float]]:
    """Gain, low, high and probability of each trial of the search."""
    believed = shrunk.gains(control)
    columns = believed.mean(), *believed.interval(TAIL), believed.above_zero()
    error = (layout.noise or 0.0) * math.sqrt(2 / layout.seeds)
    rows = []
    for number, (gain, low, high, probability) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        if probability > 0.5 and error > 0:
            t = (control - float(shrunk.means[number])) / error
            allowed = dunnett(t, shrunk.means.size, layout.freedom)
            rows.append((gain, low, high, max(0.5, min(probability, allowed))))
        else:
            rows.append((gain, low, high, probability))
    return rows


def _compared(one: Candidate, layout: Layout, gains: tuple[float, float, float, float] | None, sign: float) -> Compared:
    mean = sign * layout.means[one.number] if one.number in layout.means else None
    searched = one.searched if one.searched is not None and math.isfinite(one.searched) else None
    gain, low, high, probability = gains or (None, None, None, None)
    losses = {str(seed): loss if is_usable(loss) else None for seed, loss in sorted(one.losses.items())}
    return Compared(one.number, one.is_defaults, searched, losses, mean, gain, low, high, probability, tied=False)


def _place(one: Compared, sign: float) -> tuple[float, ...]:
    """By gain where there is one; the defaults before what is no better than they are."""
    gain = 0.0 if one.gain is None else one.gain
    return one.mean is None, -gain, not one.is_defaults, _or_last(one.mean, sign), one.number


def _or_last(figure: float | None, sign: float) -> float:
    return math.inf if figure is None else sign * figure
