"""What the API says of one study and how far it is."""

from __future__ import annotations

import datetime as dt
from typing import Any

from hpsearch.api.verdict_views import VerdictView
from hpsearch.api.views import StudyView, View


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
    confirmation: dict[str, int] | None
    """Trainings that confirm the best ones, by state; null before any was lined up."""
    baseline: dict[str, float | None] | None
    """The untouched base model's figures, once a worker has evaluated it."""
    best: dict[str, Any] | None
    """Number, value and params of the best completed trial."""
    set_aside: list[DeviceAsideView]
    """Devices that get none of its trials for a while."""
    verdict: VerdictView | None
    """Once the best were trained again under fresh seeds (`confirm`)."""
    warnings: list[str]
    """The last ones of its run: data that was cut, trials that train differently in company."""
