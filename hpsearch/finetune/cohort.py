"""Trials that train together on one device, over one copy of the base model."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.errors import OutOfMemory, TrialFailure
from hpsearch.finetune.evaluate import Evaluation
from hpsearch.finetune.member import Member, evaluated
from hpsearch.finetune.replay import Proof, Replay
from hpsearch.finetune.step import Turn, gradients, in_less_memory, is_out_of_memory
from hpsearch.results import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A member has trained all its epochs; it has left the cohort."""

    best: Report
    """What the trial is worth."""
    member: Member
    """For `save_best`, and its figures."""


@dataclass(frozen=True)
class Failed:
    """A member could not go on; it has left the cohort."""

    error: TrialFailure


Event = Report | Replay | Finished | Failed


class Cohort:
    """Members by key. Each tick is one optimizer step for every one of them.

    A member may be admitted or removed between any two ticks, which changes nothing for the others but the order of
    sums. Members with adapters on one base model, of whichever studies, belong to one thread.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._proofs: dict[str, Proof] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def __getitem__(self, key: str) -> Member:
        return self._members[key]

    def admit(self, key: str, member: Member, *, prove: bool = False) -> None:
        """Train this member too, from the next tick on.

        Args:
            key: Names it.
            member: Fresh, or restored from a snapshot.
            prove: Make its first steps again alone, and say with `Replay` how far the losses are apart; a member that
                has been trained already has no first steps.
        """
        if key in self._members:
            raise ValueError(f"'{key}' is in the cohort already")
        self._members[key] = member
        if prove and member.steps == 0:
            self._proofs[key] = Proof(member)

    def remove(self, key: str) -> Member:
        """Stop training a member, such as one that was pruned; its best weights can still be saved."""
        self._proofs.pop(key, None)
        return self._members.pop(key)

    def tick(self, waiting: Collection[str] = ()) -> list[tuple[str, Event]]:
        """One optimizer step for every member, in the order of admission; what happened, in order.

        Members in `waiting` stand still: nobody has dealt with their last report yet.

        Members with adapters on one base are trained in one pass. A member's first tick begins with its report number
        0, the baseline. One that has trained all its epochs reports its last report, then `Finished`. One member's
        failure does not touch the others.
        """
        events: dict[str, list[Event]] = {}
        turns: dict[str, Turn] = {}
        for key, member in self._members.items():
            if key in waiting:
                continue
            events[key] = [member.prepared.baseline] if member.steps == 0 else []
            try:
                turns[key] = member.turn()
            except Exception as error:  # any failure is this member's alone: it is named, and the others go on
                events[key].append(Failed(as_failure(error)))
        companies = _alike(turns, self._base, self._is_pooled)
        for company in companies:
            for key, outcome in self._trained({key: turns[key] for key in company}, len(companies) > 1):
                events[key] += outcome
        for key in [key for key, happened in events.items() if any(isinstance(event, _LAST) for event in happened)]:
            self.remove(key)
        return [(key, event) for key, happened in events.items() for event in happened]

    def _trained(self, turns: dict[str, Turn], is_one_of_several: bool) -> Iterator[tuple[str, list[Event]]]:
        """One step of each of these members, in one of the passes of a tick."""
        members = [self._members[key] for key in turns]
        loaded, started = members[0].prepared.loaded, time.perf_counter()
        asked = min(member.token_budget for member in members)
        try:
            nll, budget = in_less_memory(lambda budget: gradients(loaded, list(turns.values()), budget), asked)
            if loaded.device.type == "cuda" and (is_one_of_several or any(member.waits_next for member in members)):
                # Else whoever waits first books what the device was given for all as its own seconds.
                torch.cuda.synchronize(loaded.device)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold all that the pass has kept
            if len(turns) == 1:
                yield next(iter(turns)), [Failed(as_failure(error))]
                return
            log.warning("pass of several trials failed: each is trained alone", exc_info=True)
            for key, turn in turns.items():  # whose failure it is shows then
                yield from self._trained({key: turn}, is_one_of_several=True)
            return
        seconds = (time.perf_counter() - started) / sum(turn.tokens for turn in turns.values())
        due: dict[str, int] = {}
        for member, (key, turn), own in zip(members, turns.items(), nll, strict=True):
            if budget < asked:  # what was somebody else's least is not everybody's
                member.token_budget = budget
            try:
                point = member.update(turn, own, seconds * turn.tokens)
            except Exception as error:  # any failure is this member's alone
                yield key, [Failed(as_failure(error))]
                continue
            if key in self._proofs:
                yield key, self._proved(key, turn, own, len(turns))
            if point is not None:
                due[key] = point
        yield from self._reported(due)

    def _proved(self, key: str, turn: Turn, nll: Tensor, company: int) -> list[Event]:
        """A member's first steps alone, when it has made as many in company."""
        proof = self._proofs[key]
        proof.note(turn, nll, company)
        if not proof.is_due:
            return []
        del self._proofs[key]
        try:
            return [proof.replay()]
        except Exception:  # the trial itself is well
            log.warning("first steps not replayed", exc_info=True)
            return []

    def _reported(self, due: dict[str, int]) -> Iterator[tuple[str, list[Event]]]:
        """The reports of members that have reached these points; those over the same data are read in one pass."""
        for company in _alike(due, lambda key: id(self._members[key].prepared), self._is_pooled):
            members, started = [self._members[key] for key in company], time.perf_counter()
            try:
                evaluations = evaluated(members)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)
                if len(company) == 1:
                    yield company[0], [Failed(as_failure(error))]
                    continue
                log.warning("evaluation of several trials failed: each is evaluated alone", exc_info=True)
                for key in company:
                    yield from self._reported({key: due[key]})
                continue
            seconds = (time.perf_counter() - started) / len(company)
            for key, member, evaluation in zip(company, members, evaluations, strict=True):
                yield key, self._report(member, due[key], evaluation, seconds)

    def _report(self, member: Member, point: int, evaluation: Evaluation, seconds: float) -> list[Event]:
        try:
            events: list[Event] = [member.report(point, evaluation, seconds)]
        except Exception as error:  # any failure is this member's alone
            return [Failed(as_failure(error))]
        if member.is_done:
            assert member.best is not None  # the last example of an epoch is always a report
            events.append(Finished(member.best, member))
        return events

    def _base(self, key: str) -> object:
        """Members of one base, whatever their data, are trained in one pass."""
        loaded = self._members[key].prepared.loaded
        return id(loaded.model), loaded.anatomy.packs

    def _is_pooled(self, key: str) -> bool:
        """Adapters on one base are read together; a whole model is alone."""
        return self._members[key].config.model.method == "lora"


def _alike(keys: Iterable[str], kind: Callable[[str], object], is_pooled: Callable[[str], bool]) -> list[list[str]]:
    """Those that may be in one pass, in order."""
    companies: dict[object, list[str]] = {}
    for key in keys:
        companies.setdefault(kind(key) if is_pooled(key) else key, []).append(key)
    return list(companies.values())


_LAST = Finished | Failed
"""After these a member has left."""


def as_failure(error: Exception) -> TrialFailure:
    """The failure as one that is stored on a trial: anything unforeseen keeps its text."""
    if isinstance(error, TrialFailure):
        return error
    failure = OutOfMemory() if is_out_of_memory(error) else TrialFailure(f"{type(error).__name__}: {error}"[:2000])
    failure.__cause__ = error
    return failure
