"""`/v1/studies/{name}/insight`, and what a study has borrowed from earlier ones."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from hpsearch.api.acts import Condition
from hpsearch.api.state import Door, Service
from hpsearch.api.studies import Name, read, submit
from hpsearch.api.views import View
from hpsearch.results import Trial
from hpsearch.results.diagnosis import Diagnosis, diagnose
from hpsearch.results.insight import insight
from hpsearch.search import history
from hpsearch.search.importance import importance
from hpsearch.search.memory import BORROWED
from hpsearch.spec.space import FloatRange, IntRange, Varying
from hpsearch.storage import StudyRow

router = APIRouter(prefix="/v1/studies/{name}", tags=["insight"])


class EffectView(View):
    """How much one parameter mattered."""

    parameter: str
    importance: float | None
    """Part of what decides whether a trial is among the best (PED-ANOVA); they add up to 1. Null: too few trials."""
    chance: float | None
    """How often shuffled values would differ as much between low, middle and high. Null: too few trials."""
    measurable: bool | None
    """Whether it had an effect that can be told from chance. Null: too few trials to say."""


class EdgeView(View):
    """A parameter whose best value lies at the edge of what was searched."""

    parameter: str
    value: int | float | str
    side: str
    """`low` or `high`."""
    widen_to: dict[str, Any]
    """The range or the choices to search next."""


class CurveView(View):
    """One trial's objective over the training examples seen."""

    number: int
    state: str
    exposures: list[int]
    values: list[float]


class AxisView(View):
    """One axis of the parallel coordinates."""

    parameter: str
    log: bool
    low: float | None
    high: float | None
    choices: list[int | float | str] | None


class LineView(View):
    """One ranked trial across the axes; a parameter that did not matter in it is not there."""

    number: int
    value: float
    params: dict[str, int | float | str]


class InsightView(View):
    """What a study's trials say about its search space."""

    study: str
    trials: int
    """Ranked ones, which all of this is about."""
    advice: list[str]
    """What to do about it, in sentences."""
    effects: list[EffectView]
    """Most important first."""
    edges: list[EdgeView]
    axes: list[AxisView]
    lines: list[LineView]
    """Parallel coordinates: the best trials, best first."""
    curves: list[CurveView]
    """Learning curves of the newest trials, by number; pruned and failed ones too."""


class BorrowedView(View):
    """A trial of another study that teaches this one's sampler."""

    study: str
    number: int
    params: dict[str, int | float | str]
    """As they would be here."""
    value: float
    """Comparable under the same evaluation contract only."""
    evaluation_contract: str
    epochs: int
    """That it was to train."""
    curve: list[tuple[int, float, float]]
    """Exposure, epoch and value of each report."""


class BorrowedListView(View):
    """What a study has borrowed, best first."""

    data: list[BorrowedView]


@router.get("/insight", dependencies=[read])
def get_insight(
    name: Name,
    service: Door,
    curves: Annotated[bool, Query(description="With the learning curves.")] = True,
    most: Annotated[int, Query(ge=1, le=10_000, description="At most so many lines, and so many curves.")] = 1000,
) -> InsightView:
    """Importance and effect of each parameter over all trials, best values at an edge, curves, parallel coordinates."""
    row = service.studies.get(name)
    ranking = service.ranking(row)
    ranked = ranking.trials
    space = row.spec.search_space

    def diagnosed(trial: Trial) -> Diagnosis | None:
        return diagnose(service.trial(name, trial.number), row.spec.objective)  # a ranking has no curves

    found = insight(space, ranked, importance(history.load(service.optuna_storage, name)), diagnosed)
    return InsightView(
        study=name,
        trials=found.trials,
        advice=found.advice,
        effects=[EffectView(**vars(effect), measurable=effect.is_measurable) for effect in found.effects],
        edges=[EdgeView(**vars(edge)) for edge in found.edges],
        axes=[_axis(parameter, varying) for parameter, varying in space.varying().items()],
        lines=[
            LineView(number=one.number, value=one.value, params=one.params)
            for one in ranked[:most]
            if one.value is not None
        ],
        curves=_curves(service, row, sum(ranking.counts.values()), most) if curves else [],
    )


@router.get("/borrowed", dependencies=[read])
def get_borrowed(name: Name, service: Door) -> BorrowedListView:
    """The trials of earlier studies that teach this one (`warm_start`), best first."""
    service.studies.get(name)
    study = history.load(service.optuna_storage, name)
    return BorrowedListView(data=[] if study is None else study.user_attrs.get(BORROWED, []))


@router.delete("/borrowed", status_code=204, dependencies=[submit])
def forget_borrowed(name: Name, service: Door, acting: Condition) -> None:
    """Take away what was borrowed: from the next draw on it teaches no more. Doing it twice is once."""
    service.forget_borrowed(name, acting)


def _axis(name: str, parameter: Varying) -> AxisView:
    if isinstance(parameter, IntRange | FloatRange):
        return AxisView(parameter=name, log=parameter.log, low=parameter.low, high=parameter.high, choices=None)
    return AxisView(parameter=name, log=False, low=None, high=None, choices=list(parameter.choices))


def _curves(service: Service, row: StudyRow, trials: int, most: int) -> list[CurveView]:
    metric = row.spec.objective.metric
    newest, _ = service.page(row.name, most, trials - most - 1 if trials > most else None, None)
    return [
        CurveView(
            number=trial.number,
            state=trial.state,
            exposures=[report.exposure for report in trial.reports],
            values=[getattr(report, metric) for report in trial.reports],
        )
        for trial in newest
        if trial.reports
    ]
