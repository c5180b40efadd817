"""What a study tells of its baseline and of the ends of its trials, and what of that it has still to tell.

Each is kept first, and told next. Whoever dies in between is followed by one that finds out what was not told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import optuna

from hpsearch.results import Report, Trial, TrialState
from hpsearch.results.attributes import WARNINGS
from hpsearch.search import history

Happening = tuple[str, dict[str, Any]]
"""The kind and the details of an event."""

Told = Callable[[Collection[str]], Iterable[Happening]]
"""Asked for all events of some kinds that the study has told."""

_ENDS = {
    TrialState.COMPLETE: "trial.completed",
    TrialState.PRUNED: "trial.pruned",
    TrialState.FAIL: "trial.failed",
}
_BASELINE, _WARNING = "study.baseline", "study.warning"
KINDS = frozenset({*_ENDS.values(), _BASELINE, _WARNING})


def of_baseline(study: optuna.Study) -> list[Happening]:
    """Of the base model's figures, and of the warnings that came with them; nothing before they are there."""
    figures = {name: value for name, value in (history.baseline(study) or {}).items() if name.startswith("validation_")}
    if not figures:
        return []
    return [(_BASELINE, figures), *((_WARNING, {"text": text}) for text in study.user_attrs.get(WARNINGS, ()))]


def of_end(trial: Trial) -> Happening:
    """Of a trial that has ended."""
    details: dict[str, Any] = {"number": trial.number}
    if trial.state == TrialState.COMPLETE:
        best = [report for report in trial.reports if report.epoch == trial.best_epoch]
        cost = {"device_seconds": trial.device_seconds, "tokens": trial.tokens}
        source = cost if trial.reused_from is None else {"reused_from": trial.reused_from}
        details |= {"value": trial.value, **(outline(best[-1]) if best else {}), **source}
    elif trial.state == TrialState.PRUNED:
        details |= {"exposure": trial.exposure, **({"text": trial.pruned_because} if trial.pruned_because else {})}
    else:
        details |= {"failure": trial.failure or "error", "text": trial.failure_text or ""}
    return _ENDS[trial.state], details


def outline(report: Report) -> dict[str, Any]:
    """What is told of a report."""
    return {"exposure": report.exposure, "epoch": report.epoch, "training_loss": report.training_loss}


def untold(study: optuna.Study | None, told: Told) -> list[Happening]:
    """What has happened and was not told, in that order: a trial ends once; a warning is the same if it says the same.

    Args:
        study: None before its search began.
        told: What it has told.
    """
    if study is None:
        return []
    ended = [trial for trial in history.trials(study) if trial.state.is_finished]
    ended.sort(key=lambda trial: (trial.finished_at or 0.0, trial.number))
    known = {_what(*each) for each in told(KINDS)}
    return [each for each in (*of_baseline(study), *map(of_end, ended)) if _what(*each) not in known]


def _what(kind: str, details: dict[str, Any]) -> tuple[Any, ...]:
    return kind, details.get("number"), details.get("text") if kind == _WARNING else None
