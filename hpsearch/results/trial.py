"""What is known of one trial."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpsearch.results.schedule import schedule_of
from hpsearch.spec.space import Params


class TrialState(enum.StrEnum):
    """Where a trial stands; the names are Optuna's."""

    WAITING = "WAITING"
    """Params are chosen, nobody trains them: not yet, or not any more until it is gone on with."""
    RUNNING = "RUNNING"
    """A worker trains it."""
    COMPLETE = "COMPLETE"
    """It ran to its end and has a value."""
    PRUNED = "PRUNED"
    """It was stopped because it was not promising; it is never ranked."""
    FAIL = "FAIL"
    """It ended without a value; `failure` says why."""

    @property
    def is_finished(self) -> bool:
        """Finished trials never change."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Failure(enum.StrEnum):
    """Why a trial has no value; the same words as the codes of `hpsearch.errors.TrialFailure`.

    An infeasible trial was never trained: its params don't meet what the study requires.
    """

    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INFEASIBLE = "infeasible"
    WORKER_LOST = "worker_lost"
    OUTDATED_CHECKPOINT = "outdated_checkpoint"
    """Of another version of hpsearch: its params are trained anew, under another number."""
    INVALID_DATA = "invalid_data"
    DISK_FULL = "disk_full"
    """Of a study that was paused for it; its trials wait."""
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class Report:
    """One evaluation of one trial on the whole validation split."""

    exposure: int
    """Training examples seen so far, over all epochs: the axis of every curve."""
    epoch: float
    """The same in passes over the training set."""
    validation_loss: float
    """Nats per completion token."""
    validation_bits_per_byte: float
    """Bits per byte of completion text: comparable across tokenizers."""
    validation_token_accuracy: float
    """Part of the completion tokens that were the most likely ones."""
    validation_prompt_loss: float | None = None
    """Nats per prompt token; None when there are none."""
    training_loss: float | None = None
    """Weighted mean since the last report; None before training."""
    tokens: int = 0
    """Training tokens so far."""
    seconds: float = 0.0
    """Device seconds so far, training and evaluation."""

    def as_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return asdict(self)


NOTHING = Report(0, 0.0, 0.0, 0.0, 0.0)
"""Before the first report."""


@dataclass(frozen=True)
class Trial:
    """One evaluation of one params; `number` is its place in the study, from 0."""

    number: int
    state: TrialState
    params: Params
    value: float | None = None
    """The objective at the best report."""
    reports: tuple[Report, ...] = ()
    config: dict[str, Any] | None = None
    """The resolved fine-tune config."""
    failure: str | None = None
    failure_text: str | None = None
    origin: str = "search"
    """Who chose the params: `defaults`, `first_trials`, `borrowed`, `search` or `hand`; or it is a `retry` of another
    trial, that one `continued`, or the one that population based training (`pbt`) put into another's place."""
    retry_of: int | None = None
    continues: int | None = None
    """The pruned trial that it goes on with: its first `carried` reports are that one's."""
    carried: int = 0
    parent: int | None = None
    """The trial whose weights, and AdamW's state, it took over at `inherited_at`; reports before are that one's."""
    inherited_at: int | None = None
    replaces: int | None = None
    """The trial whose place in a population it took."""
    is_spared: bool = False
    """No rule stops it, because a person wants to see its end."""
    stopped_by: str | None = None
    """Who ended it by hand."""
    attempts: int = 0
    """How often it was handed out to be trained; each time after the first it goes on where it was interrupted."""
    device: str | None = None
    """That trains it, or trained it last: host, node and GPU or core."""
    lost: int = 0
    """How often its worker was lost since it got further than ever before, its earlier numbers included."""
    orphaned: int = 0
    """The same of its driver and its node, whose deaths are hardly its fault."""
    is_suspect: bool = False
    """Its device's process died since it got further the last time, where others may have been: whose fault was it?"""
    reached: int = 0
    """The exposure that it had reached when it was lost."""
    pruned_at: int | None = None
    """The exposure at which it was decided to stop it."""
    pruned_because: str | None = None
    """Why it was stopped before its end: what its rule saw, the budget, a person, or who took its place."""
    cut_short: bool = False
    """The budget was spent before its last epoch, and no trial had come to its end: its value is of where it stood."""
    replay: dict[str, float] | None = None
    """Its first `steps`, made in a `company` of so many trials and again alone: the largest relative `deviation`."""
    best_epoch: float | None = None
    adapter: str | None = None
    """Folder of the saved weights, on the service's disk."""
    evaluation_contract: str | None = None
    """Hash of what was evaluated how: values with different hashes are never ranked together."""
    reused_from: dict[str, Any] | None = None
    """Study and number of the same trial in an earlier study, whose curve, value and weights were taken over."""
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def exposure(self) -> int:
        """Of its last report; 0 before any."""
        return self.reports[-1].exposure if self.reports else 0

    @property
    def alone_until(self) -> int | None:
        """The exposure up to which it has its device for itself, so that whose fault the next death is shows."""
        is_cleared = self.state.is_finished or self.exposure > self.reached
        return self.reached if self.is_suspect and not is_cleared else None

    @property
    def tokens(self) -> int:
        """Trained on under this number."""
        return self.reports[-1].tokens - self._before.tokens if self.reports else 0

    @property
    def device_seconds(self) -> float:
        """Spent under this number."""
        return self.reports[-1].seconds - self._before.seconds if self.reports else 0.0

    @property
    def schedule(self) -> list[dict[str, Any]]:
        """What it was trained with, part by part; empty for one config from beginning to end. See `schedule_of`."""
        return schedule_of(self.config)

    @property
    def _before(self) -> Report:
        return self.reports[self.carried - 1] if self.carried else NOTHING


def can_go_on(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether a pruned trial may be continued: none of the trials does that already."""
    return trial.state == TrialState.PRUNED and trial.number not in gone_on(trials)


def gone_on(trials: Sequence[Trial]) -> dict[int, int]:
    """The numbers under which earlier trials are continued or tried again, each with its last one that has not failed.

    Args:
        trials: All of a study, by number.
    """
    last: dict[int, int] = {}
    for trial in reversed(trials):
        earlier = trial.retry_of if trial.continues is None else trial.continues
        number = last.get(trial.number) if trial.state == TrialState.FAIL else trial.number
        if earlier is not None and number is not None:
            last.setdefault(earlier, number)
    return last


def first_of(trial: Trial, trials: Sequence[Trial]) -> Trial:
    """The trial that began the curve of this one, which may be itself.

    Args:
        trial: Any.
        trials: All of the study, by number.
    """
    while trial.continues is not None:
        trial = trials[trial.continues]
    return trial
