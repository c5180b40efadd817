"""Whether a search was worth it, from losses under fresh seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.results.shrinkage import dunnett, student
from hpsearch.results.verdict import Candidate, Compared, Verdict, verdict

DEFAULTS = 0


def candidates(
    *rows: Sequence[float | None], searched: Sequence[float | None] = (), has_defaults: bool = True
) -> list[Candidate]:
    """Rows of losses under seeds 100, 101, ...; the first is of the defaults, trial 0."""
    found = [*searched, *[float(number) for number in range(len(searched), len(rows))]]
    return [
        Candidate(number, has_defaults and number == DEFAULTS, found[number], dict(enumerate(row, start=100)))
        for number, row in enumerate(rows)
    ]


def judged(*rows: Sequence[float | None], baseline: float | None = None, **options: Any) -> Verdict:
    return verdict(candidates(*rows, **options), "minimize", baseline)


def of(ruling: Verdict, number: int) -> Compared:
    return next(one for one in ruling.candidates if one.number == number)


def test_a_trial_far_ahead_of_the_noise_is_better() -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.0, 1.21, 1.1], [2.3, 2.5, 2.41])
    assert (ruling.outcome, ruling.recommended, ruling.seeds) == ("better", 1, 3)
    assert [one.number for one in ruling.candidates] == [1, 0, 2]
    best = of(ruling, 1)
    assert best.gain == pytest.approx(1.0, abs=0.01)
    assert best.low is not None
    assert best.high is not None
    assert 0.9 < best.low < best.gain < best.high < 1.1
    assert best.probability == pytest.approx(1.0, abs=0.001)
    assert best.mean == pytest.approx(3.31 / 3)
    assert not any(one.tied for one in ruling.candidates)
    assert ruling.text.startswith("Use trial 1: over 3 fresh seeds it is better than the defaults by 1 (")


def test_what_a_seed_does_to_all_alike_is_no_noise() -> None:
    ruling = judged([2.0, 9.0, 5.0], [1.9, 8.9, 4.9])
    assert ruling.noise == 0.0
    assert (ruling.outcome, of(ruling, 1).gain) == ("better", pytest.approx(0.1))


def test_the_noise_is_the_residual_standard_deviation() -> None:
    # Residuals of +-0.05 in each of four cells, one degree of freedom: sqrt(4 * 0.05^2 / 1).
    assert judged([1.0, 2.0], [1.1, 1.9]).noise == pytest.approx(0.1)


def test_one_trial_against_the_defaults_is_a_paired_t_test() -> None:
    differences = np.array([0.3, 0.1, 0.25, 0.05])
    ruling = judged([1.0, 2.0, 3.0, 4.0], (np.arange(1.0, 5.0) - differences).tolist())
    t = differences.mean() / (differences.std(ddof=1) / 2)
    one = of(ruling, 1)
    assert one.gain == pytest.approx(differences.mean())
    assert one.probability == pytest.approx(float(student(np.array([t]), 3)[0]), abs=1e-6)
    margin = 3.182446 * differences.std(ddof=1) / 2
    assert (one.low, one.high) == (
        pytest.approx(differences.mean() - margin, rel=1e-5),
        pytest.approx(differences.mean() + margin, rel=1e-5),
    )


def test_a_lead_within_the_noise_is_unclear_and_the_defaults_are_to_be_used() -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.9, 2.25, 2.0])
    assert (ruling.outcome, ruling.recommended) == ("unclear", DEFAULTS)
    assert ruling.candidates[0].number == 1
    assert of(ruling, 1).tied
    assert "or confirm with about" in ruling.text


def test_a_lead_that_would_take_too_many_seeds_is_not_to_be_confirmed() -> None:
    ruling = judged([2.0, 2.2, 2.1], [2.1, 2.05, 2.14])
    assert ruling.outcome == "unclear"
    assert "a sensible number of seeds would not tell" in ruling.text


def test_as_many_more_seeds_are_advised_as_would_tell_four_times_in_five() -> None:
    """A gain and noise of 1 take 2 (1.645 + 0.842)^2 = 12.4 seeds."""
    ruling = judged([0.0, 0.0, 0.0, 0.0], [0.2, -2.2, -2.2, 0.2])
    assert of(ruling, 1).gain == pytest.approx(1.0)
    assert ruling.noise == pytest.approx(math.sqrt(8 * 0.6**2 / 3))
    assert ruling.outcome == "unclear"
    total = 2 * (1.6449 + 0.8416) ** 2 * (ruling.noise or 0.0) ** 2
    assert f"about {math.ceil(total) - 4} more seeds" in ruling.text


@pytest.mark.parametrize("row", [[2.3, 2.5, 2.41], [2.0, 2.2, 2.1]], ids=["worse", "equal"])
def test_defaults_that_nothing_beats_are_used(row: list[float]) -> None:
    ruling = judged([2.0, 2.2, 2.1], row)
    assert (ruling.outcome, ruling.recommended) == ("defaults", DEFAULTS)
    assert ruling.candidates[0].number == DEFAULTS
    assert ruling.candidates[0].gain is None


@pytest.mark.parametrize("losses", [[0.25, 0.5, 1.0], [1.5, 2.5, 4.0]])  # their sums are exact
def test_a_tie_of_means_is_no_gain_by_rounding(losses: list[float]) -> None:
    ruling = judged(losses, [*losses[1:], losses[0]])
    assert (ruling.outcome, of(ruling, 1).gain) == ("defaults", 0.0)


def test_identical_repeats_of_equal_candidates_are_a_tie() -> None:
    ruling = judged([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1])
    assert (ruling.outcome, ruling.noise) == ("defaults", 0.0)
    assert [(one.gain, one.probability, one.tied) for one in ruling.candidates[1:]] == [(0.0, 0.5, True)] * 2


def test_the_searchs_best_that_fails_under_a_fresh_seed_is_unstable() -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.0, None, 1.1], [2.0, 2.3, 2.1], searched=[2.0, 0.5, 1.0])
    assert (ruling.outcome, ruling.recommended) == ("unstable", DEFAULTS)
    assert ruling.text.startswith("Trial 1, the best of the search, failed under seed 101: do not use it.")
    assert ruling.candidates[-1] == Compared(
        1, False, 0.5, {"100": 1.0, "101": None, "102": 1.1}, None, None, None, None, None, False
    )


def test_a_stable_trial_that_is_better_makes_up_for_the_searchs_best() -> None:
    ruling = judged([2.0, 2.2, 2.1], [0.5, math.inf, math.nan], [1.0, 1.21, 1.1])
    assert (ruling.outcome, ruling.recommended) == ("better", 2)
    assert "Trial 1, the best of the search, failed under seeds 101, 102: do not use it." in ruling.text


def test_a_failure_of_another_than_the_searchs_best_is_named() -> None:
    ruling = judged([2.0, 2.2, 2.1], [2.0, 2.3, 2.1], [1.0, None, 1.1], searched=[2.0, 0.5, 1.0])
    assert ruling.outcome == "defaults"
    assert "Trial 2 failed under seed 101: do not use it." in ruling.text


def test_a_trial_that_never_failed_is_better_than_defaults_that_did() -> None:
    ruling = judged([2.0, None], [2.2, 2.3])
    assert (ruling.outcome, ruling.recommended, of(ruling, 1).gain) == ("better", 1, None)
    assert "The defaults (trial 0) failed under seed 101: do not use them." in ruling.text


def test_of_candidates_that_all_failed_none_is_recommended() -> None:
    ruling = judged([2.0, None], [None, 2.3])
    assert (ruling.outcome, ruling.recommended) == ("unstable", None)
    assert ruling.text.endswith("Use none of them: find out why each failed under a fresh seed.")


def test_without_defaults_the_best_is_recommended_and_its_gain_unknown() -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.0, 1.21, 1.1], [1.01, 1.19, 1.1], has_defaults=False)
    assert (ruling.outcome, ruling.recommended) == ("unclear", 2)
    assert [one.gain for one in ruling.candidates] == [None] * 3
    assert [one.tied for one in ruling.candidates] == [False, True, False]


@pytest.mark.parametrize(
    "rows",
    [[], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 2.0], []], [[], [1.0, 2.0], [1.0, 2.0]]],
    ids=["none", "one", "one seed", "a trial to come", "defaults to come"],
)
def test_too_little_to_compare_is_incomplete(rows: list[list[float]]) -> None:
    ruling = judged(*rows)
    assert (ruling.outcome, ruling.recommended) == ("incomplete", None)
    assert "confirm with more seeds" in ruling.text


def test_only_seeds_that_all_have_count() -> None:
    ruling = judged([2.0, 2.2, 9.0], [1.0, 1.21])
    assert (ruling.seeds, ruling.outcome) == (2, "better")
    assert of(ruling, DEFAULTS).mean == pytest.approx(2.1)


def test_a_trial_that_would_leave_fewer_than_two_seeds_is_left_out() -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.0, 1.21, 1.1], [0.1])
    assert (ruling.seeds, ruling.recommended, of(ruling, 2).mean) == (3, 1, None)


@pytest.mark.parametrize(("baseline", "said"), [(0.9, True), (1.5, False), (None, False), (math.nan, False)])
def test_it_is_said_when_fine_tuning_does_not_help(baseline: float | None, said: bool) -> None:
    ruling = judged([2.0, 2.2, 2.1], [1.0, 1.21, 1.1], baseline=baseline)
    assert ("fine-tuning does not help" in ruling.text) is said


@pytest.mark.parametrize(
    ("given_candidates", "message"),
    [
        (candidates([1.0]) * 2, r"a trial number of its own, not \[0, 0\]"),
        ([replace(one, is_defaults=True) for one in candidates([1.0], [1.0])], r"not trials \[0, 1\]"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(given_candidates: list[Candidate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verdict(given_candidates, "minimize", None)


@pytest.mark.parametrize(("freedom", "critical"), [(1, 6.3138), (2, 2.9200), (3, 2.3534), (8, 1.8595), (31, 1.6955)])
def test_student_agrees_with_the_tables(freedom: int, critical: float) -> None:
    assert student(np.array([critical, -critical]), freedom) == pytest.approx([0.95, 0.05], abs=1e-5)


@pytest.mark.parametrize(
    ("trials", "freedom", "critical"), [(1, 1, 6.314), (2, 5, 2.44), (5, 5, 2.98), (5, 20, 2.39), (9, 120, 2.45)]
)
def test_dunnett_agrees_with_his_table(trials: int, freedom: int, critical: float) -> None:
    """Table 1a of Dunnett 1955: one-sided, 95 %."""
    assert dunnett(critical, trials, freedom) == pytest.approx(0.95, abs=1e-3)


# By simulation: candidates whose true means are known.


def simulated(
    means: Sequence[float], seeds: int, layouts: int, spread: float = 0.0, of_defaults: float = 1.0
) -> dict[str, float]:
    """Figures of the best trial of the search over many layouts with noise 1 and defaults of true mean 0.

    The defaults' noise may be another.
    """
    dice = np.random.default_rng(7)
    raw, gains, covered, false = [], [], 0, 0
    for _ in range(layouts):
        true = np.array([0.0, *(mean + spread * dice.standard_normal() for mean in means)])
        noise = dice.standard_normal((len(true), seeds))
        noise[0] *= of_defaults
        losses = true[:, None] + noise + 3 * dice.standard_normal(seeds)
        ruling = judged(*losses.tolist())
        best = next(one for one in ruling.candidates if not one.is_defaults)
        assert best.gain is not None
        assert best.low is not None
        assert best.high is not None
        gain = -true[best.number]
        raw.append(losses[0].mean() - losses[best.number].mean() - gain)
        gains.append(best.gain - gain)
        covered += best.low <= gain <= best.high
        false += ruling.outcome == "better" and gain <= 0
    error = math.sqrt(2 / seeds)
    return {
        "raw": float(np.mean(raw)) / error,
        "optimism": float(np.mean(gains)) / error,
        "covered": covered / layouts,
        "false": false / layouts,
    }


def test_the_best_of_equal_trials_is_reported_with_little_of_its_luck() -> None:
    """Its mean alone is 0.8 standard errors too good; about a third of that is left where all are exactly equal."""
    figures = simulated([0.0] * 5, seeds=3, layouts=400)
    assert figures["raw"] == pytest.approx(0.82, abs=0.12)
    assert figures["optimism"] < figures["raw"] / 2
    assert figures["optimism"] == pytest.approx(0.28, abs=0.12)


def test_trials_that_differ_by_the_error_of_a_mean_are_reported_without_optimism() -> None:
    figures = simulated([0.0] * 4, seeds=3, layouts=400, spread=1 / math.sqrt(3))
    assert figures["raw"] > 0.4
    assert abs(figures["optimism"]) < 0.12
    assert 0.92 <= figures["covered"] <= 0.98


@pytest.mark.parametrize(
    ("means", "seeds"),
    [([0.0], 3), ([0.0] * 5, 3), ([0.0] * 5, 2), ([0.0, 0.0, 0.0, 4.6], 3)],
    ids=["one", "five", "two seeds", "one that is far worse"],
)
def test_better_is_seldom_said_of_what_is_not(means: list[float], seeds: int) -> None:
    figures = simulated(means, seeds, layouts=400)
    assert figures["false"] <= 0.05 + 0.01
    assert 0.93 - 0.03 <= figures["covered"] <= 0.97 + 0.02  # but for the error of 400 layouts


@pytest.mark.parametrize(("times", "most"), [(0.2, 0.05), (3.0, 0.12)])
def test_defaults_that_vary_otherwise_over_seeds_make_it_less_seldom(times: float, most: float) -> None:
    """There is one noise for all; docs/hyperparameters.md says what that leaves of the promise."""
    assert simulated([0.0] * 3, 3, layouts=1000, of_defaults=times)["false"] <= most


# What must always hold. Losses are multiples of 1/64, so that sums are exact and ties stay ties.

GRID = st.integers(-640, 640).map(lambda whole: whole / 64)
LOSSES = GRID | st.none() | st.sampled_from([math.inf, -math.inf, math.nan])
NUMBERS = st.floats() | st.none()


@st.composite
def tables(draw: st.DrawFn, losses: st.SearchStrategy[float | None] = LOSSES) -> list[Candidate]:
    """Some candidates with or without the defaults; most are whole, some ragged, some failed."""
    size, seeds = draw(st.integers(0, 5)), draw(st.integers(1, 5))
    defaults = draw(st.sampled_from([0, 1, None]))
    table = []
    for number in range(size):
        cell, fewest = draw(st.sampled_from([(GRID, seeds)] * 4 + [(GRID, 0), (losses, seeds)]))
        row = draw(st.lists(cell, min_size=fewest, max_size=seeds))
        table.append(Candidate(number, number == defaults, draw(GRID | st.none()), dict(enumerate(row))))
    return table


def moved(table: Sequence[Candidate], by: Mapping[int, float], times: float = 1.0) -> list[Candidate]:
    return [
        replace(
            one,
            searched=None if one.searched is None else times * one.searched,
            losses={
                seed: None if loss is None else times * loss + by.get(seed, 0.0) for seed, loss in one.losses.items()
            },
        )
        for one in table
    ]


def assert_same(ruling: Verdict, other: Verdict) -> None:
    """But for the means, and what rounding does to the rest."""
    assert (ruling.outcome, ruling.recommended, ruling.seeds) == (other.outcome, other.recommended, other.seeds)
    assert_close(ruling.noise, other.noise)
    for one, its in zip(ruling.candidates, other.candidates, strict=True):
        assert (one.number, one.is_defaults) == (its.number, its.is_defaults)
        figures = [(one.gain, its.gain), (one.low, its.low), (one.high, its.high), (one.probability, its.probability)]
        for mine, theirs in figures:
            assert_close(mine, theirs)


def assert_close(mine: float | None, theirs: float | None) -> None:
    assert (mine is None) is (theirs is None)
    assert mine is None or math.isclose(mine, theirs or 0.0, rel_tol=1e-6, abs_tol=1e-6)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_seeds_does_not_matter(table: list[Candidate], dice: Any) -> None:
    shuffled = [replace(one, losses=dict(dice.sample(list(one.losses.items()), len(one.losses)))) for one in table]
    dice.shuffle(shuffled)
    assert verdict(shuffled, "minimize", 1.0) == verdict(table, "minimize", 1.0)


@given(tables(), st.lists(GRID, min_size=5, max_size=5), GRID)
def test_what_all_have_in_common_changes_no_gain(table: list[Candidate], effects: list[float], constant: float) -> None:
    by = {seed: effect + constant for seed, effect in enumerate(effects)}
    assert_same(verdict(moved(table, by), "minimize", None), verdict(table, "minimize", None))


@given(tables())
def test_higher_is_better_mirrors_lower_is_better(table: list[Candidate]) -> None:
    mirrored = verdict(moved(table, {}, times=-1.0), "maximize", -1.0)
    ruling = verdict(table, "minimize", 1.0)
    assert_same(mirrored, ruling)
    assert ("does not help" in mirrored.text) == ("does not help" in ruling.text)
    assert [one.mean for one in mirrored.candidates] == [one.mean and -one.mean for one in ruling.candidates]


@given(tables(), st.sampled_from(["minimize", "maximize"]))
def test_none_that_failed_is_ever_recommended(table: list[Candidate], direction: Any) -> None:
    ruling = verdict(table, direction, None)
    failed = {
        one.number for one in table if any(loss is None or not math.isfinite(loss) for loss in one.losses.values())
    }
    assert ruling.recommended not in failed
    assert all(of(ruling, number).gain is None and not of(ruling, number).tied for number in failed)
    assert all(f"rial {number}" in ruling.text for number in failed)


@given(tables(losses=NUMBERS), NUMBERS, NUMBERS)
def test_json_has_only_finite_numbers_or_null(
    table: list[Candidate], baseline: float | None, searched: float | None
) -> None:
    ruling = verdict([replace(one, searched=searched) for one in table], "minimize", baseline)
    assert json.loads(json.dumps(ruling.as_json(), allow_nan=False))["outcome"] == ruling.outcome
    assert ruling.text


@given(tables())
def test_only_what_is_better_is_recommended_in_place_of_the_defaults(table: list[Candidate]) -> None:
    ruling = verdict(table, "minimize", None)
    if ruling.outcome == "better":
        best = ruling.candidates[0]
        assert best.number == ruling.recommended
        assert not best.is_defaults
        assert best.probability is None or best.probability >= 0.95
    elif ruling.recommended is not None and any(one.is_defaults for one in table):
        assert of(ruling, ruling.recommended).is_defaults
    for one in ruling.candidates:
        if one.gain is not None and one.low is not None and one.high is not None:
            assert one.low <= one.gain <= one.high
