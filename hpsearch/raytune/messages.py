"""What a device tells a trial, and a trial tells the driver.

Tune flattens dictionaries in results, so a message travels as one JSON string under one key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hpsearch.results import Failure, Report

KEY = "message"


@dataclass(frozen=True)
class Reported:
    """The trial was evaluated and goes on unless told otherwise."""

    report: Report
    contract: str
    warnings: tuple[str, ...] = ()
    """What a person should know of the data; with the baseline only."""


@dataclass(frozen=True)
class Finished:
    """The trial ran to its end; its best weights are saved."""

    best: Report
    contract: str
    adapter: str


@dataclass(frozen=True)
class Failed:
    """The trial can't go on."""

    failure: Failure
    text: str


@dataclass(frozen=True)
class Released:
    """The device let go of the trial between two steps; where it stood is kept, and it can go on from there."""

    text: str


@dataclass(frozen=True)
class Lost:
    """The device's process died under the trial, or no device took it on."""

    text: str


@dataclass(frozen=True)
class Removed:
    """The device was told to drop the trial while somebody still waited for its next message."""


Message = Reported | Finished | Failed | Released | Lost | Removed


def encode(message: Message) -> str:
    """As JSON."""
    fields: dict[str, Any] = {
        name: value.as_json() if isinstance(value, Report) else value for name, value in vars(message).items()
    }
    return json.dumps({"kind": type(message).__name__, **fields})


def decode(text: str) -> Message:
    """The message that was encoded."""
    fields = json.loads(text)
    kind = fields.pop("kind")
    if kind == "Reported":
        return Reported(Report(**fields["report"]), fields["contract"], tuple(fields["warnings"]))
    if kind == "Finished":
        return Finished(Report(**fields["best"]), fields["contract"], fields["adapter"])
    if kind == "Failed":
        return Failed(Failure(fields["failure"]), fields["text"])
    if kind == "Released":
        return Released(fields["text"])
    if kind == "Lost":
        return Lost(fields["text"])
    return Removed()
