"""What examples say that nothing was chosen by: the gain of the recommended trial on the test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.results.layout import Layout
from hpsearch.results.on_test import OnTest, on_test
from hpsearch.results.sealed import SealedScore
from hpsearch.results.verdict import Candidate, Verdict, verdict

QUIET = Layout({0: 2.0, 1: 1.0}, 3, 0.0)
"""Validation losses that no seed moves."""
BLOCKS = 20


def sealed(values: Sequence[float], weights: Sequence[float] | None = None, examples: int = 100) -> SealedScore:
    return SealedScore(examples, tuple(values), tuple(weights or [1.0] * len(values)))


def compared(own: Mapping[int, SealedScore], defaults: Mapping[int, SealedScore], layout: Layout = QUIET) -> OnTest:
    found = on_test(own, defaults, layout, 1.0)
    assert found is not None
    return found


def test_the_whole_is_the_weighted_mean_of_its_blocks() -> None:
    one = sealed([1.0, 4.0], [3.0, 1.0])
    assert one.value == pytest.approx(1.75)
    assert SealedScore.of_json(one.as_json()) == one


def test_one_seed_and_equal_blocks_is_a_paired_t_test_over_the_blocks() -> None:
    differences = np.array([0.3, 0.1, 0.25, 0.05])
    found = compared({7: sealed(1.0 - differences)}, {7: sealed(np.ones(4))})
    assert (found.value, found.defaults) == (pytest.approx(0.825), pytest.approx(1.0))
    assert found.gain == pytest.approx(differences.mean())
    margin = 3.182446 * differences.std(ddof=1) / 2
    assert (found.low, found.high) == (
        pytest.approx(differences.mean() - margin, rel=1e-4),
        pytest.approx(differences.mean() + margin, rel=1e-4),
    )


def test_what_a_block_does_to_both_alike_is_no_doubt() -> None:
    hard = np.array([0.1, 5.0, 2.0])
    found = compared({7: sealed(hard - 0.01)}, {7: sealed(hard)})
    assert found.gain == pytest.approx(0.01)
    assert (found.low, found.high) == (pytest.approx(0.01, rel=1e-6), pytest.approx(0.01, rel=1e-6))


def test_the_noise_between_seeds_is_a_doubt_of_its_own() -> None:
    """Its degrees of freedom, too: a variance of 2 0.1^2 / 2 with one, beside none of the examples."""
    found = compared(
        {1: sealed([1.0] * 9), 2: sealed([1.0] * 9)},
        {1: sealed([2.0] * 9), 2: sealed([2.0] * 9)},
        Layout({0: 2.0, 1: 1.0}, 2, 0.1**2),
    )
    assert (found.low, found.high) == (
        pytest.approx(1.0 - 12.706 * 0.1, rel=1e-3),
        pytest.approx(1.0 + 12.706 * 0.1, rel=1e-3),
    )


def test_only_seeds_that_both_have_are_compared() -> None:
    found = compared({1: sealed([1.0, 1.0]), 2: sealed([9.0, 9.0])}, {1: sealed([3.0, 3.0])})
    assert (found.gain, found.defaults, found.value) == (2.0, 3.0, 5.0)


def test_a_file_that_was_changed_in_between_is_not_compared() -> None:
    found = compared({1: sealed([1.0, 1.0])}, {1: sealed([3.0, 3.0], [1.0, 2.0])})
    assert (found.value, found.defaults, found.gain) == (1.0, None, None)


def test_one_block_tells_a_gain_and_no_interval() -> None:
    found = compared({1: sealed([1.0], examples=1)}, {1: sealed([3.0], examples=1)})
    assert (found.gain, found.low, found.high) == (2.0, None, None)


def test_without_any_figure_there_is_nothing_to_say() -> None:
    assert on_test({}, {1: sealed([1.0, 1.0])}, QUIET, 1.0) is None
    assert on_test({1: sealed([math.nan, 1.0])}, {}, QUIET, 1.0) is None


SCORES = st.lists(st.integers(-64, 64).map(lambda whole: whole / 64), min_size=5, max_size=5)


@given(st.lists(SCORES, min_size=1, max_size=3), st.lists(SCORES, min_size=3, max_size=3))
def test_higher_is_better_mirrors_lower_is_better(own: list[list[float]], theirs: list[list[float]]) -> None:
    mine, others = ({seed: sealed(row) for seed, row in enumerate(rows)} for rows in (own, theirs))
    less = compared(mine, others)
    more = on_test(
        {seed: sealed([-value for value in each.values]) for seed, each in mine.items()},
        {seed: sealed([-value for value in each.values]) for seed, each in others.items()},
        QUIET,
        -1.0,
    )
    assert more is not None
    assert (more.gain, more.low, more.high) == (less.gain, less.low, less.high)
    assert less.gain is not None
    assert less.low is not None
    assert less.high is not None
    assert less.low <= less.gain <= less.high


@pytest.mark.parametrize("examples", [20, 60], ids=["one example a block", "three"])
def test_the_interval_holds_the_gain_on_all_examples_as_often_as_it_says(examples: int) -> None:
    """A trial that gains 0.1 on average, by another amount on each example and under each seed."""
    dice, seeds, held, layouts = np.random.default_rng(11), 3, 0, 400
    for _ in range(layouts):
        lengths = dice.integers(5, 50, examples).astype(float)
        hard = dice.gamma(2.0, 1.0, examples)
        gains = 0.1 + 0.3 * dice.standard_normal(examples)
        own, theirs, noise = {}, {}, 0.05
        validation = {number: dice.standard_normal(seeds) * noise for number in (0, 1)}
        residuals = float(np.var(validation[0] - validation[1]) * seeds / 2)
        for seed in range(seeds):
            shifts = noise * dice.standard_normal(2)
            own[seed] = _in_blocks(hard - gains + shifts[0], lengths)
            theirs[seed] = _in_blocks(hard + shifts[1], lengths)
        found = compared(own, theirs, Layout({0: 0.0, 1: 0.0}, seeds, residuals))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 0.92 <= held / layouts <= 0.99


def _in_blocks(losses: np.ndarray, lengths: np.ndarray) -> SealedScore:
    parts = [
        (part @ own, own.sum()) for part, own in zip(*(np.split(x, BLOCKS) for x in (losses, lengths)), strict=True)
    ]
    return sealed([total / tokens for total, tokens in parts], [tokens for _, tokens in parts], losses.size)


# What the verdict makes of it.


def judged(own: Sequence[float], defaults: Sequence[float], losses: Sequence[float] = (1.0, 1.21, 1.1)) -> Verdict:
    """The defaults, a trial that is better on validation, and one that nobody recommends."""
    rows = [([2.0, 2.2, 2.1], defaults), (losses, own), ([2.3, 2.5, 2.41], [0.0] * len(own))]
    candidates = [
        Candidate(
            number, number == 0, 1.0, dict(enumerate(row)), dict.fromkeys(range(3), sealed(values)) if values else {}
        )
        for number, (row, values) in enumerate(rows)
    ]
    return verdict(candidates, "minimize", None)


def test_what_the_test_split_confirms_is_said() -> None:
    ruling = judged([1.0, 1.02, 1.01], [2.0, 2.0, 2.0])
    assert (ruling.outcome, ruling.recommended) == ("better", 1)
    assert ruling.test is not None
    assert ruling.test.gain == pytest.approx(0.99)
    assert "On 100 sealed test examples it is better by 0.99 (95 % interval " in ruling.text


def test_what_the_test_split_does_not_show_is_said() -> None:
    assert "On 100 sealed test examples the gain does not show: " in judged([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).text


def test_what_the_test_split_contradicts_is_said_and_decides_nothing() -> None:
    ruling = judged([3.0, 3.02, 3.01], [2.0, 2.0, 2.0])
    assert (ruling.outcome, ruling.recommended) == ("better", 1)
    assert "But on 100 sealed test examples it is not better, its gain is -1 (95 % interval " in ruling.text


def test_of_defaults_that_are_recommended_it_is_said_what_they_score() -> None:
    ruling = judged([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], losses=(2.5, 2.6, 2.55))
    assert ruling.recommended == 0
    assert ruling.test == OnTest(100, 2.0, None, None, None, None)
    assert "On 100 sealed test examples they score 2." in ruling.text


def test_without_a_test_split_nothing_is_said_of_one() -> None:
    ruling = judged([], [])
    assert ruling.test is None
    assert "test" not in ruling.text
    assert ruling == replace(judged([1.0, 1.0], [1.0, 1.0]), test=None, text=ruling.text), "nothing else hangs on it"
