"""What trials say about their search space."""

from __future__ import annotations

import random
from typing import Any

import pytest

from hpsearch.results.insight import FEWEST, insight
from hpsearch.spec.space import LIMITS, SearchSpace
from tests.builders import a_trial


def looked_at(space: dict[str, Any], *ranked: dict[str, Any]) -> Any:
    trials = [a_trial(number, 1.0 + number, params=params) for number, params in enumerate(ranked)]
    return insight(SearchSpace.model_validate(space), trials, {})


@pytest.mark.parametrize(
    ("space", "best_first", "widen_to"),
    [
        pytest.param({"low": 0.2, "high": 5, "log": True}, [4.9, 4.1, 3.0, 0.3], {"low": 0.2, "high": 25.0}, id="high"),
        pytest.param({"low": 0.1, "high": 10, "log": True}, [0.1, 0.2, 0.15], {"low": 0.01, "high": 10}, id="low"),
        pytest.param({"low": 1.0, "high": 3.0}, [3.0, 2.9, 2.8], {"low": 1.0, "high": 4.0}, id="linear"),
        pytest.param({"low": 1.0, "high": 3.0}, [1.0, 1.1, 1.2], None, id="0-is-no-rate"),
        pytest.param({"low": 0.2, "high": 5, "log": True}, [4.9, 0.3, 0.2, 3.0], None, id="next-best-elsewhere"),
        pytest.param({"low": 0.2, "high": 5, "log": True}, [2.0, 4.9, 4.9, 4.8], None, id="inside"),
        pytest.param({"choices": [0.5, 1.0, 2.0]}, [2.0, 2.0, 1.0], {"choices": [0.5, 1.0, 2.0, 4.0]}, id="choices"),
        pytest.param({"low": 0.2, "high": 5, "log": True}, [4.9], None, id="four-trials-say-nothing"),
        pytest.param({"choices": [0.5, 0.6, 2.0]}, [0.5], None, id="four-trials-of-choices"),
    ],
)
def test_a_best_value_at_the_edge_says_how_far_to_look_next(
    space: dict[str, Any], best_first: list[float], widen_to: dict[str, Any] | None
) -> None:
    found = looked_at(
        {"learning_rate_multiplier": space},
        *({"learning_rate_multiplier": value} for value in [*best_first, *best_first[-1:] * 3]),
    )
    assert [edge.widen_to for edge in found.edges] == ([widen_to] if widen_to else [])


@pytest.mark.parametrize("name", LIMITS)
def test_nobody_is_sent_beyond_what_a_parameter_can_be(name: str) -> None:
    low, high = LIMITS[name]
    space = {"low": low or (1 if name == "frozen_layers" else 1e-3), "high": high}
    cast = int if isinstance(getattr(SearchSpace.model_validate({name: space}), name).low, int) else float
    found = looked_at({name: space}, *[{name: cast(high)}] * 5)
    assert found.edges == ()


def test_the_next_choice_is_as_far_as_the_last() -> None:
    sizes = looked_at({"batch_size": {"choices": [8, 16]}}, *[{"batch_size": 8}] * 5)
    assert sizes.edges[0].widen_to == {"choices": [4, 8, 16]}
    weights = looked_at({"prompt_loss_weight": {"choices": [0.0, 0.1, 0.3]}}, *[{"prompt_loss_weight": 0.3}] * 5)
    assert weights.edges[0].widen_to == {"choices": [0.0, 0.1, 0.3, 0.5]}


def test_whole_numbers_stay_whole() -> None:
    assert looked_at({"epochs": {"low": 1, "high": 4}}, *[{"epochs": 4}] * 5).edges[0].widen_to == {"low": 1, "high": 6}
    sizes = looked_at({"batch_size": {"choices": [4, 8, 16]}}, *[{"batch_size": 4}] * 5).edges[0]
    assert (sizes.side, sizes.widen_to) == ("low", {"choices": [2, 4, 8, 16]})


