"""Conditions that hold nowhere are found before anything is queued."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.errors import InvalidSpec
from hpsearch.spec import reach as reach_module
from hpsearch.spec.reach import MOST_LOOKED_AT, check_reach
from tests.builders import a_spec

RATE = {"low": 0.1, "high": 10.0, "log": True}
EPOCHS, SCHEDULES = {"choices": [1, 2, 3]}, {"choices": ["linear", "cosine"]}


def reach(require: list[str] | None = None, **space: Any) -> list[str]:
    fields = {"search_space": space, "require": require or [], "budget": {"trials": 1}}
    return check_reach(a_spec(**fields), examples=400)


@pytest.mark.parametrize("require", [[], ["epochs <= 3"], ["learning_rate_multiplier * epochs < 25"], ["steps > 10"]])
def test_what_can_be_met_is_no_matter(require: list[str]) -> None:
    assert reach(require, epochs=EPOCHS, learning_rate_multiplier=RATE, lr_schedule=SCHEDULES) == []
    sometimes = {**EPOCHS, "when": "lr_schedule == 'linear'"}
    assert reach(require, epochs=sometimes, learning_rate_multiplier=RATE, lr_schedule=SCHEDULES) == []


@pytest.mark.parametrize("space", [{"epochs": EPOCHS}, {"epochs": EPOCHS, "learning_rate_multiplier": RATE}])
def test_a_requirement_that_no_point_meets_is_refused(space: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match=r"require: none of the points of the search space .* 'epochs > 3'") as caught:
        reach(["batch_size > 0", "epochs > 3"], **space)
    assert caught.value.field == "require"


def test_so_are_two_that_contradict_each_other_and_a_space_too_large_to_list() -> None:
    wide = {"epochs": {"low": 1, "high": 20}, "learning_rate_multiplier": RATE, "weight_decay": {"low": 0, "high": 1}}
    with pytest.raises(InvalidSpec, match=f"none of the {MOST_LOOKED_AT:,} points that were looked at"):
        reach(["epochs > 9", "epochs < 9"], **wide)


def test_a_parameter_that_no_point_has_is_named() -> None:
    never = {"low": 0.0, "high": 0.2, "when": "lr_schedule == 'constant'"}
    (warning,) = reach(warmup_fraction=never, lr_schedule=SCHEDULES)
    assert warning == (
        "search_space.warmup_fraction: none of the points of the search space has it, so it is never searched; "
        "its `when` is 'lr_schedule == 'constant''"
    )


def test_nothing_to_search_is_one_point() -> None:
    assert reach(["epochs < 9"], epochs=2) == []
    with pytest.raises(InvalidSpec, match="epochs < 2"):
        reach(["epochs < 2"], epochs=2)


WARMUP = {"low": 0.0, "high": 0.2, "when": "lr_schedule == 'cosine'"}


def with_first(*trials: dict[str, Any], require: list[str] | None = None) -> list[str]:
    space = {"warmup_fraction": WARMUP, "lr_schedule": SCHEDULES, "epochs": EPOCHS}
    return check_reach(a_spec(search_space=space, first_trials=trials, require=require or []), examples=400)


def test_a_first_trial_whose_wish_matters_nowhere_is_refused() -> None:
    assert with_first({"warmup_fraction": 0.1}, {"warmup_fraction": 0.1, "lr_schedule": "cosine"}) == []
    with pytest.raises(InvalidSpec, match="its `when` holds nowhere beside the rest of this trial") as caught:
        with_first({"epochs": 2}, {"warmup_fraction": 0.1, "lr_schedule": "linear"})
    assert caught.value.field == "first_trials.1.warmup_fraction"


def test_trials_of_a_persons_own_that_break_a_requirement_are_named() -> None:
    assert with_first({"epochs": 2}, require=["epochs <= 2 or lr_schedule == 'linear'"]) == []
    (warning,) = with_first({"epochs": 3}, require=["epochs <= 2"])[-1:]
    assert warning == "first_trials.0: nothing was found with which it meets `require`, so it is hardly ever trained"
    assert with_first(require=["epochs == 1"]) == [
        "require: the defaults don't meet 'epochs == 1', so they are not tried, and no verdict compares with them"
    ]


@pytest.mark.parametrize(
    ("pruner", "said"),
    [
        ({"type": "median", "min_reports": 5}, []),
        ({"type": "median", "min_reports": 6}, ["pruner.min_reports: the longest trial has 6 reports"]),
        ({"type": "median", "startup_trials": 8}, ["pruner.startup_trials: the budget has 8 trials"]),
        ({"type": "patient", "pruner": {"type": "threshold", "worst": 1, "min_reports": 9}}, ["pruner.min_reports"]),
    ],
)
def test_a_rule_that_never_acts_is_named(pruner: dict[str, Any], said: list[str]) -> None:
    found = check_reach(a_spec(search_space={"epochs": EPOCHS}, pruner=pruner, budget={"trials": 8}), examples=400)
    assert len(found) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("given", "most"),
    [({"epochs": 12, "learning_rate_multiplier": 1.0, "weight_decay": 0.1}, 1), ({"epochs": 12}, 100)],
)
def test_many_first_trials_that_meet_nothing_are_looked_at_in_little_work(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], most: int
) -> None:
    """One that leaves nothing to draw is one point: at four thousand each, a request took minutes."""
    looked_at, real = 0, reach_module.active

    def counted(*arguments: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        return real(*arguments)

    monkeypatch.setattr(reach_module, "active", counted)
    space = {"epochs": {"low": 1, "high": 20}, "learning_rate_multiplier": RATE, "weight_decay": {"low": 0, "high": 1}}
    spec = a_spec(search_space=space, require="epochs <= 9", first_trials=[given] * 50)
    assert len(check_reach(spec, examples=400)) == 50
    assert looked_at <= 50 * most + 100
