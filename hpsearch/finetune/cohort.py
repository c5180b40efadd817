"""Trials that train together on one device, over one copy of the base model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hpsearch.errors import OutOfMemory, TrialFailure
from hpsearch.finetune.member import Member, is_out_of_memory
from hpsearch.results import Report


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


Event = Report | Finished | Failed


class Cohort:
    """Members by key. Each tick is one optimizer step for every one of them.

    A member may be admitted or removed between any two ticks, which changes nothing for the others. All LoRA
    members of one `Prepared` share its base model, so all of them belong to one thread.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def admit(self, key: str, member: Member) -> None:
        """Train this member too, from the next tick on."""
        if key in self._members:
            raise ValueError(f"'{key}' is in the cohort already")
        self._members[key] = member

    def remove(self, key: str) -> Member:
        """Stop training a member, such as one that was pruned; its best weights can still be saved."""
        return self._members.pop(key)

    def tick(self, waiting: Collection[str] = ()) -> list[tuple[str, Event]]:
        """One optimizer step for every member, in the order of admission; what happened, in order.

        Members in `waiting` stand still: nobody has dealt with their last report yet.

        A member's first tick begins with its report number 0, the baseline. One that has trained all its epochs
        reports its last report, then `Finished`. One member's failure does not touch the others.
        """
        return [(key, event) for key in list(self._members) if key not in waiting for event in self._advance(key)]

    def _advance(self, key: str) -> Iterator[Event]:
        member = self._members[key]
        if member.steps == 0:
            yield member.prepared.baseline
        try:
            report = member.advance()
        except Exception as error:  # any failure is this member's alone: it is named, and the others go on
            del self._members[key]
            yield Failed(as_failure(error))
            return
        if report is not None:
            yield report
        if member.is_done:
            del self._members[key]
            assert member.best is not None  # the last example of an epoch is always a report
            yield Finished(member.best, member)


def as_failure(error: Exception) -> TrialFailure:
    """The failure as one that is stored on a trial: anything unforeseen keeps its text."""
    if isinstance(error, TrialFailure):
        return error
    failure = OutOfMemory() if is_out_of_memory(error) else TrialFailure(f"{type(error).__name__}: {error}"[:2000])
    failure.__cause__ = error
    return failure
