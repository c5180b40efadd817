"""A verdict in words: what to do, and why."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

from hpsearch.results.layout import is_usable
from hpsearch.results.on_test import OnTest
from hpsearch.results.standing import Compared, Missing, Standing

Outcome = Literal["better", "unclear", "defaults", "unstable", "incomplete"]

SURE = 0.95
"""The probability from which on one is called better."""
POWER = 0.8
"""With which the advised seeds would tell."""
MOST_MORE_SEEDS = 20
"""More are not advised: what is that hard to measure is not worth it."""


def advice(
    known: Standing, outcome: Outcome, recommended: int | None, baseline: float | None, test: OnTest | None
) -> str:
    """The sentences of a verdict.

    Args:
        known: How the candidates stand.
        outcome: What was made of it.
        recommended: The trial to use.
        baseline: The untouched base model's value, if known.
        test: What the recommended trial scores on the test split.
    """
    said, failures = [_what_to_do(known, outcome, recommended)], _failures(known)
    if test is not None:
        said.append(_on_test(test, known.layout.seeds, they=recommended == known.defaults))
    said = [*failures, *said] if outcome == "unstable" else [*said, *failures]
    means = [known.sign * one.mean for one in known.candidates if one.mean is not None]
    helps = recommended is None or not is_usable(baseline) or min(means) < known.sign * (baseline or 0.0)
    if not helps:
        said.append(f"None is better than the untouched base model ({baseline:.4g}): fine-tuning does not help here.")
    if known.missing is not None:
        said.append(_missing_trainings(known.missing))
    return " ".join(said)


def _what_to_do(known: Standing, outcome: Outcome, recommended: int | None) -> str:
    leader, over = known.leader, f"over {known.layout.seeds} fresh seeds"
    if recommended is None or leader is None:
        return _missing(known)
    use = f"Use {known.name(recommended)}"
    if outcome == "better" and leader.gain is None:
        reason = "the defaults failed, it did not"
    elif outcome == "better":
        reason = f"it is better than the defaults by {_gain(leader)}"
    elif known.shrunk is None:
        reason = "nothing else is left to compare"
    elif known.defaults is None:
        reason = "it is ahead; what it gains is not known, the defaults were not among them"
    elif leader.is_defaults:
        reason = "no trial of the search is better"
    else:
        more = _more_seeds(known, leader)
        use += f", or confirm with about {more} more seed{'s' * (more > 1)}" if more else ""
        hopeless = "" if more else "; a sensible number of seeds would not tell"
        reason = f"{known.name(leader.number)} is ahead by {_gain(leader)}, not surely{hopeless}"
    return f"{use}: {over} {reason}."


def _on_test(test: OnTest, seeds: int, *, they: bool) -> str:
    """What examples say that nothing was chosen by."""
    if test.unread is not None:
        return f"The test split could not be read: {test.unread}."
    on = f"n {test.examples} sealed test example{'s' * (test.examples > 1)}"
    on += f" (under {test.seeds} of the seeds)" if test.seeds < seeds else ""
    if test.value is None:
        return f"But o{on} {'their' if they else 'its'} loss is not finite: do not use {'them' if they else 'it'}."
    if test.gain is None:
        return f"O{on} {'they score' if they else 'it scores'} {test.value:.4g}."
    return _gain_on(on, test.gain, test)


def _gain_on(on: str, gain: float, test: OnTest) -> str:
    if test.low is None or test.high is None:
        return f"O{on}, too few for an interval, it gains {gain:.2g}."
    interval = f"(95 % interval {test.low:.2g} to {test.high:.2g})"
    if test.low > 0:
        return f"O{on} it is better by {gain:.2g} {interval}."
    if test.high < 0:
        return (
            f"But o{on} it is not better, its gain is {gain:.2g} {interval}: see whether the validation examples "
            "are like those that it is for."
        )
    return f"O{on} the gain does not show: {gain:.2g} {interval}."


def _missing(known: Standing) -> str:
    if known.candidates and len(known.failed) == len(known.candidates):
        return "Use none of them: find out why each failed under a fresh seed."
    others = "another trial" if known.defaults is None else "the defaults"
    more = "" if known.missing else "; confirm with more seeds"
    need = f"a trial of the search and {others} have to end under the same two fresh seeds or more"
    return f"No comparison yet: {need}{more}."


def _missing_trainings(missing: Missing) -> str:
    broken, unbegun = (
        f"{count} training{'s' * (count > 1)} {words}" * (count > 0)
        for count, words in ((missing.broken, "broke off"), (missing.unbegun, "did not begin"))
    )
    what = " and ".join(filter(None, (broken, unbegun)))
    return f"{what} ({missing.reason}): mend that and confirm again, only what is missing is trained."


def _failures(known: Standing) -> list[str]:
    said = []
    for number, seeds in sorted(known.failed.items(), key=lambda item: (item[0] != known.favourite, item[0])):
        under = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        name = known.name(number)
        best = ", the best of the search," if number == known.favourite else ""
        said.append(f"{name[0].upper()}{name[1:]}{best} failed under {under}: do not use {_it(known, number)}.")
    return said


def _it(known: Standing, number: int) -> str:
    return "them" if number == known.defaults else "it"


def _gain(one: Compared) -> str:
    if one.gain is None or one.low is None or one.high is None or one.probability is None:
        return "an unknown amount"
    return f"{one.gain:.2g} (95 % interval {one.low:.2g} to {one.high:.2g}, probability {percent(one.probability)})"


def percent(probability: float) -> str:
    """Never rounded to certainty, nor across what decides."""
    floored = math.floor(100 * probability)
    return f"{min(99, max(1, floored))} %"


def _more_seeds(known: Standing, leader: Compared) -> int | None:
    """How many would tell a gain as large as the leader's from none, Bonferroni's correction included."""
    if not leader.gain or not known.layout.noise or known.shrunk is None:
        return None
    normal, trials = NormalDist(), known.shrunk.means.size
    errors = normal.inv_cdf(1 - (1 - SURE) / trials) + normal.inv_cdf(POWER)
    more = 2 * (errors * known.layout.noise / leader.gain) ** 2 - known.layout.seeds
    return max(1, math.ceil(more)) if more <= MOST_MORE_SEEDS else None
