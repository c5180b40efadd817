"""What a study will cost, before it is queued."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.cli.check import told_of_spec
from hpsearch.spec.cost import Rate, cost
from tests.builders import SPACE, a_spec

RATE = Rate("earlier", 4, 1000.0)
EXAMPLES = 400
"""Of which 4 epochs are the default."""


def of(tokens: int | None = 10_000, rate: Rate | None = RATE, **changes: Any) -> Any:
    return cost(a_spec(**changes), tokens, EXAMPLES, rate)


@pytest.mark.parametrize(
    ("epochs", "usual", "most"),
    [
        ({"low": 1, "high": 6}, 4, 6),
        ({"low": 1, "high": 2}, 2, 2),
        ({"choices": [8, 1]}, 8, 8),
        (3, 3, 3),
        ("auto", 4, 4),
        ({"low": 1, "high": 2, "when": "lr_schedule == 'cosine'"}, 4, 4),
    ],
    ids=["range", "range-without-the-default", "choices", "fixed", "auto", "mostly-auto"],
)
def test_a_search_costs_at_most_all_its_trials_with_the_most_epochs(epochs: Any, usual: int, most: int) -> None:
    space = {**SPACE, "epochs": epochs, "lr_schedule": {"choices": ["linear", "cosine"]}}
    found = of(search_space=space, budget={"trials": 5}, confirm={"top": 2, "seeds": 3})
    assert (found.epoch, found.defaults) == (10_000, 10_000 * usual)
    assert found.search == 5 * most * 10_000
    assert found.confirmation == 3 * 3 * most * 10_000
    assert found.device_hours == pytest.approx((5 + 9) * most * 10 / 3600)


def test_where_one_trial_of_the_most_epochs_answers_for_all_the_defaults_have_so_many() -> None:
    space = {**SPACE, "epochs": {"low": 1, "high": 10}, "lr_schedule": "constant"}
    assert of(search_space=space).defaults == 100_000


def test_a_search_has_no_more_trials_than_points_and_a_population_no_more_than_places() -> None:
    few = {"epochs": 3, "batch_size": {"choices": [1, 2, 4]}}
    assert of(search_space=few, budget={"trials": 20}).search == 3 * 3 * 10_000
    space = {"epochs": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}}
    pruner = {"type": "pbt", "population": 4}
    assert of(search_space=space, pruner=pruner, budget={"trials": 20}).search == 4 * 4 * 10_000


def test_the_budget_limits_it() -> None:
    assert of(budget={"trials": 5, "tokens": 70_000}).search == 70_000
    assert of(budget={"trials": None, "tokens": 70_000}).search == 70_000
    by_the_clock = of(budget={"trials": None, "wall_clock": "2h"})
    assert (by_the_clock.search, by_the_clock.device_hours) == (None, None)
    by_devices = of(budget={"trials": None, "gpu_hours": 1.5}, confirm={"top": 1, "seeds": 2})
    assert by_devices.device_hours == pytest.approx(1.5 + by_devices.confirmation / 3.6e6)
    assert of(budget={"trials": 5, "gpu_hours": 0.01}).device_hours == 0.01


def test_what_is_not_known_is_not_told() -> None:
    uncounted = of(None)
    assert (uncounted.epoch, uncounted.defaults, uncounted.search, uncounted.confirmation) == (None,) * 4
    assert uncounted.device_hours is None
    assert of(rate=None).device_hours is None


def told(**cost: Any) -> list[str]:
    found = {
        "spec": {"sampler": {"type": "random"}, "pruner": {"type": "none"}, "budget": {"trials": 20, "tokens": None}},
        "model": {"type": "llama", "parameters": 1, "layers": 1, "base_learning_rate": 1e-3},
        "examples": {"train": 400, "validation": 100},
        "warnings": [],
        "defaults": {"epochs": 4},
        "search": {},
        "cost": {"epoch": 10, "defaults": 40, "search": 2000, "confirmation": 0, "rate": None, "device_hours": None}
        | cost,
    }
    return [line for line in told_of_spec(found) if line.startswith(("training tokens", "device hours"))]


def test_a_person_is_told_in_two_lines() -> None:
    rate = {"study": "earlier", "trials": 4, "tokens_per_second": 1234.5}
    assert told(confirmation=1500, rate=rate, device_hours=1.5) == [
        "training tokens, about: 10 an epoch, 40 the trial of the defaults, 2,000 the search at most, "
        "1,500 to confirm the best at most",
        "device hours: at most 1.5, at the 1,234 tokens/s of the last 4 trials on this model (study 'earlier')",
    ]
    assert told() == ["training tokens, about: 10 an epoch, 40 the trial of the defaults, 2,000 the search at most"]
    assert told(search=None) == ["training tokens, about: 10 an epoch, 40 the trial of the defaults"]
    assert told(epoch=None, defaults=None, search=None) == []
