"""Whether a search was worth it: its best trials and the defaults, trained again under fresh seeds.

The losses are compared seed by seed (`layout.py`). The best of several measured candidates is also the luckiest: its
gain is shrunk (`shrinkage.py`), and a probability above one half that it beats the defaults is never more than what
Dunnett's test leaves of it. Shrinking alone is not enough: of five trials that all equal the defaults one was called
`better` in 8 to 10 % of simulated studies. Dunnett's test keeps that below 5 %, however the trials' means lie, but has
nothing to say of the gain. A candidate that failed under any seed is out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hpsearch.results.advice import SURE, Outcome, advice
from hpsearch.results.on_test import OnTest, on_test
from hpsearch.results.standing import Candidate, Compared, Missing, Standing, standing
from hpsearch.spec.objective import Direction

__all__ = ["Candidate", "Compared", "Outcome", "Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the fresh seeds say."""

    outcome: Outcome
    """`better`: the recommended trial beats the defaults with a probability of at least 95 %, or the defaults failed
    under a fresh seed and it under none (then it has no gain). `defaults`: nothing is better than they are. `unclear`:
    a trial leads but not surely, or the space has no defaults to compare with. `unstable`: the search's best (or every
    candidate) failed under a fresh seed and nothing else is `better`. `incomplete`: fewer than two seeds that all
    compared candidates have, or nothing to compare."""
    text: str
    """For a person: what to do, and why."""
    recommended: int | None
    """The trial to use: the defaults unless another is `better` or there are none. Never one that failed."""
    seeds: int
    """Fresh seeds that all compared candidates have."""
    noise: float | None
    """Standard deviation of one loss between seeds, after what a seed does to all alike; None if unknown."""
    candidates: tuple[Compared, ...]
    """Best first; those that could not be compared are last."""
    test: OnTest | None = None
    """What the recommended trial scores on examples that nothing was chosen by; None without a test split."""

    def as_json(self) -> dict[str, Any]:
        """Its fields; every number is finite or null."""
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}


def verdict(
    candidates: Sequence[Candidate], direction: Direction, baseline: float | None, missing: Missing | None = None
) -> Verdict:
    """Compare candidates by their losses under fresh seeds.

    Args:
        candidates: In any order; one of them the defaults, unless the search space excludes them.
        direction: Of the objective.
        baseline: The untouched base model's value of it, if known.
        missing: The trainings that did not come to their ends, by no fault of their params.

    Raises:
        ValueError: Two candidates have the same number, or two are the defaults.
    """
    numbers = sorted(candidate.number for candidate in candidates)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"candidates: each needs a trial number of its own, not {numbers}")
    defaults = sorted(candidate.number for candidate in candidates if candidate.is_defaults)
    if len(defaults) > 1:
        raise ValueError(f"candidates: only one can be the defaults, not trials {defaults}; leave is_defaults off")
    sign = 1.0 if direction == "minimize" else -1.0
    known = standing(candidates, sign, missing)
    outcome, recommended = _decide(known)
    by_number = {candidate.number: candidate for candidate in candidates}
    test = None if recommended is None else on_test(by_number, known, recommended)
    text = advice(known, outcome, recommended, baseline, test)
    tied = _tied(known, recommended)
    compared = tuple(replace(one, tied=one.number in tied) for one in known.candidates)
    return Verdict(outcome, text, recommended, known.layout.seeds, known.layout.noise, compared, test)


def _decide(known: Standing) -> tuple[Outcome, int | None]:
    """The outcome and the trial to use."""
    leader, defaults = known.leader, known.defaults
    if leader is not None and defaults in known.failed:
        return "better", leader.number
    if leader is not None and leader.probability is not None and leader.probability >= SURE:
        return "better", leader.number
    to_use = leader.number if leader and defaults is None else defaults if defaults in known.layout.means else None
    if known.unstable:
        return "unstable", to_use if leader else None
    if known.shrunk is None or to_use is None:
        return "incomplete", None
    return "defaults" if leader and leader.is_defaults else "unclear", to_use


def _tied(known: Standing, recommended: int | None) -> set[int]:
    """Those that are neither surely better nor surely worse than the recommended one."""
    if known.shrunk is None or recommended is None:
        return set()
    if recommended == known.defaults:
        chances = {one.number: one.probability for one in known.candidates if one.probability is not None}
        return {number for number, probability in chances.items() if 1 - SURE < probability < SURE}
    ahead = known.shrunk.below(known.chosen.index(recommended)).tolist()
    return {number for number, sure in zip(known.chosen, ahead, strict=True) if sure < SURE and number != recommended}
