"""What a study's trials say about its search space: where to look further, and what need not be looked at."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpsearch.results.diagnosis import REMEDIES, Diagnosis
from hpsearch.results.trial import Trial
from hpsearch.spec.space import LIMITS, OPEN_BELOW, FloatRange, IntChoices, IntRange, SearchSpace, Value, Varying

OUTERMOST, OUTER = 0.05, 1 / 3
"""Parts of a range: the best value lies at the edge, and most of the next best ones lie towards it."""
FEWEST_FOR_EDGES = 5
"""Ranked trials below which nothing is said of edges."""
FEWEST = 12
"""Completed trials below which nothing is said of effects."""
SHUFFLES = 400
MOST_SHUFFLED = 200
"""Trials above which the limit of infinitely many stands in for shuffling, which would take seconds."""
MEASURABLE = 0.1
"""An effect at least as large comes about by chance in fewer than this part of the shuffles."""


@dataclass(frozen=True)
class Edge:
    """The best value of a parameter lies at the edge of what was searched."""

    parameter: str
    value: Value
    side: str
    """`low` or `high`."""
    widen_to: dict[str, Any]
    """The range or the choices to search next."""


@dataclass(frozen=True)
class Effect:
    """How much a parameter mattered."""

    parameter: str
    importance: float | None
    """Part of what decides whether a trial is among the best (PED-ANOVA); they add up to 1. None: too few trials."""
    chance: float | None
    """How often shuffled values differ as much between low, middle and high; None: too few trials."""

    @property
    def is_measurable(self) -> bool | None:
        """Whether it had an effect that can be told from chance; None: too few trials to say."""
        return None if self.chance is None else self.chance < MEASURABLE


@dataclass(frozen=True)
class Insight:
    """All of it, of ranked trials: complete ones under one evaluation contract."""

    trials: int
    effects: tuple[Effect, ...]
    """Most important first."""
    edges: tuple[Edge, ...]
    best: Diagnosis | None = None
    """What is wrong with the best trial's fit, unless the edges say otherwise."""

    @property
    def advice(self) -> list[str]:
        """What to do about it, in sentences."""
        said = [] if self.best is None else [f"the best trial {self.best.text}"]
        for edge in self.edges:
            wider = ", ".join(f"{key} {_brief(value)}" for key, value in edge.widen_to.items())
            said.append(
                f"{edge.parameter}: the best value, {_brief(edge.value)}, lies at the {edge.side} end of what was "
                f"searched; widen it to {wider}"
            )
        asked = [effect for effect in self.effects if effect.is_measurable is not None]
        idle = [effect.parameter for effect in asked if not effect.is_measurable]
        if len(idle) > 1 and len(idle) == len(asked):  # then it is the trials that are too few or too much alike
            said.append(f"no parameter's effect could be measured in {self.trials} trials: more would tell")
            return said
        at_an_edge = {edge.parameter for edge in self.edges}
        said += [
            f"{name}: no effect could be measured in {self.trials} trials; fix it to search the rest better"
            for name in idle
            if name not in at_an_edge
        ]
        return said


def insight(
    space: SearchSpace,
    ranked: Sequence[Trial],
    importance: Mapping[str, float],
    diagnosed: Callable[[Trial], Diagnosis | None] = lambda _: None,
) -> Insight:
    """Look at a ranking.

    Args:
        space: What was searched.
        ranked: Best first. Trials that took another's weights over say nothing of their params.
        importance: By parameter; may be empty.
        diagnosed: What is wrong with the fit of one of them, if anything.
    """
    ranked = [trial for trial in ranked if trial.parent is None]
    varying = space.varying()
    chances = {name: _chance(name, ranked) for name in varying} if len(ranked) >= FEWEST else {}
    effects = [Effect(name, importance.get(name), chances.get(name)) for name in varying]
    effects.sort(key=lambda effect: -(effect.importance or 0.0))
    edges = [edge for name, parameter in varying.items() if (edge := _edge(name, parameter, ranked)) is not None]
    best = diagnosed(ranked[0]) if ranked else None
    remedies = {} if best is None else REMEDIES[best.finding]
    if any(remedies.get(edge.parameter, edge.side) != edge.side for edge in edges):
        best = None
    return Insight(len(ranked), tuple(effects), tuple(edges), best)


def _edge(name: str, parameter: Varying, ranked: Sequence[Trial]) -> Edge | None:
    values = [trial.params[name] for trial in ranked if name in trial.params]
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) < FEWEST_FOR_EDGES or len(numbers) < len(values) or name not in LIMITS:
        return None
    ends = _ends(parameter)
    if ends is None:
        return None
    places = [_place(number, *ends, log=_is_log(parameter)) for number in numbers]
    from_end = {"low": places, "high": [1 - place for place in places]}
    for side, distances in from_end.items():
        next_best = distances[: max(3, math.ceil(len(places) / 10))]
        if distances[0] <= OUTERMOST and statistics.median_high(next_best) <= OUTER:
            wider = _wider(name, parameter, side, ends)
            return None if wider is None else Edge(name, values[0], side, wider)
    return None


