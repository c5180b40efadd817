"""Specs, trials and reports for tests: say what matters, the rest is filled in."""

from __future__ import annotations

from typing import Any

from hpsearch.results import Report, Trial, TrialState
from hpsearch.spec import StudySpec

SPACE: dict[str, Any] = {
    "epochs": {"low": 1, "high": 4},
    "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
    "batch_size": {"choices": [1, 2, 4]},
}


def spec_fields(**changes: Any) -> dict[str, Any]:
    """A valid spec as a person writes it; each change replaces one top-level field."""
    fields: dict[str, Any] = {
        "name": "tickets",
        "model": {"base": "models/pydoc-llama"},
        "data": {"train": "data/tickets/train.jsonl", "validation": "data/tickets/validation.jsonl"},
        "search_space": SPACE,
    }
    return {**fields, **changes}


def a_spec(**changes: Any) -> StudySpec:
    return StudySpec.model_validate(spec_fields(**changes))


def a_report(exposure: int = 100, loss: float = 2.0, **changes: Any) -> Report:
    fields: dict[str, Any] = {
        "exposure": exposure,
        "epoch": exposure / 100,
        "validation_loss": loss,
        "validation_bits_per_byte": loss / 2,
        "validation_token_accuracy": 1 / (1 + loss),
        "validation_prompt_loss": None,
        "training_loss": None if exposure == 0 else loss,
        "tokens": exposure * 10,
        "seconds": exposure / 10,
    }
    return Report(**{**fields, **changes})


def a_trial(number: int = 0, value: float | None = 2.0, **changes: Any) -> Trial:
    """A completed trial, unless `state` says otherwise."""
    fields: dict[str, Any] = {
        "number": number,
        "state": TrialState.COMPLETE,
        "params": {"epochs": 2},
        "value": value,
        "evaluation_contract": "contract",
        "best_epoch": 1.0,
        "adapter": f"artifacts/{number}",
        "finished_at": 1000.0 + number,
    }
    return Trial(**{**fields, **changes})
