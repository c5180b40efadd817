"""What the API answers with: one model per thing, all finite numbers and ISO 8601 times in UTC."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

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
            requested=None if row.state.is_over else row.requested,  # else a deletion that broke off
            version=row.tag,
            held=row.held,
            share=row.share,
            created_by=row.created_by,
            created_at=utc(row.created_at),
            started_at=utc(row.started_at) if row.started_at else None,
            finished_at=utc(row.finished_at) if row.finished_at else None,
            spec=spec,
        )


class NewStudyView(StudyView):
    """A study that was created just now, or was there already."""

    warnings: list[str]
    """What the check says of its spec and data; nothing of a study that was there already."""

    @classmethod
    def created(cls, row: StudyRow, warnings: Sequence[str]) -> NewStudyView:
        """From the stored row."""
        return cls(**dict(StudyView.of(row)), warnings=list(warnings))


class StudyListView(View):
    """Studies, newest first."""

    data: list[StudyView]
    has_more: bool
    next: str | None
    """Ask again with `after` set to it; null on the last page. It holds even when studies are deleted meanwhile."""


class RateView(View):
    """How fast the last trials on a base model were trained."""

    study: str
    """Of the newest of them."""
    trials: int
    """At most twenty."""
    tokens_per_second: float
    """By seconds of a device, evaluations included."""


class CostView(View):
    """What a study will cost. Tokens are training tokens, about: chat templates differ. Null: not to be told."""

    epoch: int | None
    """One pass over the training examples, each cut at `max_length`."""
    defaults: int | None
    """The trial of the `auto` defaults."""
    search: int | None
    """All trials, if none stops early and each has the most epochs; retries of lost workers come on top."""
    confirmation: int | None
    """What confirms the best trials; 0 without."""
    rate: RateView | None
    """Null where no trial on this base model has completed yet."""
    device_hours: float | None
    """Search and confirmation at that rate; several devices share them."""


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
    cost: CostView
    lint: dict[str, dict[str, Any]]
    """What was found in `train` and, with files of their own, `validation` and `test`."""


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


class IndexView(View):
    """Where everything is."""

    version: str
    links: dict[str, str]
    """Paths by what is there; `dashboard` only where it is installed."""


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
