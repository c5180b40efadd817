"""What the API answers with: one model per thing, all finite numbers and ISO 8601 times in UTC."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hpsearch.results import Trial
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.study import StudySpec
from hpsearch.storage import DatasetRow, StudyRow


class View(BaseModel):
    """An answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class StudyView(View):
    """One study."""

    name: str
    state: str
    """queued, running, paused, finished, failed or cancelled."""
    reason: str
    """Why it is in this state, where there is more to say."""
    requested: str | None
    """`paused` or `cancelled`: what its runner was asked for and has not done yet."""
    version: str
    """Changes with every act and every change of state; the answer's `ETag`, for `If-Match`."""
    held: int
    """Trials that its runner has handed out and that have not ended."""
    share: int | None
    """Trials that it may hold beside the other studies; null while nobody drives it."""
    created_by: str
    """The name of the token that it was created with."""
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    spec: StudySpec | None
    """Null in a list where this version can't read it."""

    @classmethod
    def of(cls, row: StudyRow) -> StudyView:
        """From the stored row; StudyUnreadable when its spec can't be read."""
        return cls.listed(row, row.spec)

    @classmethod
    def listed(cls, row: StudyRow, spec: StudySpec | None) -> StudyView:
        """From the stored row, with what could be read of its spec."""
        return cls(
            name=row.name,
            state=row.state,
            reason=row.reason,
            requested=row.requested,
            version=row.tag,
            held=row.held,
            share=row.share,
            created_by=row.created_by,
            created_at=utc(row.created_at),
            started_at=utc(row.started_at) if row.started_at else None,
            finished_at=utc(row.finished_at) if row.finished_at else None,
            spec=spec,
        )


class DeviceAsideView(View):
    """A device that failed several trials in a row while others trained well."""

    device: str
    """Host, node and GPU or core."""
    until: dt.datetime
    reason: str


class StudyDetailView(StudyView):
    """One study with its progress."""

    trials: dict[str, int]
    """Trials by state."""
    baseline: dict[str, float | None] | None
    """The untouched base model's figures, once a worker has evaluated it."""
    best: dict[str, Any] | None
    """Number, value and params of the best completed trial."""
    set_aside: list[DeviceAsideView]
    """Devices that get none of its trials for a while."""


class StudyListView(View):
    """Studies, newest first."""

    data: list[StudyView]
    has_more: bool
    """Ask again with `after` set to the last name."""


class ReportView(View):
    """One evaluation of a trial."""

    exposure: int
    """Training examples seen."""
    epoch: float
    validation_loss: float
    validation_bits_per_byte: float
    validation_token_accuracy: float
    validation_prompt_loss: float | None
    training_loss: float | None
    tokens: int
    seconds: float


class ReplayView(View):
    """A trial's first steps, made in company and again alone."""

    steps: int
    company: int
    """Trials in one pass, itself included."""
    deviation: float
    """The largest relative one of a training loss."""


