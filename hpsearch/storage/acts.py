"""What people do to studies: each act is one transaction with its event, which says who did it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from hpsearch.errors import BudgetSpent, ChangedMeanwhile, InvalidInput
from hpsearch.lifecycle import Act, StudyState, WishKind, after
from hpsearch.results.budget import Limit
from hpsearch.spec.budget import BudgetExtension, BudgetSpec
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec
from hpsearch.storage import idempotency
from hpsearch.storage.database import Database
from hpsearch.storage.events import DELETED, append
from hpsearch.storage.rows import StudyRow, get_study
from hpsearch.storage.tables import events, idempotency_keys, studies, wishes


@dataclass(frozen=True)
class Acting:
    """Who acts, and under which conditions."""

    by: str
    """The name of the token."""
    tags: Collection[str] = ()
    """The act counts only while the study has one of these tags (`StudyRow.tag`); without any, always."""
    key: str | None = None
    """Repeating an act with its key does nothing more."""

    def check(self, study: StudyRow) -> None:
        """Raise ChangedMeanwhile unless the study has one of the tags."""
        if self.tags and study.tag not in self.tags:
            raise ChangedMeanwhile(f"study '{study.name}' has changed since it was looked at: it is now '{study.tag}'")


class Acts:
    """What people may do to studies; `hpsearch.lifecycle.ACTS` says when."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, name: str, acting: Acting) -> StudyRow:
        """Stop the study, or ask its runner to; what was trained is kept. Pausing twice is once."""
        return self._stop(name, Act.PAUSE, StudyState.PAUSED, acting)

    def cancel(self, name: str, acting: Acting) -> StudyRow:
        """End the study, or ask its runner to. Cancelling twice is once."""
        return self._stop(name, Act.CANCEL, StudyState.CANCELLED, acting)

    def resume(self, name: str, acting: Acting, spent: Limit | None = None) -> StudyRow:
        """Let a paused or failed study go on, or take a wish to pause back. Resuming what runs changes nothing.

        Raises:
            BudgetSpent: It has failed, and `spent` says what it would end of at once.
        """
        with self._act(name, Act.RESUME, acting) as act:
            if act.is_new and act.study.state == StudyState.FAILED:
                _check_unspent(name, spent)
            if act.is_new and (act.target != act.study.state or act.study.requested is not None):
                act.change("study.resumed", {"requested": None})
        return self._get(name)

    def extend(self, name: str, more: BudgetExtension, acting: Acting) -> StudyRow:
        """Raise the limits of the budget that `more` names by its amounts. A study that was over is queued again.

        Raises:
            InvalidInput: The budget has no such limit to raise.
        """
        with self._act(name, Act.EXTEND, acting, more.model_dump_json()) as act:
            if act.is_new:
                budget = _raised(act.study.spec.budget, more)
                values = _kept(act.study.spec, {"budget": budget.model_dump()})
                act.change("study.extended", values, budget=budget.model_dump(mode="json", exclude_none=True))
        return self._get(name)

    def confirm(self, name: str, wanted: ConfirmSpec, acting: Acting) -> StudyRow:
        """Have the best trials trained again under fresh seeds at the end of the search. One that was over is queued.

        The same again adds nothing but trials that have become the best ones meanwhile.
        """
        with self._act(name, Act.CONFIRM, acting, wanted.model_dump_json()) as act:
            if act.is_new:
                # The search itself does not go on: what ended it, such as its patience, is not forgiven.
                values = {**_kept(act.study.spec, {"confirm": wanted}), "resumed_at": act.study.resumed_at}
                act.change("study.confirmation_requested", values, **wanted.model_dump())
        return self._get(name)

    def change(self, name: str, changes: dict[str, Any], acting: Acting) -> StudyRow:
        """Give a study another `priority` or other fields of its `parallelism`."""
        with self._act(name, Act.CHANGE, acting, json.dumps(changes, sort_keys=True)) as act:
            values = _kept(act.study.spec, changes)
            if act.is_new and values["spec"] != act.study.spec.model_dump_json():
                act.change("study.changed", {**values, "priority": json.loads(values["spec"])["priority"]}, **changes)
        return self._get(name)

    def add_trial(self, name: str, params: Params, acting: Acting, spent: Limit | None = None) -> StudyRow:
        """Line up params of one's own; what is left out is drawn. The budget grows by the one trial.

        Raises:
            InvalidInput: The params lie outside the search space.
            BudgetSpent: `spent` is the limit that leaves no room for it.
        """
        with self._act(name, Act.ADD_TRIAL, acting, json.dumps(params, sort_keys=True)) as act:
            if act.is_new:
                _check_unspent(name, spent)
                spec = act.study.spec
                params = _checked(spec, params)
                wish = {"kind": WishKind.ADD, "params": json.dumps(params)}
                identifier = act.wish(wish)
                limits = _with_room_for_one(spec)
                values = _kept(spec, {"budget": limits})
                act.change("study.trial_added", values, wish=identifier, params=params, budget=limits)
        return self._get(name)

    def stop_trial(self, name: str, number: int, acting: Acting) -> StudyRow:
        """Ask the runner to end one trial at its next report; a waiting one is not begun. Asking twice is once."""
        with self._act(name, Act.STOP_TRIAL, acting, str(number)) as act:
            if act.is_new and not act.is_wished(WishKind.STOP, number):
                act.wish({"kind": WishKind.STOP, "number": number})
                act.change("trial.stop_requested", {}, number=number)
        return self._get(name)

    def continue_trial(self, name: str, number: int, acting: Acting, spent: Limit | None = None) -> StudyRow:
        """Ask the runner to let a pruned trial go on, under a new number. The budget grows by the one trial.

        Asking twice is once.

        Raises:
            BudgetSpent: `spent` is the limit that leaves no room for it.
        """
        with self._act(name, Act.CONTINUE_TRIAL, acting, str(number)) as act:
            if act.is_new and not act.is_wished(WishKind.CONTINUE, number):
                _check_unspent(name, spent)
                act.wish({"kind": WishKind.CONTINUE, "number": number})
                limits = _with_room_for_one(act.study.spec)
                values = _kept(act.study.spec, {"budget": limits})
                act.change("trial.continue_requested", values, number=number, budget=limits)
        return self._get(name)

    def begin_deletion(self, name: str, acting: Acting) -> None:
        """Raise what `delete` would; from here on nobody can queue the study again, while its trials and weights go.

        A deletion that broke off leaves it so: the only act that is legal then is to delete it.
        """
        with self._act(name, Act.DELETE, replace(acting, key=None)) as act:
            requested = studies.update().where(studies.c.name == name).values(requested=StudyState.CANCELLED)
            act.connection.execute(requested)  # the version stays: whoever repeats the deletion has seen this one

    def delete(self, name: str, acting: Acting) -> None:
        """Forget a study that is over. All that stays is the event that says so.

        Keys don't count here: deleting twice is once, and what a key would let pass may be alive again.
        """
        with self._act(name, Act.DELETE, replace(acting, key=None)) as act:
            connection = act.connection
            connection.execute(studies.delete().where(studies.c.name == name))
            for table in (events, wishes, idempotency_keys):
                connection.execute(table.delete().where(table.c.study == name))
            append(connection, name, DELETED, act.now, {"by": acting.by})

    def tell(self, name: str, kind: str, details: dict[str, Any]) -> None:
        """Append what followed from an act."""
        with self._database.write() as connection:
            append(connection, name, kind, self._database.now(connection), details)

    def _stop(self, name: str, act_kind: Act, wanted: StudyState, acting: Acting) -> StudyRow:
        with self._act(name, act_kind, acting) as act:
            study = act.study
            if not act.is_new or wanted in (study.state, study.requested):
                pass
            elif study.state == StudyState.RUNNING:
                act.ask(f"study.{act_kind}_requested", wanted)
            else:
                act.change(f"study.{wanted}", {"requested": None}, reason=str(wanted))
        return self._get(name)

    def _get(self, name: str) -> StudyRow:
        with self._database.read() as connection:
            return get_study(connection, name)

    @contextmanager
    def _act(self, name: str, kind: Act, acting: Acting, request: str = "") -> Iterator[_Act]:
        """One act's transaction, once it is known to be legal, wanted on this version, and not done already."""
        digest = hashlib.sha256(f"{kind} {name} {request}".encode()).hexdigest()
        with self._database.write() as connection:
            now = self._database.now(connection)
            study = get_study(connection, name)
            if idempotency.study_of(connection, acting.key, digest, now) is not None:
                yield _Act(connection, study, study.state, acting.by, now, is_new=False)
                return
            acting.check(study)
            target = after(kind, name, study.state)
            if study.requested == StudyState.CANCELLED:
                after(kind, name, StudyState.CANCELLED)  # it is as good as cancelled
            yield _Act(connection, study, target, acting.by, now)
            idempotency.keep(connection, acting.key, digest, name, now)


