"""Whether the best trials are better, or were lucky: what is trained again under fresh seeds."""

from __future__ import annotations

from pydantic import Field

from hpsearch.spec.closed import Closed


class ConfirmSpec(Closed):
    """After the search, its best trials and the `auto` defaults are trained again from the start, under fresh seeds.

    That gives the study its verdict: the winner of many trials is partly the luckiest one, and what it scored says
    more than it would score again. These trainings come on top of the budget, `(top + 1) * seeds` of them, each to its
    end.
    """

    top: int = Field(3, ge=1, le=16)
    """So many of the best trials."""
    seeds: int = Field(3, ge=2, le=16)
    """Fresh seeds, the same for each of them."""
