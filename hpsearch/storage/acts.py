"""What people do to studies: each act is one transaction with its event, which says who did it."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from hpsearch.errors import BudgetSpent, Conflict, InvalidInput
from hpsearch.lifecycle import Act, StudyState, WishKind
from hpsearch.results.budget import Limit
from hpsearch.spec.budget import BudgetExtension, BudgetSpec
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec
from hpsearch.storage.acting import Acting, Doing, act
from hpsearch.storage.database import Database
from hpsearch.storage.rows import StudyRow, get_study


class Acts:
    """What people may do to studies; `hpsearch.lifecycle.ACTS` says when. How they end them: `Endings`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, name: str, acting: Acting) -> StudyRow:
        """Stop the study, or ask its runner to; what was trained is kept. Pausing twice is once."""
        with act(self._database, name, Act.PAUSE, acting) as doing:
            if not doing.is_new or StudyState.PAUSED in (doing.study.state, doing.study.requested):
                pass
            elif doing.study.state == StudyState.RUNNING:
                doing.ask("study.pause_requested", StudyState.PAUSED)
            else:
                doing.change("study.paused", {"requested": None}, reason="paused")
        return self._get(name)

    def resume(self, name: str, acting: Acting, spent: Limit | None = None) -> StudyRow:
        """Let a paused or failed study go on, or take a wish to pause back. Resuming what runs changes nothing.

        Raises:
            BudgetSpent: It has failed, and `spent` says what it would end of at once.
        """
        with act(self._database, name, Act.RESUME, acting) as doing:
            if doing.is_new and doing.study.state == StudyState.FAILED:
                _check_unspent(name, spent)
            if doing.is_new and (doing.target != doing.study.state or doing.study.requested is not None):
                doing.change("study.resumed", {"requested": None})
        return self._get(name)

    def extend(self, name: str, more: BudgetExtension, acting: Acting) -> StudyRow:
        """Raise the limits of the budget that `more` names by its amounts. A study that was over is queued again.

        Raises:
            InvalidInput: The budget has no such limit to raise.
        """
        with act(self._database, name, Act.EXTEND, acting, more.model_dump_json()) as doing:
            if doing.is_new:
                budget = _raised(doing.study.spec.budget, more)
                values = _kept(doing.study.spec, {"budget": budget.model_dump()})
                doing.change("study.extended", values, budget=budget.model_dump(mode="json", exclude_none=True))
        return self._get(name)

    def confirm(self, name: str, wanted: ConfirmSpec, acting: Acting) -> StudyRow:
        """Have the best trials trained again under fresh seeds at the end of the search. One that was over is queued.

        The same again adds nothing but trials that have become the best ones meanwhile.
        """
        with act(self._database, name, Act.CONFIRM, acting, wanted.model_dump_json()) as doing:
            if doing.is_new:
                # The search itself does not go on: what ended it, such as its patience, is not forgiven.
                values = {**_kept(doing.study.spec, {"confirm": wanted}), "resumed_at": doing.study.resumed_at}
                doing.change("study.confirmation_requested", values, **wanted.model_dump())
        return self._get(name)

    def change(self, name: str, changes: dict[str, Any], acting: Acting) -> StudyRow:
        """Give a study another `priority` or other fields of its `parallelism`."""
        with act(self._database, name, Act.CHANGE, acting, json.dumps(changes, sort_keys=True)) as doing:
            values = _kept(doing.study.spec, changes)
            if doing.is_new and values["spec"] != doing.study.spec.model_dump_json():
                doing.change("study.changed", {**values, "priority": json.loads(values["spec"])["priority"]}, **changes)
        return self._get(name)

    def add_trial(self, name: str, params: Params, acting: Acting, spent: Limit | None = None) -> StudyRow:
        """Line up params of one's own; what is left out is drawn. The budget grows by the one trial.

        Raises:
            InvalidInput: The params lie outside the search space.
            BudgetSpent: `spent` is the limit that leaves no room for it.
        """
        with act(self._database, name, Act.ADD_TRIAL, acting, json.dumps(params, sort_keys=True)) as doing:
            if doing.is_new:
                _check_unspent(name, spent)
                spec = doing.study.spec
                params = _checked(spec, params)
                wish = {"kind": WishKind.ADD, "params": json.dumps(params)}
                identifier = doing.wish(wish)
                limits = _with_room_for_one(spec)
                values = _kept(spec, {"budget": limits})
                doing.change("study.trial_added", values, wish=identifier, params=params, budget=limits)
        return self._get(name)

    def stop_trial(self, name: str, number: int, acting: Acting, fault: Conflict | None = None) -> StudyRow:
        """Ask the runner to end one trial at its next report; a waiting one is not begun. Asking twice is once.

        Raises:
            Conflict: The `fault` of the trial, if it has one: not when it is the act's own, repeated with its key.
        """
        with act(self._database, name, Act.STOP_TRIAL, acting, str(number)) as doing:
            _check_faultless(doing, fault)
            if doing.is_new and not doing.is_wished(WishKind.STOP, number):
                doing.wish({"kind": WishKind.STOP, "number": number})
                doing.change("trial.stop_requested", {}, number=number)
        return self._get(name)

    def continue_trial(
        self, name: str, number: int, acting: Acting, spent: Limit | None = None, fault: Conflict | None = None
    ) -> StudyRow:
        """Ask the runner to let a pruned trial go on, under a new number. The budget grows by the one trial.

        Asking twice is once.

        Raises:
            BudgetSpent: `spent` is the limit that leaves no room for it.
            Conflict: The `fault` of the trial, if it has one: not when it is the act's own, repeated with its key.
        """
        with act(self._database, name, Act.CONTINUE_TRIAL, acting, str(number)) as doing:
            _check_faultless(doing, fault)
            if doing.is_new and not doing.is_wished(WishKind.CONTINUE, number):
                _check_unspent(name, spent)
                doing.wish({"kind": WishKind.CONTINUE, "number": number})
                limits = _with_room_for_one(doing.study.spec)
                values = _kept(doing.study.spec, {"budget": limits})
                doing.change("trial.continue_requested", values, number=number, budget=limits)
        return self._get(name)

    def forget_borrowed(
        self, study: StudyRow, trials: int, acting: Acting, within: sa.Connection | None = None
    ) -> None:
        """Say that what earlier studies lent it is taken away. Doing it twice is once.

        Args:
            study: As it was when `trials` were counted.
            trials: So many; none to forget is no event.
            acting: Who takes them away.
            within: The transaction that takes them away.

        Raises:
            StudyNotFound: It is gone; another one may have its name.
        """
        with act(self._database, study.name, Act.FORGET_BORROWED, acting, within=within) as doing:
            doing.study.check_is(study)
            if doing.is_new and trials:
                doing.change("study.borrowed_forgotten", {}, trials=trials)

    def _get(self, name: str) -> StudyRow:
        with self._database.read() as connection:
            return get_study(connection, name)


