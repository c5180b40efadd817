"""Trials as they are read from an Optuna study."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpsearch.crash import crash_point
from hpsearch.errors import TrialNotFound
from hpsearch.results import Failure, Report, Trial, TrialState
from hpsearch.results.attributes import (
    ASIDE,
    BASELINE,
    CONTINUES,
    DEVICE,
    FAILURE,
    FAILURE_TEXT,
    FORGIVEN,
    INHERITED_AT,
    PARENT,
    PRUNED_AT,
    PRUNED_BECAUSE,
    REPLACES,
    RETRY_OF,
    SPARED,
    STOPPED_BY,
    VERDICT,
)
from hpsearch.search.taught import failure_of


def confirmation_of(name: str) -> str:
    """What Optuna calls the study of the trials that confirm a study's; no study of ours is called so."""
    return f"{name}+confirmation"


def load(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study | None:
    """The Optuna study of this name; None before its search began."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def delete(storage: optuna.storages.BaseStorage, name: str) -> None:
    """Forget the study's trials and those that confirm them; nothing happens when there are none."""
    for each in (confirmation_of(name), name):
        with contextlib.suppress(KeyError):
            optuna.delete_study(study_name=each, storage=storage)


def close_open(storage: optuna.storages.BaseStorage, name: str, text: str) -> list[int]:
    """Nobody drives the study, and nobody will: what was lined up or interrupted is not tried. Their numbers.

    What another process closes meanwhile is not among them.
    """
    open_states = (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING)
    closed: dict[str, list[int]] = {}
    for each in (name, confirmation_of(name)):
        study = load(storage, each)
        for frozen in study.get_trials(deepcopy=False, states=open_states) if study else []:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                decide_failure(storage, frozen._trial_id, Failure.CANCELLED, text)
                storage.set_trial_state_values(frozen._trial_id, optuna.trial.TrialState.FAIL)
                closed.setdefault(each, []).append(frozen.number)
    return closed.get(name, [])


def decide_failure(storage: optuna.storages.BaseStorage, trial_id: int, failure: Failure, text: str) -> None:
    """Keep that a trial fails next, and why: whoever dies before it has is followed by one that ends it so."""
    storage.set_trial_user_attr(trial_id, FAILURE_TEXT, text[:2000])
    storage.set_trial_user_attr(trial_id, FAILURE, str(failure))
    crash_point("after_failure")


def decided_failure(frozen: FrozenTrial) -> tuple[Failure, str] | None:
    """How a trial that has not ended is to fail; None when that was not decided."""
    attributes = frozen.user_attrs
    return (Failure(attributes[FAILURE]), attributes.get(FAILURE_TEXT, "")) if FAILURE in attributes else None


def interrupt_running(storage: optuna.storages.BaseStorage, name: str) -> None:
    """Nobody drives the study: its running trials wait to be handed out again, under their numbers."""
    for each in (name, confirmation_of(name)):
        study = load(storage, each)
        for frozen in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)) if study else []:
            storage.set_trial_state_values(frozen._trial_id, optuna.trial.TrialState.WAITING)


def trials(study: optuna.Study | None, curves: bool = True) -> list[Trial]:
    """All trials, by number; without `curves`, with no reports: of thousands of trials, those are what takes time."""
    return [] if study is None else [as_trial(frozen, curves) for frozen in study.get_trials(deepcopy=False)]


def page(
    study: optuna.Study | None, limit: int, after: int | None, state: TrialState | None
) -> tuple[list[Trial], bool]:
    """At most `limit` trials behind the number `after`, and whether there are more; no others are looked into."""
    states = None if state is None else (optuna.trial.TrialState[state],)
    every = [] if study is None else study.get_trials(deepcopy=False, states=states)
    found = [frozen for frozen in every if after is None or frozen.number > after]
    return [as_trial(frozen) for frozen in found[:limit]], len(found) > limit


