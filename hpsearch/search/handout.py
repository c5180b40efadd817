"""What a trial is given when it is handed out: where it stands, and with which config it goes on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from pydantic import ValidationError

from hpsearch.results import Trial
from hpsearch.results.attributes import CONTINUES, TRAINS
from hpsearch.results.trial import first_of
from hpsearch.search.answers import Asked
from hpsearch.search.draw import Points
from hpsearch.spec.defaults import hyperparameters
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.space import Params


def handed_out(
    trial: optuna.Trial, params: Params, trials: Sequence[Trial], points: Points, hands_over_at: int | None
) -> Asked:
    """A trial to run, or to go on with.

    Args:
        trial: It runs from now on.
        params: Its own.
        trials: All of the study, by number.
        points: Of the study's search space.
        hands_over_at: See `Asked`.
    """
    attributes = trial.user_attrs
    before = trials[attributes.get(CONTINUES, trial.number)]
    curve = attributes.get("curve", [])
    inherits = None if before.parent is None or before.inherited_at is None else (before.parent, before.inherited_at)
    config = _config(attributes.get("config") or before.config or attributes.get(TRAINS))
    if config is None and inherits is not None:
        config = _heirs(trials, inherits, params, points)
    return Asked(
        trial.number,
        params,
        attributes.get("origin", "search"),
        attributes.get("attempts", 0) + 1,
        curve[-1]["exposure"] if curve else None,
        config,
        first_of(before, trials).number,
        inherits,
        hands_over_at,
        trials[trial.number].alone_until,
    )


def must_begin_anew(trial: optuna.Trial, asked: Asked, kept: Callable[[Asked], bool]) -> bool:
    """Whether it continues a pruned trial, was not trained under its own number yet, and nothing to go on from is kept.

    Any other trial that finds its snapshot gone has lost what it had trained, and fails of it.
    """
    attributes = trial.user_attrs
    is_untrained = CONTINUES in attributes and attributes["carried"] == len(attributes["curve"])
    return is_untrained and bool(asked.reported) and not kept(asked)


def anew(trial: optuna.Trial, asked: Asked) -> Asked:
    """The same trial from its start, without the reports that it was to go on from."""
    trial.set_user_attr("carried", 0)  # first: of a curve without them, none could be carried
    trial.set_user_attr("curve", [])
    return dataclasses.replace(asked, reported=None)


def _heirs(trials: Sequence[Trial], inherits: tuple[int, int], params: Params, points: Points) -> FinetuneConfig | None:
    """The config of one that goes on from another: as that one's up to there, and then with its own params."""
    parent, exposure = inherits
    known = _config(trials[parent].config)
    return None if known is None else known.changed(exposure, hyperparameters(points.spec, params, points.examples))


def _config(stored: dict[str, Any] | None) -> FinetuneConfig | None:
    """As it was kept; None when there is none, or when it is of a version that wrote other fields."""
    try:
        return None if stored is None else FinetuneConfig.model_validate(stored)
    except ValidationError:
        return None
