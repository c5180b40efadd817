"""`/v1/studies`: create, check, list, look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response

from hpsearch.api import cursor
from hpsearch.api.auth import Require, Who
from hpsearch.api.state import Door
from hpsearch.api.study_views import DeviceAsideView, StudyDetailView
from hpsearch.api.tokens import Role
from hpsearch.api.trial_views import RankingView
from hpsearch.api.verdict_views import VerdictView
from hpsearch.api.views import CheckView, CostView, NewStudyView, StudyListView, StudyView, utc
from hpsearch.errors import InvalidInput, InvalidSpec, NameTaken, StudyNotFound, StudyUnreadable
from hpsearch.lifecycle import StudyState
from hpsearch.spec.auto import resolved_pruner, resolved_sampler
from hpsearch.spec.cost import cost
from hpsearch.spec.study import NAME_PATTERN, StudySpec
from hpsearch.storage import StudyRow
from hpsearch.storage.events import last_events
from hpsearch.storage.figures import set_aside
from hpsearch.storage.idempotency import digest

router = APIRouter(prefix="/v1", tags=["studies"])
read, submit, admin = (Depends(Require(role)) for role in Role)

Name = Annotated[str, Path(pattern=NAME_PATTERN, max_length=63, description="The study's name.")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Repeating a request with the same key creates nothing new.",
    ),
]


@router.post("/studies", status_code=201, dependencies=[submit], responses={200: {"model": NewStudyView}})
def create_study(
    spec: StudySpec, service: Door, who: Who, response: Response, idempotency_key: Key = None
) -> NewStudyView:
    """Queue a study. The same name with the same spec answers 200 with the study that is there."""
    request = digest("create", spec.name, spec.model_dump_json())
    known = service.studies.created_by(idempotency_key, request)
    if known is not None:
        return answer_created(response, known, created=False)
    check_warm_start(spec, service)
    checked = service.checked(spec)
    made = service.studies.create(checked.spec, idempotency_key, checked.fingerprint, who, request=request)
    return answer_created(response, *made, checked.warnings)


def check_warm_start(spec: StudySpec, service: Door) -> None:
    """Raise InvalidSpec when a study that should teach is not there."""
    named = () if spec.warm_start is None or spec.warm_start.studies == "similar" else spec.warm_start.studies
    for name in named:
        try:
            service.studies.get(name)
        except StudyNotFound as error:
            raise InvalidSpec(f"warm_start.studies: {error}", "warm_start.studies") from None


def answer_created(response: Response, row: StudyRow, created: bool, warnings: Sequence[str] = ()) -> NewStudyView:
    """201 with the place of a new study, and with what the check said; 200 for one that was there already."""
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/studies/{row.name}"
    _tag(response, row)
    return NewStudyView.created(row, warnings if created else ())


def tagged(response: Response, row: StudyRow) -> StudyView:
    """The study, with its version as the answer's ETag."""
    _tag(response, row)
    return StudyView.of(row)


def _tag(response: Response, row: StudyRow) -> None:
    response.headers["ETag"] = f'"{row.tag}"'


@router.post("/studies:check", dependencies=[read])
def check_study(spec: StudySpec, service: Door) -> CheckView:
    """Everything that creating would check, and what `auto` would mean; nothing is queued."""
    check_warm_start(spec, service)
    checked = service.checked(spec, keep=False)
    warnings = list(checked.warnings)
    try:
        service.studies.check_name(spec.name, checked.fingerprint)
    except NameTaken as error:  # whoever edits a spec wants to know the rest, too
        warnings.insert(0, f"name: {error}; as it is, it would be refused")
    model = checked.model
    rate = service.rate(checked.spec.model)
    forecast = cost(checked.spec, checked.tokens, checked.examples["train"], rate)
    return CheckView(
        spec=checked.spec,
        warnings=warnings,
        examples=checked.examples,
        model={
            "type": model.model_type,
            "layers": model.layers,
            "parameters": model.parameters,
            "base_learning_rate": checked.base_learning_rate,
        },
        defaults=checked.defaults.model_dump(),
        search={
            "sampler": resolved_sampler(checked.spec).model_dump(),
            "pruner": resolved_pruner(checked.spec).model_dump(),
        },
        cost=CostView(**asdict(forecast)),
        lint={role: report.as_json() for role, report in checked.reports.items()},
    )


@router.get("/studies", dependencies=[read])
def list_studies(
    service: Door,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None,
        Query(
            pattern=rf"^~|{NAME_PATTERN}",
            max_length=200,
            description="`next` of the page before, or the name of a study.",
        ),
    ] = None,
    state: StudyState | None = None,
) -> StudyListView:
    """Studies, newest first."""
    page = service.studies.page(limit, None if after is None else _place(after, service), state)
    further = cursor.written(page.rows[-1].place) if page.has_more else None
    return StudyListView(data=[_listed(row) for row in page.rows], has_more=page.has_more, next=further)


def _place(after: str, service: Door) -> tuple[float, str]:
    """Where a page begins. A cursor says so itself; a name is that of a study that is still there."""
    try:
        return cursor.read(after) or service.studies.get(after).place
    except StudyNotFound as error:
        raise InvalidInput(
            f"after: {error}; send `next` of the page before, which outlives its study", "after"
        ) from None


def _listed(row: StudyRow) -> StudyView:
    """One study that can't be read does not hide the others."""
    try:
        return StudyView.of(row)
    except StudyUnreadable:
        return StudyView.listed(row, None)


@router.get("/studies/{name}", dependencies=[read])
def get_study(name: Name, service: Door, response: Response) -> StudyDetailView:
    """One study: its spec, its state, its progress. The ETag is the version of spec and state, not of the trials."""
    row = service.studies.get(name)
    response.headers["ETag"] = f'"{row.tag}"'
    ranking = service.ranking(row)
    best = ranking.trials[0] if ranking.trials else None
    verdict = ranking.verdict_as_json()
    told = last_events(service.database, [name], "study.warning")
    return StudyDetailView(
        **StudyView.of(row).model_dump(),
        trials=ranking.counts,
        confirmation=service.confirmation(name),
        baseline=ranking.baseline,
        best={"number": best.number, "value": best.value, "params": best.params} if best else None,
        set_aside=[
            DeviceAsideView(device=device, until=utc(each["until"]), reason=each["reason"])
            for device, each in set_aside(service.database, name).items()
        ],
        verdict=None if verdict is None else VerdictView(**verdict),
        warnings=list(dict.fromkeys(str(event.details["text"]) for event in told)),
    )


@router.get("/studies/{name}/ranking", dependencies=[read])
def get_ranking(name: Name, service: Door, top: Annotated[int | None, Query(ge=1, le=100_000)] = None) -> RankingView:
    """Completed trials, best first. Pruned and failed ones are counted, never ranked."""
    ranking: dict[str, Any] = service.ranking(service.studies.get(name)).as_json(top)
    return RankingView(**ranking)