def trial(study: optuna.Study | None, number: int) -> Trial:
    """One trial; TrialNotFound without it."""
    every = [] if study is None else study.get_trials(deepcopy=False)
    if number >= len(every):
        raise TrialNotFound(f"the study has no trial {number}")
    return as_trial(every[number])


def baseline(study: optuna.Study | None) -> dict[str, Any] | None:
    """What the untouched base model scored; None until a worker has evaluated it."""
    return None if study is None else study.user_attrs.get(BASELINE)


def verdict(study: optuna.Study | None) -> dict[str, Any] | None:
    """What the last confirmation said; None without any."""
    return None if study is None else study.user_attrs.get(VERDICT)


def forgiven(study: optuna.Study | None) -> frozenset[int]:
    """The numbers of trials that use up nothing of the budget, for a person has the search go on since."""
    return frozenset(() if study is None else study.user_attrs.get(FORGIVEN, ()))


def aside(study: optuna.Study | None) -> dict[str, dict[str, Any]]:
    """Devices that get no trials for a while, by name: `until` (seconds since the epoch) and `reason`."""
    return {} if study is None else study.user_attrs.get(ASIDE, {})


def as_trial(frozen: FrozenTrial, curve: bool = True) -> Trial:
    """One of Optuna's trials in our words, with or without its reports."""
    attributes: Mapping[str, Any] = frozen.user_attrs
    state = TrialState(frozen.state.name)
    # Given params are there before the rest is drawn: while the trial waits, or after a crash in `ask`. Once it has
    # begun, some of them may have turned out not to matter.
    given = {} if "config" in attributes else frozen.system_attrs.get("fixed_params", {})
    params = {**given, **frozen.params}
    failure = failure_of(frozen)
    return Trial(
        number=frozen.number,
        state=state,
        params=params,
        value=frozen.value if state == TrialState.COMPLETE else None,
        reports=tuple(Report(**report) for report in attributes.get("curve", ())) if curve else (),
        config=attributes.get("config"),
        failure=failure,
        failure_text=None if failure is None else attributes.get(FAILURE_TEXT),
        origin=attributes.get("origin", "search"),
        retry_of=attributes.get(RETRY_OF),
        continues=attributes.get(CONTINUES),
        carried=attributes.get("carried", 0),
        parent=attributes.get(PARENT),
        inherited_at=attributes.get(INHERITED_AT),
        replaces=attributes.get(REPLACES),
        pruned_because=attributes.get(PRUNED_BECAUSE),
        is_spared=attributes.get(SPARED, False),
        stopped_by=attributes.get(STOPPED_BY),
        attempts=attributes.get("attempts", 0),
        device=attributes.get(DEVICE),
        lost=attributes.get("lost", 0),
        orphaned=attributes.get("orphaned", 0),
        is_suspect=attributes.get("suspect", False),
        reached=attributes.get("reached", 0),
        pruned_at=attributes.get(PRUNED_AT),
        cut_short=attributes.get("cut_short", False),
        replay=attributes.get("replay"),
        best_epoch=attributes.get("best_epoch"),
        adapter=attributes.get("adapter"),
        evaluation_contract=attributes.get("evaluation_contract"),
        reused_from=attributes.get("reused_from"),
        started_at=_timestamp(frozen.datetime_start),
        finished_at=_timestamp(frozen.datetime_complete),
    )


def heritage(trial: Trial) -> dict[str, Any]:
    """The attributes of another trial that begins where this one did: with the weights of its parent."""
    carried = [report.as_json() for report in trial.reports[: trial.carried]]
    link = {PARENT: trial.parent, INHERITED_AT: trial.inherited_at, REPLACES: trial.replaces}
    return {**link, "curve": carried, "carried": len(carried)}


def _timestamp(naive: dt.datetime | None) -> float | None:
    """Optuna 5 hands out naive local times."""
    return None if naive is None else naive.timestamp()