@dataclass(frozen=True)
class _Act:
    """One act while its transaction is open."""

    connection: sa.Connection
    study: StudyRow
    target: StudyState
    by: str
    now: float
    is_new: bool = True

    def change(self, event: str, values: dict[str, Any], **details: Any) -> None:
        """Change the study's row, move it to the act's state if it isn't driven, and say so."""
        if self.study.state not in (StudyState.RUNNING, self.target):
            over = self.target.is_over
            values = {
                **values,
                "state": self.target,
                "reason": str(self.target) if self.target != StudyState.QUEUED else "",
                "finished_at": self.now if over else None,
            }
            if self.study.state.is_over:
                values.setdefault("resumed_at", self.now)
        self._write(event, {**details, "state": str(values.get("state", self.study.state))}, values)

    def ask(self, event: str, wanted: StudyState) -> None:
        """Ask the study's runner to lay it down."""
        self._write(event, {}, {"requested": wanted})

    def wish(self, values: dict[str, Any]) -> int:
        """Keep a wish for the runner; the answer is its id."""
        row = wishes.insert().values(study=self.study.name, by=self.by, at=self.now, **values)
        return int(self.connection.execute(row.returning(wishes.c.id)).scalar_one())

    def is_wished(self, kind: WishKind, number: int) -> bool:
        """Whether the same was asked of a trial, and is not done yet."""
        asked = sa.and_(wishes.c.study == self.study.name, wishes.c.kind == kind, wishes.c.number == number)
        return self.connection.execute(sa.select(wishes.c.id).where(asked)).first() is not None

    def _write(self, event: str, details: dict[str, Any], values: dict[str, Any]) -> None:
        values = {**values, "version": self.study.version + 1}
        self.connection.execute(studies.update().where(studies.c.name == self.study.name).values(values))
        append(self.connection, self.study.name, event, self.now, {"by": self.by, **details})


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
