"""What examples say that nothing was chosen by: the gain of the recommended trial on the test split."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.results.on_test import OnTest
from hpsearch.results.sealed import SealedScore
from hpsearch.results.verdict import Candidate, Verdict, verdict

BLOCKS = 20
BEST, OTHER = 1, 2
LOSSES = {0: [2.0, 2.2, 2.1], BEST: [1.0, 1.21, 1.1], OTHER: [2.3, 2.5, 2.41]}
"""By trial, under three seeds: the defaults, a trial that is better by about 1, and one that nobody recommends."""


def sealed(values: Sequence[float], weights: Sequence[float] | None = None, content: str = "these") -> SealedScore:
    return SealedScore(content, 100, tuple(values), tuple(weights or [1.0] * len(values)))


def candidates(
    own: Sequence[SealedScore | None], defaults: Sequence[SealedScore | None], best: Sequence[float] = (1.0, 1.21, 1.1)
) -> list[Candidate]:
    """Scores by seed; None: there is none under that one."""
    scores = {0: defaults, BEST: own, OTHER: [sealed([0.0, 0.0])] * 3}
    return [
        Candidate(
            number,
            number == 0,
            1.0,
            dict(enumerate(best if number == BEST else losses)),
            {seed: score for seed, score in enumerate(scores[number]) if score is not None},
        )
        for number, losses in LOSSES.items()
    ]


def judged(own: Sequence[SealedScore | None], defaults: Sequence[SealedScore | None]) -> Verdict:
    return verdict(candidates(own, defaults), "minimize", None)


def told(ruling: Verdict) -> OnTest:
    assert (ruling.outcome, ruling.recommended) == ("better", BEST)
    assert ruling.test is not None
    return ruling.test


def test_a_score_comes_back_from_json_and_its_whole_is_the_weighted_mean_of_its_blocks() -> None:
    one = sealed([1.0, 4.0], [3.0, 1.0])
    assert one.value == pytest.approx(1.75)
    assert SealedScore.of_json(json.loads(json.dumps(one.as_json(), allow_nan=False))) == one
    infinite = sealed([1.0, math.inf])
    again = SealedScore.of_json(json.loads(json.dumps(infinite.as_json(), allow_nan=False)))
    assert math.isnan(again.value)
    failed = SealedScore.failed("no such file")
    assert SealedScore.of_json(failed.as_json()) == failed


def as_on_validation(shift: float = 0.0) -> tuple[list[SealedScore], list[SealedScore]]:
    """Test losses that equal the validation losses of the best and the defaults, but for what all examples add."""
    hard = np.linspace(-0.5, 0.5, BLOCKS)
    rows = [[sealed((hard + loss).tolist()) for loss in LOSSES[number]] for number in (BEST, 0)]
    return [sealed([value + shift for value in score.values]) for score in rows[0]], rows[1]


def test_a_gain_that_is_the_same_on_both_splits_is_the_verdicts() -> None:
    """With its interval: other examples would say the same, where every block says the same."""
    ruling = judged(*as_on_validation())
    found, believed = told(ruling), ruling.candidates[0]
    assert found.value == pytest.approx(np.mean(LOSSES[BEST]))
    assert found.defaults == pytest.approx(np.mean(LOSSES[0]))
    assert (found.gain, found.low, found.high) == (
        pytest.approx(believed.gain, abs=1e-9),
        pytest.approx(believed.low, abs=1e-6),
        pytest.approx(believed.high, abs=1e-6),
    )
    assert "it is better than the defaults by 1 " in ruling.text
    assert "On 100 sealed test examples it is better by 1 (95 % interval " in ruling.text


def test_what_it_gains_less_there_is_taken_off() -> None:
    whole, less = (told(judged(*as_on_validation(shift))) for shift in (0.0, 0.3))
    assert whole.gain is not None
    assert less.gain == pytest.approx(whole.gain - 0.3)


def test_what_the_test_split_does_not_show_is_said() -> None:
    own, defaults = as_on_validation(shift=0.95)
    spread = [sealed([value + (-1) ** place for place, value in enumerate(score.values)]) for score in own]
    ruling = judged(spread, defaults)
    assert told(ruling).high is not None
    assert "On 100 sealed test examples the gain does not show: 0.0" in ruling.text


def test_what_the_test_split_contradicts_is_said_and_decides_nothing() -> None:
    ruling = judged(*as_on_validation(shift=2.0))
    assert told(ruling).gain == pytest.approx(-1.0, abs=0.02)
    assert "But on 100 sealed test examples it is not better, its gain is -1 (95 % interval " in ruling.text


def test_of_defaults_that_are_recommended_it_is_said_what_they_score() -> None:
    own, defaults = as_on_validation()
    ruling = verdict(candidates(own, defaults, best=[2.5, 2.6, 2.55]), "minimize", None)
    assert ruling.recommended == 0
    assert ruling.test == OnTest(100, 3, pytest.approx(2.1), None, None, None, None, None)
    assert "On 100 sealed test examples they score 2.1." in ruling.text


def test_without_a_test_split_nothing_is_said_of_one() -> None:
    ruling = judged([], [])
    assert ruling.test is None
    assert "test" not in ruling.text
    assert ruling == replace(judged(*as_on_validation()), test=None, text=ruling.text), "nothing else hangs on it"


def test_only_seeds_that_both_have_are_compared() -> None:
    own, defaults = as_on_validation()
    ruling = judged([own[0], sealed([9.0] * BLOCKS), own[2]], [defaults[0], None, defaults[2]])
    found = told(ruling)
    assert (found.seeds, found.value) == (2, pytest.approx(1.05))
    assert "On 100 sealed test examples (under 2 of the seeds) it is better by 1" in ruling.text


def test_examples_that_were_changed_in_between_are_not_compared() -> None:
    own, defaults = as_on_validation()
    found = told(judged(own, [replace(score, fingerprint="others") for score in defaults]))
    assert (found.value, found.defaults, found.gain) == (pytest.approx(1.1, abs=0.01), None, None)


def test_a_loss_that_is_not_finite_is_no_loss_to_be_left_out() -> None:
    own, defaults = as_on_validation()
    ruling = judged([own[0], sealed([math.inf] * BLOCKS), own[2]], defaults)
    assert told(ruling).value is None
    assert "But on 100 sealed test examples its loss is not finite: do not use it." in ruling.text


def test_a_split_that_could_not_be_read_is_said() -> None:
    ruling = judged([SealedScore.failed("data.test: there is no such file")] * 3, as_on_validation()[1])
    assert "The test split could not be read: data.test: there is no such file." in ruling.text
    assert json.dumps(ruling.as_json(), allow_nan=False)


@pytest.mark.parametrize("weights", [[1.0], [9.0, 1.0, 1.0]], ids=["one block", "one that has most of the tokens"])
def test_where_the_blocks_tell_nothing_there_is_no_interval(weights: list[float]) -> None:
    rows = [[sealed([loss] * len(weights), weights) for loss in LOSSES[number]] for number in (BEST, 0)]
    ruling = judged(rows[0], rows[1])
    assert told(ruling).gain == pytest.approx(1.0, abs=0.02)
    assert told(ruling).low is None
    assert "On 100 sealed test examples, too few for an interval, it gains 1" in ruling.text


def test_it_is_said_of_the_recommended_trial_before_others_are_spoken_of() -> None:
    own, defaults = as_on_validation()
    failed = replace(candidates(own, defaults)[2], losses={0: 1.0, 1: None})
    text = verdict([*candidates(own, defaults)[:2], failed], "minimize", None).text
    assert text.index("sealed test examples it is better") < text.index("Trial 2 failed under seed 1: do not use it.")


SCORES = st.lists(
    st.lists(st.integers(-64, 64).map(lambda whole: whole / 64), min_size=5, max_size=5), min_size=3, max_size=3
)


@given(SCORES, SCORES)
def test_higher_is_better_mirrors_lower_is_better(own: list[list[float]], theirs: list[list[float]]) -> None:
    table = candidates([sealed(row) for row in own], [sealed(row) for row in theirs])
    mirrored = [
        replace(
            one,
            searched=None if one.searched is None else -one.searched,
            losses={seed: -(loss or 0.0) for seed, loss in one.losses.items()},
            sealed={
                seed: replace(score, values=tuple(-value for value in score.values))
                for seed, score in one.sealed.items()
            },
        )
        for one in table
    ]
    less, more = told(verdict(table, "minimize", None)), told(verdict(mirrored, "maximize", None))
    assert more.gain == pytest.approx(less.gain, abs=1e-9)
    assert (more.low, more.high) == (pytest.approx(less.low, abs=1e-9), pytest.approx(less.high, abs=1e-9))
    assert less.gain is not None
    assert less.low is not None
    assert less.high is not None
    assert less.low <= less.gain <= less.high


# By simulation: trials whose true gain is known, of which the best is chosen by validation losses.

Lengths = Callable[[np.random.Generator], np.ndarray]


def even(dice: np.random.Generator) -> np.ndarray:
    return dice.integers(5, 50, 60)


def uneven(dice: np.random.Generator) -> np.ndarray:
    return np.clip(np.exp(dice.normal(4, 1.5, 60)), 1, 1024)


@pytest.mark.parametrize(
    ("trials", "shared", "of_examples", "lengths"),
    [(1, 1.0, 2.0, even), (8, 1.0, 0.0, even), (8, 0.9, 4.0, even), (3, 0.9, 4.0, uneven)],
    ids=["one trial", "the best of eight under the same luck", "with other examples", "uneven lengths"],
)
def test_the_interval_holds_the_gain_of_the_chosen_one_as_often_as_it_says(
    trials: int, shared: float, of_examples: float, lengths: Lengths
) -> None:
    """Noise 1 between seeds, most of it the same on both splits; a trial gains another amount on each example."""
    dice, seeds, gain, held, told_of = np.random.default_rng(11), 3, 4.0, 0, 0
    for _ in range(300):
        tokens = lengths(dice).astype(float)
        hard, common = dice.gamma(2.0, 1.0, tokens.size), 3 * dice.standard_normal(seeds)
        table = []
        for number in range(trials + 1):
            luck, other = dice.standard_normal((2, seeds))
            true = 0.0 if number == 0 else -gain
            examples = hard + (of_examples * dice.standard_normal(tokens.size) if number else 0.0)
            moved = shared * luck + math.sqrt(1 - shared**2) * other + common + true
            scores = {seed: _in_blocks(examples + moved[seed], tokens) for seed in range(seeds)}
            table.append(Candidate(number, number == 0, 1.0, dict(enumerate((true + luck + common).tolist())), scores))
        test = verdict(table, "minimize", None).test
        if test is not None and test.low is not None and test.high is not None:
            told_of += 1
            held += test.low <= gain <= test.high
    assert told_of > 250
    assert 0.91 <= held / told_of <= 0.99


def _in_blocks(losses: np.ndarray, tokens: np.ndarray) -> SealedScore:
    parts = [
        (float(part @ own), float(own.sum()))
        for part, own in zip(*(np.split(x, BLOCKS) for x in (losses, tokens)), strict=True)
    ]
    return sealed([total / weight for total, weight in parts], [weight for _, weight in parts])
