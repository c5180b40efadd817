"""Proof that company changes nothing: a member's first steps in a cohort, made again alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor

from hpsearch.finetune.member import Member
from hpsearch.finetune.step import Turn, gradients, in_less_memory

STEPS = 8
"""How many are made again."""


@dataclass(frozen=True)
class Replay:
    """What came out."""

    steps: int
    company: int
    """Members in the largest pass of these steps, the trial itself included."""
    deviation: float
    """The largest |together - alone| / alone of a step's training loss."""


class Proof:
    """Notes a fresh member's first losses, to compare them with those that it has alone."""

    def __init__(self, member: Member) -> None:
        self._member, self._company = member, 1
        self._losses: list[Tensor] = []

    def note(self, turn: Turn, nll: Tensor, company: int) -> None:
        """A step's sum(w * nll), and how many members were in the pass."""
        self._losses.append(nll / turn.weight)
        self._company = max(self._company, company)

    @property
    def is_due(self) -> bool:
        """Whether there are as many steps as will be compared."""
        return len(self._losses) == min(STEPS, self._member.total_steps)

    def replay(self) -> Replay:
        """Make the same steps alone; the member itself is not touched.

        Raises:
            TrialFailure: As the steps did in company.
        """
        twin = Member(self._member.config, self._member.prepared, self._member.metric)
        deviations = []
        for together in self._losses:
            turn = twin.turn()
            compute = functools.partial(gradients, twin.prepared.loaded, [turn])
            nll, twin.token_budget = in_less_memory(compute, twin.token_budget)
            twin.update(turn, nll[0], seconds=0.0)
            alone = float(nll[0]) / turn.weight
            deviations.append(abs(float(together) - alone) / abs(alone) if alone else abs(float(together)))
        return Replay(len(deviations), self._company, max(deviations))
