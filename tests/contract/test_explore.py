"""What an heir's params are and who is replaced, beside Ray Tune's own population based training."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _explore, _PBTTrialState
from scipy.stats import chisquare, ks_2samp

from hpsearch.search.explore import FACTORS, explored, quantile_size

DRAWS = 4000
RESAMPLE = 0.25
LEAST = 1e-3
"""Of a p-value. The seeds are fixed: this fails for another distribution, and not by chance."""


def ours(params: dict[str, Any], spaces: dict[str, Any]) -> list[dict[str, Any]]:
    dice = random.Random(0)
    return [explored(params, spaces, RESAMPLE, dice) for _ in range(DRAWS)]


def rays(params: dict[str, Any], mutations: dict[str, Any]) -> list[dict[str, Any]]:
    before = random.getstate()
    random.seed(1)
    try:
        return [_explore(params, mutations, RESAMPLE, FACTORS, None)[0] for _ in range(DRAWS)]
    finally:
        random.setstate(before)


@pytest.mark.parametrize(
    ("space", "domain", "value"),
    [
        pytest.param(FloatDistribution(0.01, 10, log=True), tune.loguniform(0.01, 10), 0.7, id="log"),
        pytest.param(FloatDistribution(0.0, 0.5), tune.uniform(0.0, 0.5), 0.2, id="even"),
    ],
)
def test_a_number_changes_as_in_ray_tune(space: FloatDistribution, domain: Any, value: float) -> None:
    found = [drawn["x"] for drawn in ours({"x": value}, {"x": space})]
    known = [drawn["x"] for drawn in rays({"x": value}, {"x": domain})]
    kinds = [
        Counter("up" if x == value * 1.2 else "down" if x == value * 0.8 else "drawn" for x in xs)
        for xs in (found, known)
    ]
    expected = {"up": 0.375, "down": 0.375, "drawn": 0.25}
    for kind in kinds:
        assert chisquare([kind[k] for k in expected], [p * DRAWS for p in expected.values()]).pvalue > LEAST
    assert ks_2samp(found, known).pvalue > LEAST


@pytest.mark.parametrize("value", [0.0, 0.01, 0.1])
def test_a_choice_changes_as_in_ray_tune(value: float) -> None:
    choices = [0.0, 0.01, 0.1]
    space = CategoricalDistribution((0.1, 0.0, 0.01))  # in whatever order they are written
    found = Counter(drawn["x"] for drawn in ours({"x": value}, {"x": space}))
    known = Counter(drawn["x"] for drawn in rays({"x": value}, {"x": choices}))
    place = choices.index(value)
    expected = dict.fromkeys(choices, RESAMPLE / 3)
    for neighbour in (max(place - 1, 0), min(place + 1, 2)):
        expected[choices[neighbour]] += (1 - RESAMPLE) / 2
    for counted in (found, known):
        assert chisquare([counted[c] for c in choices], [expected[c] * DRAWS for c in choices]).pvalue > LEAST


def test_parameters_change_by_themselves_and_others_stay() -> None:
    spaces = {
        "x": FloatDistribution(0.01, 10, log=True),
        "y": FloatDistribution(0.0, 0.5),
        "z": FloatDistribution(0, 1),
    }
    drawn = ours({"x": 1.0, "y": 0.2, "epochs": 3}, spaces)
    assert all(each.keys() == {"x", "y", "epochs"} for each in drawn)
    assert {each["epochs"] for each in drawn} == {3}
    pairs = Counter((each["x"] > 1.0, each["y"] > 0.2) for each in drawn)
    rows = [pairs[True, True] + pairs[True, False], pairs[False, True] + pairs[False, False]]
    columns = [pairs[True, True] + pairs[False, True], pairs[True, False] + pairs[False, False]]
    independent = [row * column / DRAWS for row in rows for column in columns]
    counted = [pairs[a, b] for a in (True, False) for b in (True, False)]
    assert chisquare(counted, independent, ddof=2).pvalue > LEAST


@pytest.mark.filterwarnings("ignore:The distribution is specified")  # by steps whose last one ends before the end
@given(data=st.data())
def test_nothing_leaves_the_search_space(data: st.DataObject) -> None:
    low = data.draw(st.floats(0.001, 1.0))
    high = low + data.draw(st.floats(0.001, 5.0))
    step = data.draw(st.one_of(st.none(), st.floats(0.01, 0.5)))
    is_log = step is None and data.draw(st.booleans())
    if step is not None:
        high = low + step * data.draw(st.integers(1, 20))
    space = FloatDistribution(low, high, step=step, log=is_log)
    place = data.draw(st.integers(0, 20))
    value = low if step is None else min(low + place * step, space.high)
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(20):
        moved = explored({"x": value}, {"x": space}, 0.25, dice)["x"]
        assert isinstance(moved, float)
        assert space._contains(moved)
        value = moved


def test_where_a_fifth_is_less_than_a_step_the_next_step_is_taken() -> None:
    space = FloatDistribution(0.0, 0.5, step=0.1)
    dice = random.Random(0)
    found = Counter(round(explored({"x": 0.1}, {"x": space}, 0.0, dice)["x"], 9) for _ in range(400))
    assert set(found) == {0.0, 0.2}
    assert min(found.values()) > 150


@pytest.mark.parametrize("quantile", [0.1, 0.25, 0.3, 0.5])
def test_as_many_are_replaced_as_in_ray_tune(quantile: float) -> None:
    for count in range(1, 40):
        scheduler = PopulationBasedTraining(
            time_attr="t",
            metric="loss",
            mode="min",
            perturbation_interval=1,
            quantile_fraction=quantile,
            hyperparam_mutations={"x": tune.uniform(0, 1)},
        )
        for number in range(count):
            trial = Trial("stub", stub=True)
            state = scheduler._trial_state[trial] = _PBTTrialState(trial)
            state.last_score = float(number)
        lower, upper = scheduler._quantiles()
        assert len(lower) == len(upper) == quantile_size(count, quantile), count
