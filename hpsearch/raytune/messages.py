"""What a trial tells a device to be taken on; what the device tells the trial, and the trial the driver.

Tune flattens dictionaries in results, so a message travels as one JSON string under one key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_args

from hpsearch.errors import HpsearchError, InvalidInput, OutdatedCheckpoint, TrialFailure
from hpsearch.results import Failure, Report
from hpsearch.results.sealed import SealedScore
from hpsearch.spec.objective import Metric

KEY = "message"

STALLED_SECONDS = 600.0
"""What `Slot.stalled_seconds` is unless the operator says otherwise, and on a device without trials."""


def key_of(study: str, number: int, attempt: int, tune_id: str) -> str:
    """How a device names one attempt at a trial; Tune's own id sets two databases on one cluster apart."""
    return f"{study}/{number}/{attempt}/{tune_id}"


def trial_of(key: str) -> str:
    """`study/number`."""
    return "/".join(key.split("/")[:2])


def fields_of(key: str) -> dict[str, str | int]:
    """What a log line says of a trial."""
    study, number, attempt, _ = key.split("/")
    return {"study": study, "trial": int(number), "attempt": int(attempt)}


@dataclass(frozen=True)
class Slot:
    """What a device needs to know of a trial."""

    config: str
    """FinetuneConfig as JSON."""
    metric: Metric
    """What the best report is best by."""
    adapter: str
    """Folder for the best weights."""
    progress: str
    """Folder of its snapshots."""
    attempt: int
    """How often it was handed out, this time included."""
    reported: int | None
    """The exposure of its last report that is known; None before any."""
    capacity: int
    """Trials that may share the device."""
    inherits: str | None = None
    """Folder of the snapshot of another trial, from which it begins."""
    hands_over_at: int | None = None
    """Where its first report from this exposure on leaves it, other trials may begin."""
    hands_over_to: str = ""
    """Folder of what it hands over."""
    cache: str | None = None
    """Folder of tokenised data that all workers share."""
    prove: bool = False
    """Whether its first steps are made again alone."""
    stalled_seconds: float = STALLED_SECONDS
    """A device that makes no progress for so long is replaced."""
    alone_until: int | None = None
    """It has the device for itself until a report beyond this exposure was dealt with; None: it may have company."""


@dataclass(frozen=True)
class Placed:
    """A device has taken the trial on."""

    device: str
    """As people are told of it."""
    node: str
    """Ray's id of the device's node."""
    pid: int
    """The device's process."""
    actor: str
    """The name of its actor."""


@dataclass(frozen=True)
class Barred:
    """All devices that the trial's share gives it are set aside: the share is held, so that nobody gets them."""

    devices: tuple[str, ...]
    leaves: bool = False
    """Whether it is their node that gets no work any more, because it is about to go."""


@dataclass(frozen=True)
class InLine:
    """The trial's process waits for a device that one trial has for itself, or for one that it has to have so."""


@dataclass(frozen=True)
class Reported:
    """The trial was evaluated and goes on unless told otherwise."""

    report: Report
    contract: str
    warnings: tuple[str, ...] = ()
    """What a person should know of the data; with the baseline only."""


@dataclass(frozen=True)
class Replayed:
    """The trial's first steps were made again alone."""

    steps: int
    company: int
    """Trials in the largest pass of these steps, itself included."""
    deviation: float
    """The largest relative one of a step's training loss."""


@dataclass(frozen=True)
class Finished:
    """The trial ran to its end; its best weights are saved."""

    best: Report
    contract: str
    adapter: str
    sealed: SealedScore | None = None
    """Of these weights, where the trial's config names a test split."""


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
    died: bool = True
    """Whether the process died, and all that was there with it."""


@dataclass(frozen=True)
class Removed:
    """The device was told to drop the trial while somebody still waited for its next message."""


Message = Placed | Barred | InLine | Reported | Replayed | Finished | Failed | Released | Lost | Removed


_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> str:
    """As JSON."""
    fields: dict[str, Any] = {
        name: value.as_json() if isinstance(value, Report | SealedScore) else value
        for name, value in vars(message).items()
    }
    return json.dumps({"kind": type(message).__name__, **fields})


def decode(text: str) -> Message:
    """The message that was encoded."""
    fields = json.loads(text)
    kind: type[Message] = _KINDS[fields.pop("kind")]
    for name in ("report", "best"):
        if name in fields:
            fields[name] = Report(**fields[name])
    for name in ("warnings", "devices"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if fields.get("sealed") is not None:
        fields["sealed"] = SealedScore.of_json(fields["sealed"])
    if "failure" in fields:
        fields["failure"] = Failure(fields["failure"])
    return kind(**fields)


def failed(error: Exception) -> Failed:
    """An error as the trial's end."""
    if isinstance(error, TrialFailure):
        return Failed(Failure(error.code), str(error))
    if isinstance(error, OutdatedCheckpoint):
        return Failed(Failure.OUTDATED_CHECKPOINT, str(error))
    if isinstance(error, InvalidInput):
        return Failed(Failure.INVALID_DATA, str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, while loading
        return Failed(Failure.OUT_OF_MEMORY, str(error))
    text = str(error) if isinstance(error, HpsearchError) else f"{type(error).__name__}: {error}"
    return Failed(Failure.ERROR, text)