class TrialView(View):
    """One trial."""

    number: int
    state: str
    """WAITING, RUNNING, COMPLETE, PRUNED or FAIL."""
    params: dict[str, int | float | str]
    value: float | None
    origin: str
    """Who chose the params: defaults, first_trials, borrowed, search or hand; or retry, or continued."""
    retry_of: int | None
    continues: int | None
    """The pruned trial that it goes on with, whose reports its curve begins with."""
    stopped_by: str | None
    """Who ended it by hand."""
    attempts: int
    """How often it was handed out to be trained: after an interruption it goes on from its checkpoint."""
    device: str | None
    """That trains it, or trained it last: host, node and GPU or core."""
    reused_from: dict[str, str | int] | None
    """Study and number of the same trial in an earlier study, whose result was taken over at no cost."""
    failure: str | None
    failure_text: str | None
    best_epoch: float | None
    cut_short: bool
    """Whether the budget ended it before its last epoch: its value is of where it stood."""
    replay: ReplayView | None
    exposure: int
    """Training examples seen so far."""
    last_value: float | None
    """The validation loss of the last report."""
    adapter: bool
    """Whether its weights can be downloaded."""
    evaluation_contract: str | None
    started_at: dt.datetime | None
    finished_at: dt.datetime | None

    @classmethod
    def fields_of(cls, trial: Trial) -> dict[str, Any]:
        """From the trial."""
        last = trial.reports[-1] if trial.reports else None
        return {
            "number": trial.number,
            "state": str(trial.state),
            "params": trial.params,
            "value": trial.value,
            "origin": trial.origin,
            "retry_of": trial.retry_of,
            "continues": trial.continues,
            "stopped_by": trial.stopped_by,
            "attempts": trial.attempts,
            "device": trial.device,
            "reused_from": trial.reused_from,
            "failure": trial.failure,
            "failure_text": trial.failure_text,
            "best_epoch": trial.best_epoch,
            "cut_short": trial.cut_short,
            "replay": trial.replay,
            "exposure": last.exposure if last else 0,
            "last_value": last.validation_loss if last else None,
            "adapter": trial.adapter is not None,
            "evaluation_contract": trial.evaluation_contract,
            "started_at": utc(trial.started_at) if trial.started_at else None,
            "finished_at": utc(trial.finished_at) if trial.finished_at else None,
        }


class TrialDetailView(TrialView):
    """One trial with its resolved config and its curve."""

    config: FinetuneConfig | None
    """Everything its fine-tune was given, nothing `auto`."""
    curve: list[ReportView]

    @classmethod
    def of(cls, trial: Trial) -> TrialDetailView:
        """From the trial."""
        curve = [report.as_json() for report in trial.reports]
        return cls(**cls.fields_of(trial), config=trial.config, curve=curve)


class TrialListView(View):
    """Trials, by number."""

    data: list[TrialView]
    has_more: bool
    """Ask again with `after` set to the last number."""


class RankedTrialView(View):
    """One place of the ranking."""

    rank: int
    number: int
    value: float
    state: Literal["COMPLETE"]
    params: dict[str, int | float | str]
    hyperparameters: dict[str, int | float | str] | None
    """All ten parameters, resolved."""
    best_epoch: float | None
    cut_short: bool
    """Whether the budget ended it before its last epoch."""
    origin: str
    reused_from: dict[str, str | int] | None
    """Study and number of the same trial in an earlier study, whose result was taken over at no cost."""
    adapter: bool


class RankingView(View):
    """Completed trials, best first, beside the untouched base model."""

    study: str
    state: str
    objective: dict[str, str]
    baseline: dict[str, float | None] | None
    counts: dict[str, int]
    ranking: list[RankedTrialView]


class CheckView(View):
    """What a spec comes to, without queueing it."""

    spec: StudySpec
    """With every path located and every default filled in."""
    warnings: list[str]
    examples: dict[str, int]
    model: dict[str, Any]
    """Type, layers, parameters, and the pre-training learning rate that multipliers multiply."""
    defaults: dict[str, int | float | str]
    """What `auto` means for this data."""
    search: dict[str, dict[str, Any]]
    """The sampler and the pruner, named where they are `auto`."""
    lint: dict[str, dict[str, Any]]
    """What was found in `train` and, with a file of its own, `validation`."""


class DatasetView(View):
    """One uploaded dataset."""

    id: str
    """Name it in a spec as `dataset:<id>`."""
    bytes: int
    format: str
    examples: int
    warnings: list[str]
    created_at: dt.datetime

    @classmethod
    def of(cls, row: DatasetRow) -> DatasetView:
        """From the stored row."""
        return cls(
            id=row.id,
            bytes=row.bytes,
            format=row.format,
            examples=row.examples,
            warnings=list(row.warnings),
            created_at=utc(row.created_at),
        )


class ProblemView(View):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str
    """Stable; scripts may rely on it."""
    detail: str
    field: str | None = None
    line: int | None = None


def utc(seconds: float) -> dt.datetime:
    """A time as people and programs read it."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