def _check_faultless(doing: Doing, fault: Conflict | None) -> None:
    if doing.is_new and fault is not None:
        raise fault


def _check_unspent(name: str, spent: Limit | None) -> None:
    if spent is not None:
        option = f"--{spent.name.replace('_', '-')}"
        raise BudgetSpent(
            f"{spent.text}, so study '{name}' would end without training anything more: extend it first, with "
            f"`hpsearch extend {name} {option} AMOUNT` or `POST /v1/studies/{name}/extend` and `{spent.name}`",
            f"budget.{spent.name}",
        )


def _kept(spec: StudySpec, changes: dict[str, Any]) -> dict[str, Any]:
    """The column of the spec with some parts replaced; the fingerprint stays that of what was asked for at first."""
    values = spec.model_dump()
    for part, replaced in changes.items():
        values[part] = {**values[part], **replaced} if isinstance(replaced, dict) else replaced
    try:
        return {"spec": StudySpec.model_validate(values).model_dump_json()}
    except ValidationError as error:
        raise as_invalid_spec(error) from error


def _with_room_for_one(spec: StudySpec) -> dict[str, Any]:
    """The limits of its budget, with room for a trial more."""
    limits = spec.budget.model_dump(exclude_none=True)
    if "trials" in limits:
        limits["trials"] += 1
    return limits


def _raised(budget: BudgetSpec, more: BudgetExtension) -> BudgetSpec:
    raised = budget.model_dump()
    for limit, amount in more.model_dump(exclude_none=True).items():
        if raised[limit] is None:
            limits = ", ".join(budget.model_dump(exclude_none=True))
            raise InvalidInput(f"the study has no limit on {limit} that could be raised; it has {limits}", limit)
        raised[limit] += amount
    try:
        return BudgetSpec.model_validate(raised)
    except ValidationError as error:
        raise as_invalid_spec(error) from error


def _checked(spec: StudySpec, params: Params) -> Params:
    try:
        numbers = spec.search_space.as_numbers(params)
        fault = next(iter(spec.search_space.faults(numbers)), None)
    except OverflowError as error:
        raise InvalidInput("params: one of the numbers is too large for any search space", "params") from error
    if fault is not None:
        raise InvalidInput(f"params: {str(fault)[:300]}", "params")
    return numbers
