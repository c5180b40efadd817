"""What the API answers with about trials, one by one and ranked."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any, Literal

from hpsearch.api.verdict_views import VerdictView
from hpsearch.api.views import View, utc
from hpsearch.results import Trial
from hpsearch.results.diagnosis import Finding, diagnose
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import ObjectiveSpec


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
    """Who chose the params: defaults, first_trials, borrowed, search or hand; or retry, continued, or pbt."""
    retry_of: int | None
    continues: int | None
    """The pruned trial that it goes on with, whose reports its curve begins with."""
    parent: int | None
    """The trial whose weights it took over, at `inherited_at`; reports up to there are that one's."""
    inherited_at: int | None
    replaces: int | None
    """The trial whose place in a population it took."""
    pruned_because: str | None
    """Why it was stopped before its end: what its rule saw, the budget, a person, or who took its place."""
    stopped_by: str | None
    """Who ended it by hand."""
    attempts: int
    """How often it was handed out to be trained: after an interruption it goes on from its checkpoint."""
    device: str | None
    """That trains it, or trained it last: host, node and GPU or core."""
    alone: bool
    """Whether it has its device for itself until its next report: a process died under it, and perhaps under others."""
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
            "parent": trial.parent,
            "inherited_at": trial.inherited_at,
            "replaces": trial.replaces,
            "pruned_because": trial.pruned_because,
            "stopped_by": trial.stopped_by,
            "attempts": trial.attempts,
            "device": trial.device,
            "alone": trial.alone_until is not None,
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


class DiagnosisView(View):
    """What is wrong with a trial's fit."""

    finding: Finding
    text: str
    """What is seen, and what to try; goes on from "it"."""


class TrialDetailView(TrialView):
    """One trial with its resolved config, its curve, and what that says of it."""

    config: FinetuneConfig | None
    """Everything its fine-tune was given, nothing `auto`."""
    curve: list[ReportView]
    diagnosis: DiagnosisView | None
    """What is wrong with its fit; null if nothing is, or while too little is known."""

    @classmethod
    def of(cls, trial: Trial, objective: ObjectiveSpec) -> TrialDetailView:
        """From the trial and the study's objective."""
        curve = [report.as_json() for report in trial.reports]
        found = diagnose(trial, objective)
        diagnosis = None if found is None else asdict(found)
        return cls(**cls.fields_of(trial), config=trial.config, curve=curve, diagnosis=diagnosis)


class TrialListView(View):
    """Trials, by number."""

    data: list[TrialView]
    has_more: bool
    """Ask again with `after` set to the last number."""


class PartView(View):
    """A part of a training that has several, each with its own hyperparameters."""

    since: int
    """Training examples seen before."""
    until: int | None
    """And at its end; null: to the end."""
    hyperparameters: dict[str, int | float | str]


class RankedTrialView(View):
    """One place of the ranking."""

    rank: int
    number: int
    value: float
    state: Literal["COMPLETE"]
    params: dict[str, int | float | str]
    hyperparameters: dict[str, int | float | str] | None
    """All ten parameters, resolved; those of the last part where they changed on the way."""
    schedule: list[PartView]
    """Its parts, when it took another trial's weights over: no single config leads there. Else empty."""
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
    verdict: VerdictView | None
    """Once the best were trained again under fresh seeds (`confirm`)."""
    ranking: list[RankedTrialView]