def _ends(parameter: Varying) -> tuple[float, float] | None:
    if isinstance(parameter, IntRange | FloatRange):
        ends = (float(parameter.low), float(parameter.high))
    else:
        numbers = [float(choice) for choice in parameter.choices if not isinstance(choice, str)]
        ends = (min(numbers, default=0.0), max(numbers, default=0.0))
    return ends if ends[0] < ends[1] else None


def _is_log(parameter: Varying) -> bool:
    if isinstance(parameter, IntRange | FloatRange):
        return parameter.log
    return all(not isinstance(choice, str) and choice > 0 for choice in parameter.choices)


def _place(number: float, low: float, high: float, log: bool) -> float:
    """Where it lies in its range, from 0 to 1."""
    return math.log(number / low) / math.log(high / low) if log else (number - low) / (high - low)


def _wider(name: str, parameter: Varying, side: str, ends: tuple[float, float]) -> dict[str, Any] | None:
    """Half as far again (or one more choice), within the parameter's limits; None where nothing lies beyond."""
    (low, high), (least, most) = ends, LIMITS[name]
    if isinstance(parameter, IntRange | FloatRange):
        factor, summand = (math.sqrt(high / low) if parameter.log else 1.0), (high - low) / 2
    else:  # as far as it is to the next choice
        numbers = sorted(float(choice) for choice in parameter.choices)
        one, other = numbers[:2] if side == "low" else numbers[-2:]
        factor, summand = (other / one if _is_log(parameter) else 1.0), other - one
    if _is_log(parameter):
        beyond = low / factor if side == "low" else high * factor
    else:
        beyond = low - summand if side == "low" else high + summand
    beyond = min(max(beyond, least), most)
    is_whole = isinstance(parameter, IntRange | IntChoices)
    beyond = (math.floor if side == "low" else math.ceil)(beyond) if is_whole else float(f"{beyond:.3g}")
    if low <= beyond <= high or (beyond <= 0 and (name in OPEN_BELOW or _is_log(parameter))):
        return None
    if isinstance(parameter, IntRange | FloatRange):
        return {"low": parameter.low, "high": parameter.high} | {side: beyond}
    return {"choices": sorted({*parameter.choices, beyond})}


def _chance(name: str, ranked: Sequence[Trial]) -> float | None:
    """How often chance alone separates the groups of a parameter's values as much as the trials did.

    The groups are its choices, or the lower, middle and upper third of its values; what is compared is the variance of
    the groups' mean ranks, as in Kruskal and Wallis 1952. Shuffled with a fixed seed: the same trials, the same answer.
    Of many trials, it is their chi-squared limit.
    """
    having = [trial for trial in ranked if name in trial.params]
    values = [trial.params[name] for trial in having]
    if len(values) < FEWEST or len(set(values)) < 2:
        return None
    groups, ranks = _groups(values), _mid_ranks([trial.value for trial in having])
    found, dice, as_large = _spread(groups, ranks), random.Random(0), 0
    if len(values) > MOST_SHUFFLED:
        whole = _spread([[place] for place in range(len(ranks))], ranks)
        return _chi_squared(found * (len(ranks) - 1) / whole, len(groups) - 1) if whole else 1.0
    for _ in range(SHUFFLES):
        dice.shuffle(ranks)
        as_large += _spread(groups, ranks) >= found
    return (as_large + 1) / (SHUFFLES + 1)


def _mid_ranks(values: Sequence[float | None]) -> list[float]:
    """Of values in order; equal ones have the same, or the order of their trials would be taken for an effect."""
    runs = [len(list(run)) for _, run in itertools.groupby(values)]
    ends = itertools.accumulate(runs)
    return [end - (run + 1) / 2 for run, end in zip(runs, ends, strict=True) for _ in range(run)]


def _chi_squared(x: float, freedom: int) -> float:
    """How often a chi-squared variable with 1, 2 or 3 degrees of freedom is larger than x."""
    if freedom == 2:
        return math.exp(-x / 2)
    return math.erfc(math.sqrt(x / 2)) + (math.sqrt(2 * x / math.pi) * math.exp(-x / 2) if freedom > 1 else 0.0)


def _groups(values: Sequence[Value]) -> list[list[int]]:
    """Places of equal values when there are few of them, else of the thirds."""
    kinds = sorted(set(values), key=str)
    if len(kinds) <= 4:
        return [[place for place, value in enumerate(values) if value == kind] for kind in kinds]
    order = sorted(range(len(values)), key=lambda place: float(values[place]))
    third = len(order) / 3
    return [order[round(part * third) : round((part + 1) * third)] for part in range(3)]


def _spread(groups: Sequence[Sequence[int]], ranks: Sequence[float]) -> float:
    overall = statistics.fmean(ranks)
    return sum(len(group) * (statistics.fmean(ranks[place] for place in group) - overall) ** 2 for group in groups)


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_brief, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
