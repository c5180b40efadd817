"""What a sampler is shown of the past: the trials that teach, as if nothing had been interrupted.

Optuna's samplers skip failed trials, so a region where every trial diverges would be tried for ever. Here a trial
that failed through its own params is shown as one with the worst value so far. Lost and cancelled trials and ones
that failed for other reasons are not shown. Neither are those that took another's weights over: their loss is not
what their params come to. A trial that was tried again after its worker was lost stands in its
first attempt's place, with what the sampler noted on that one, so a restart changes no later draw.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpsearch.results import Failure
from hpsearch.results.attributes import CONTINUES, FAILURE, PARENT, RETRY_OF

TEACHES = frozenset({Failure.DIVERGED, Failure.OUT_OF_MEMORY, Failure.INFEASIBLE})
"""Failures through the params' own fault."""

NOTES = ("cma:", "curves:")
"""What samplers keep on a trial begins so."""


def failure_of(trial: FrozenTrial) -> str | None:
    """Why it failed; None unless it has: the reason is written before the state."""
    found: str | None = trial.user_attrs.get(FAILURE) if trial.state == TrialState.FAIL else None
    return found


def continued(trials: Iterable[FrozenTrial]) -> frozenset[int]:
    """The numbers of pruned trials that others go on with, or try again: each of those has the whole curve."""
    by_number = {trial.number: trial for trial in trials}
    found = set[int]()
    for trial in by_number.values():
        earlier = None if trial.state in (TrialState.WAITING, TrialState.FAIL) else _same_draw(trial)
        while earlier is not None:
            found.add(earlier)
            earlier = _same_draw(by_number[earlier])
    return frozenset(found)


class Taught:
    """An Optuna study with other trials; whatever else is asked of it, the study itself answers."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """The trials that teach."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        del use_cache
        chosen = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen


def lesson(
    trials: Sequence[FrozenTrial], current: int, direction: str, lent: Sequence[FrozenTrial] = ()
) -> tuple[list[FrozenTrial], int]:
    """The trials that teach the draw of trial `current`, and the number that this one has among them.

    Args:
        trials: All trials of the study, by number.
        current: The number of the trial to be drawn.
        direction: `minimize` or `maximize`.
        lent: Completed trials of other studies; they stand before all.
    """
    places, gone_on = _places(trials, len(lent)), continued(trials)
    by_number = {trial.number: trial for trial in trials}
    shown = [_at(trial, place) for place, trial in enumerate(lent)]
    for trial in trials:
        if trial.number in gone_on or PARENT in trial.user_attrs:
            continue
        if trial.number != current and trial.state not in (TrialState.WAITING, TrialState.FAIL):
            taught = _at(trial, places[trial.number])
            taught.system_attrs = {**_notes_of_earlier_attempts(trial, by_number), **trial.system_attrs}
            shown.append(taught)
    _make_comparable(shown, direction)
    values = [trial.value for trial in shown if trial.state == TrialState.COMPLETE and trial.value is not None]
    if values:
        worst = max(values) if direction == "minimize" else min(values)
        shown += [_as_bad(trial, places[trial.number], worst) for trial in trials if _teaches_to_stay_away(trial)]
    return sorted(shown, key=lambda trial: trial.number), places[current]


def _teaches_to_stay_away(trial: FrozenTrial) -> bool:
    own = PARENT not in trial.user_attrs
    return own and failure_of(trial) in TEACHES and bool(trial.params)


def _as_bad(trial: FrozenTrial, place: int, worst: float) -> FrozenTrial:
    taught = _at(trial, place)
    taught.state, taught.values = TrialState.COMPLETE, [worst]
    # The value says it; Optuna's Gaussian process wants constraints on all trials or on none.
    taught.system_attrs = {key: value for key, value in trial.system_attrs.items() if key != "constraints"}
    return taught


def _make_comparable(trials: Iterable[FrozenTrial], direction: str) -> None:
    """Where evaluation contracts differ, a value says only how good a trial is among those of its own contract."""
    groups: dict[Any, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            groups.setdefault(trial.user_attrs.get("evaluation_contract"), []).append(trial)
    if len(groups) < 2:
        return
    for group in groups.values():
        group.sort(key=lambda trial: (trial.value or 0.0, trial.number), reverse=direction == "maximize")
        for rank, trial in enumerate(group):
            part = (rank + 0.5) / len(group)
            trial.values = [part if direction == "minimize" else 1 - part]


def _at(trial: FrozenTrial, place: int) -> FrozenTrial:
    """The trial under another number, without its links: those are numbers of the study."""
    moved = copy.copy(trial)
    moved.number = place
    moved.user_attrs = {key: value for key, value in trial.user_attrs.items() if key not in (RETRY_OF, CONTINUES)}
    return moved


def _places(trials: Iterable[FrozenTrial], first: int) -> dict[int, int]:
    """Each trial's place among the draws: what repeats or continues a trial has that one's."""
    places: dict[int, int] = {}
    free = first
    for trial in trials:
        repeats = _same_draw(trial)
        if repeats is None:
            places[trial.number] = free
            free += 1
        else:
            places[trial.number] = places[repeats]
    return places


def _same_draw(trial: FrozenTrial) -> int | None:
    """The earlier trial whose params it has."""
    found: int | None = trial.user_attrs.get(RETRY_OF, trial.user_attrs.get(CONTINUES))
    return found


def _notes_of_earlier_attempts(trial: FrozenTrial, by_number: dict[int, FrozenTrial]) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    while (repeats := _same_draw(trial)) is not None:
        trial = by_number[repeats]
        notes = {**{key: value for key, value in trial.system_attrs.items() if key.startswith(NOTES)}, **notes}
    return notes