def test_a_parameter_that_decides_is_told_from_one_that_does_not() -> None:
    dice = random.Random(5)
    space = {
        "dropout": {"low": 0, "high": 0.5},
        "weight_decay": {"low": 0, "high": 0.5},
        "lr_schedule": {"choices": ["linear", "cosine"]},
    }
    drawn = [
        {
            "dropout": dice.uniform(0, 0.5),
            "weight_decay": dice.uniform(0, 0.5),
            "lr_schedule": dice.choice(["linear", "cosine"]),
        }
        for _ in range(40)
    ]
    best_first = sorted(drawn, key=lambda one: (one["dropout"] - 0.25) ** 2 + 0.02 * (one["lr_schedule"] == "linear"))
    found = looked_at(space, *best_first)
    assert {effect.parameter: effect.is_measurable for effect in found.effects} == {
        "dropout": True,  # although neither more nor less of it is better
        "weight_decay": False,
        "lr_schedule": True,
    }
    assert found.advice == ["weight_decay: no effect could be measured in 40 trials; fix it to search the rest better"]
    assert found == looked_at(space, *best_first)
    few = looked_at(space, *best_first[: FEWEST - 1])
    assert {effect.is_measurable for effect in few.effects} == {None}


def test_where_nothing_can_be_measured_nobody_is_told_to_fix_everything() -> None:
    dice = random.Random(3)
    drawn = [{"dropout": dice.uniform(0, 0.5), "weight_decay": dice.uniform(0, 0.5)} for _ in range(13)]
    found = looked_at({"dropout": {"low": 0, "high": 0.5}, "weight_decay": {"low": 0, "high": 0.5}}, *drawn)
    assert {effect.is_measurable for effect in found.effects} == {False}
    assert found.advice == ["no parameter's effect could be measured in 13 trials: more would tell"]


def test_nobody_is_told_both_to_widen_a_parameter_and_to_fix_it() -> None:
    dice = random.Random(7)
    drawn = [{"dropout": dice.uniform(0, 0.5), "batch_size": 4} for _ in range(40)]
    best_first = sorted(drawn, key=lambda one: (one["dropout"] - 0.25) ** 2)
    best_first[20]["batch_size"] = 8
    found = looked_at({"dropout": {"low": 0, "high": 0.5}, "batch_size": {"choices": [4, 8]}}, *best_first)
    assert {e.parameter: e.is_measurable for e in found.effects} == {"dropout": True, "batch_size": False}
    assert found.advice == [
        "batch_size: the best value, 4, lies at the low end of what was searched; widen it to choices 2, 4, 8"
    ]


@pytest.mark.parametrize("kinds", [2, 3, 4, 99])
def test_many_trials_say_what_shuffling_them_would_say(monkeypatch: pytest.MonkeyPatch, kinds: int) -> None:
    dice = random.Random(kinds)
    space = {"dropout": {"low": 0.0, "high": 0.5}}
    for strength in (0.0, 0.1, 0.2):
        drawn = [dice.randrange(kinds) / 200 for _ in range(210)]
        ranked = sorted(drawn, key=lambda value: strength * value * 200 / kinds + dice.random())
        trials = [{"dropout": value} for value in ranked]
        limit = looked_at(space, *trials).effects[0].chance
        with monkeypatch.context() as shuffled:
            shuffled.setattr("hpsearch.results.insight.MOST_SHUFFLED", 1000)
            assert limit == pytest.approx(looked_at(space, *trials).effects[0].chance, abs=0.08)


def test_chance_alone_is_seldom_taken_for_an_effect() -> None:
    dice = random.Random(1)
    wrong = 0
    for _ in range(60):
        drawn = [{"dropout": dice.uniform(0, 0.5)} for _ in range(20)]
        wrong += looked_at({"dropout": {"low": 0, "high": 0.5}}, *drawn).effects[0].is_measurable is True
    assert wrong <= 13  # of 60 with a chance of 0.1 each; more in one of a thousand


@pytest.mark.parametrize("most_shuffled", [200, 5])
def test_the_order_of_equal_values_is_no_effect(monkeypatch: pytest.MonkeyPatch, most_shuffled: int) -> None:
    """A sampler that settles draws otherwise late than early; equal values are ranked by when they were tried."""
    monkeypatch.setattr("hpsearch.results.insight.MOST_SHUFFLED", most_shuffled)
    dice, wrong = random.Random(2), 0
    space = SearchSpace.model_validate({"dropout": {"low": 0, "high": 0.3}})
    for _ in range(60):
        params = [{"dropout": min(max(dice.gauss(0.25 - 0.2 * place / 24, 0.04), 0.0), 0.3)} for place in range(24)]
        trials = [a_trial(place, dice.choice([0.9, 0.9, 0.8]), params=each) for place, each in enumerate(params)]
        ranked = sorted(trials, key=lambda trial: (trial.value, trial.number))
        wrong += insight(space, ranked, {}).effects[0].is_measurable is True
    assert wrong <= 13
    (effect,) = insight(space, [a_trial(place, 0.9, params=each) for place, each in enumerate(params)], {}).effects
    assert effect.is_measurable is False
