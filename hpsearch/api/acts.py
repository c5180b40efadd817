"""What people do to studies: pause, resume, extend, confirm, change, clone, cancel, delete, and acts on trials."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Response

from hpsearch.api.auth import Who
from hpsearch.api.state import Door
from hpsearch.api.studies import Key, Name, admin, answer_created, check_warm_start, submit, tagged
from hpsearch.api.trials import Number
from hpsearch.api.views import NewStudyView, StudyView
from hpsearch.errors import InvalidInput
from hpsearch.spec.budget import BudgetExtension
from hpsearch.spec.changes import CloneSpec, StudyChanges, clone
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.spec.space import Params
from hpsearch.storage import Acting
from hpsearch.storage.idempotency import digest

router = APIRouter(prefix="/v1/studies/{name}", tags=["acts"])

IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        max_length=1000,
        description="Act only if this is still the study's ETag (its `version` in quotes); else 412.",
    ),
]


def _acting(who: Who, if_match: IfMatch = None, idempotency_key: Key = None) -> Acting:
    if if_match is None or if_match.strip() == "*":
        return Acting(who, (), idempotency_key)
    tags = [tag for weak, tag in re.findall(r'(W/)?"([^"]*)"', if_match) if not weak]
    if not tags:
        raise InvalidInput('If-Match is an ETag in double quotes, such as "19a2b3c4d5e-3", or *', "If-Match")
    return Acting(who, frozenset(tags), idempotency_key)


Condition = Annotated[Acting, Depends(_acting)]


@router.post("/pause", status_code=202, dependencies=[submit])
def pause_study(name: Name, service: Door, acting: Condition, response: Response) -> StudyView:
    """Stop a study: a queued one now, a running one as soon as its runner notices (a second or two)."""
    return tagged(response, service.acts.pause(name, acting))


@router.post("/resume", status_code=202, dependencies=[submit])
def resume_study(name: Name, service: Door, acting: Condition, response: Response) -> StudyView:
    """Queue a paused study again, or one that failed for a reason that was mended and has budget left."""
    return tagged(response, service.acts.resume(name, acting, service.spent(name, resumes=True)))


@router.post("/extend", status_code=202, dependencies=[submit])
def extend_study(name: Name, more: BudgetExtension, service: Door, acting: Condition, response: Response) -> StudyView:
    """Add to a study's budget, whether it runs or is over; one that has finished or failed is queued again."""
    return tagged(response, service.acts.extend(name, more, acting))


@router.post("/confirm", status_code=202, dependencies=[submit])
def confirm_study(name: Name, wanted: ConfirmSpec, service: Door, acting: Condition, response: Response) -> StudyView:
    """Train the best trials and the defaults again under fresh seeds, for the ranking's `verdict`.

    A study that is searching does so once its search is over; one that has finished is queued again. It comes on top
    of the budget.
    """
    return tagged(response, service.acts.confirm(name, wanted, acting))


@router.patch("", dependencies=[submit])
def change_study(name: Name, changes: StudyChanges, service: Door, acting: Condition, response: Response) -> StudyView:
    """Change the priority or the parallelism of a study that is not over; trials that run are not interrupted."""
    return tagged(response, service.acts.change(name, changes.as_changes(), acting))


@router.post("/clone", status_code=201, dependencies=[submit], responses={200: {"model": NewStudyView}})
def clone_study(name: Name, wanted: CloneSpec, service: Door, acting: Condition, response: Response) -> NewStudyView:
    """Queue a study like this one under another name, with changes. It begins anew: trials are not copied."""
    request = digest("clone", name, wanted.model_dump_json())
    known = service.studies.created_by(acting.key, request)
    if known is not None:
        return answer_created(response, known, created=False)
    source = service.studies.get(name)
    acting.check(source)
    spec = clone(source.spec, wanted)
    check_warm_start(spec, service)
    checked = service.checked(spec, origins=source.spec.data)
    made = service.studies.create(checked.spec, acting.key, checked.fingerprint, acting.by, name, request=request)
    return answer_created(response, *made, checked.warnings)


@router.post("/trials", status_code=202, dependencies=[submit])
def add_trial(
    name: Name,
    params: Annotated[dict[str, Any], Body(embed=True, max_length=32, examples=[{"learning_rate_multiplier": 1.5}])],
    service: Door,
    acting: Condition,
    response: Response,
) -> StudyView:
    """Line up a trial with params of your own, before the sampler's next; what is left out is drawn.

    The budget grows by that one trial. A study that has finished or failed is queued again.
    """
    given: Params = {}
    for parameter, value in params.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidInput(f"params.{parameter} is a number or a word", f"params.{parameter}")
        given[parameter] = value
    return tagged(response, service.acts.add_trial(name, given, acting, service.spent(name)))


@router.post("/trials/{number}/stop", status_code=202, dependencies=[submit])
def stop_trial(name: Name, number: Number, service: Door, acting: Condition, response: Response) -> StudyView:
    """End one trial at its next report, as PRUNED; one that waits is not begun."""
    service.studies.get(name)
    return tagged(response, service.acts.stop_trial(name, number, acting, service.fault_of_stopping(name, number)))


@router.post("/trials/{number}/continue", status_code=202, dependencies=[submit])
def continue_trial(name: Name, number: Number, service: Door, acting: Condition, response: Response) -> StudyView:
    """Let a pruned trial go on from its last snapshot to its end, before the sampler's next; no rule stops it again.

    It gets a new number and begins with the curve that it has. The budget grows by that one trial. A study that has
    finished or failed is queued again.
    """
    service.studies.get(name)
    fault = service.fault_of_continuing(name, number)
    return tagged(response, service.acts.continue_trial(name, number, acting, service.spent(name), fault))


@router.post("/cancel", status_code=202, dependencies=[submit])
def cancel_study(name: Name, service: Door, acting: Condition, response: Response) -> StudyView:
    """End a study for good: a queued one now, a running one as soon as its runner notices (a second or two)."""
    return tagged(response, service.cancel(name, acting))


@router.delete("", status_code=204, dependencies=[admin])
def delete_study(name: Name, service: Door, acting: Condition) -> None:
    """Forget a study that is over, with its trials and weights."""
    service.delete(name, acting)
