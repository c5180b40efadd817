"""How much better a trial is on examples that nothing was chosen by.

The same weights are evaluated on the validation and on the test split, so what a seed did for a trial on one it did,
for the most part, on the other. The mean of the test losses is therefore about as optimistic, for a trial that was
recommended for its validation losses, as those are. What is believed of the gain (`shrinkage.py`, which allows for the
choice) is moved by how much more the trial gains on the test examples than on the validation examples with the same
weights; luck that is shared is not in that difference. Were none of it shared, the gain would be understated.

How far the test examples might have been others is told from blocks of them, which have both trials' losses. The
difference of two ratios of sums over blocks has the linearised variance of Cochran 1977, "Sampling techniques",
section 6.4, here with each block's residual divided by 1 - its share (a jackknife's: MacKinnon and White 1985, "Some
heteroskedasticity-consistent covariance matrix estimators", J. Econometrics 29), since a block with most of the tokens
is what the whole is; the degrees of freedom are those of as many equal blocks as would weigh the same (Kish 1965).
The degrees of freedom of sums of variances are Satterthwaite's (1946, "An approximate distribution of estimates of
variance components").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hpsearch.results.layout import is_usable
from hpsearch.results.sealed import SealedScore
from hpsearch.results.shrinkage import Array, Spread
from hpsearch.results.standing import TAIL, Candidate, Standing

LARGEST_SHARE = 0.5
"""Of the tokens: where one block has more, how the others differ says nothing of it."""


@dataclass(frozen=True)
class OnTest:
    """What the recommended trial scores there, in the objective's unit."""

    examples: int
    seeds: int
    """Fresh seeds that the figures are means over."""
    value: float | None
    """None: it is not finite, or the split could not be read."""
    defaults: float | None
    """None where the defaults are recommended, or have no figures."""
    gain: float | None
    """Over the defaults, positive is better in either direction; corrected for the trial's having been chosen, so it is
    not the difference of the two."""
    low: float | None
    high: float | None
    """The 95 % interval of the gain, over other examples like these and other seeds."""
    unread: str | None
    """Why the split could not be read."""


def on_test(candidates: Mapping[int, Candidate], known: Standing, recommended: int) -> OnTest | None:
    """What the test split says of the recommended trial; None where there is none.

    Args:
        candidates: By number.
        known: How they stand on the validation split.
        recommended: The number of the one to use.
    """
    own, defaults = candidates[recommended], None if known.defaults is None else candidates[known.defaults]
    read = {seed: score for seed, score in own.sealed.items() if score.unread is None}
    if not read:
        unread = next((score.unread for score in own.sealed.values()), None)
        return None if unread is None else OnTest(0, 0, None, None, None, None, None, unread)
    last = list(read.values())[-1]
    read = {seed: score for seed, score in read.items() if _is_alike(score, last)}
    told = OnTest(last.examples, len(read), None, None, None, None, None, None)
    if not all(is_usable(score.value) for score in read.values()):
        return told
    theirs = {} if defaults is None or defaults is own or defaults.number in known.failed else defaults.sealed
    both = {
        seed: (score, theirs[seed])
        for seed, score in read.items()
        if seed in theirs and _is_alike(theirs[seed], last) and is_usable(theirs[seed].value)
    }
    if not both or defaults is None:
        return replace(told, value=_mean([score.value for score in read.values()]))
    told = replace(
        told,
        seeds=len(both),
        value=_mean([score.value for score, _ in both.values()]),
        defaults=_mean([other.value for _, other in both.values()]),
    )
    believed = known.believed(recommended)
    if believed is None:
        return told
    # By how much the trial gains more on these examples than on those of the validation split, with the same weights.
    more = _mean(
        [
            known.sign * ((other.value - score.value) - (_loss(defaults, seed) - _loss(own, seed)))
            for seed, (score, other) in both.items()
        ]
    )
    blocks = [known.sign * (np.array(other.values) - np.array(score.values)) for score, other in both.values()]
    return _with_gain(told, believed, more, np.mean(blocks, axis=0), np.array(last.weights))


def _with_gain(told: OnTest, believed: Spread, more: float, differences: Array, weights: Array) -> OnTest:
    shares = weights / weights.sum()
    gain = float(believed.mean()[0]) + more
    if shares.max() > LARGEST_SHARE:
        return replace(told, gain=gain)
    residuals = differences - shares @ differences
    of_examples = float(((shares / (1 - shares)) ** 2) @ residuals**2)
    freedom = max(1, math.floor(1 / float(shares @ shares)) - 1)
    of_seeds = float(believed.weights @ believed.scale**2)
    total = of_examples + of_seeds
    if total:
        freedom = max(1, math.floor(total**2 / (of_examples**2 / freedom + of_seeds**2 / believed.freedom)))
    spread = Spread(believed.weights, believed.at + more, np.sqrt(believed.scale**2 + of_examples), freedom)
    low, high = (float(end[0]) for end in spread.interval(TAIL))
    return replace(told, gain=gain, low=low, high=high)


def _is_alike(score: SealedScore, other: SealedScore) -> bool:
    """Whether both are of the same examples: a file may have been changed between two trainings."""
    return score.fingerprint == other.fingerprint and score.unread is None


def _loss(candidate: Candidate, seed: int) -> float:
    """On the validation split; whoever asks knows that it is there."""
    loss = candidate.losses[seed]
    assert loss is not None
    return loss


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
