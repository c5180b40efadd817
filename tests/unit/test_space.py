"""The search space: what varies, what is fixed, and the point nearest to a value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.spec.space import FloatChoices, FloatRange, IntChoices, IntRange, SearchSpace


def test_each_parameter_varies_or_is_fixed_or_is_auto() -> None:
    space = SearchSpace.model_validate(
        {"epochs": {"low": 1, "high": 3}, "batch_size": {"choices": [2, 4]}, "dropout": 0, "lr_schedule": "cosine"}
    )
    assert list(space.varying()) == ["epochs", "batch_size"]
    assert space.fixed() == {"dropout": 0.0, "lr_schedule": "cosine"}


def test_varying_parameters_come_in_the_order_of_the_table_however_they_were_written() -> None:
    written = {"dropout": {"low": 0, "high": 0.1}, "epochs": {"low": 1, "high": 2}}
    assert list(SearchSpace.model_validate(written).varying()) == ["epochs", "dropout"]


@pytest.mark.parametrize(
    ("parameter", "value", "nearest"),
    [
        pytest.param(IntRange(low=2, high=8), 4, 4, id="inside"),
        pytest.param(IntRange(low=2, high=8), 1, 2, id="below"),
        pytest.param(IntRange(low=2, high=8), 9, 8, id="above"),
        pytest.param(IntRange(low=2, high=8, step=3), 6, 5, id="on-the-steps"),
        pytest.param(IntRange(low=2, high=9, step=3), 99, 8, id="last-step-below-high"),
        pytest.param(FloatRange(low=0.0, high=0.3, step=0.1), 0.29, 0.3, id="step-of-a-tenth"),
        pytest.param(FloatRange(low=0.0, high=1.0), 0.01, 0.01, id="float-inside"),
        pytest.param(FloatRange(low=0.1, high=1.0), 0.01, 0.1, id="float-below"),
        pytest.param(IntChoices(choices=(1, 8, 64)), 20, 8, id="nearest-choice"),
        pytest.param(FloatChoices(choices=(0.1, 1.0)), 1.0, 1.0, id="a-choice"),
    ],
)
def test_the_nearest_point_is_the_one_a_person_would_pick(parameter: Any, value: Any, nearest: Any) -> None:
    point = parameter.nearest(value)
    assert point == pytest.approx(nearest)
    assert type(point) is type(nearest)


def test_a_schedule_that_is_not_offered_becomes_the_first_that_is() -> None:
    schedule = SearchSpace.model_validate({"lr_schedule": {"choices": ["cosine", "constant"]}}).varying()["lr_schedule"]
    assert schedule.nearest("linear") == "cosine"
    assert schedule.nearest("constant") == "constant"


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(1, 1e5), st.floats(-1e9, 1e9))
def test_the_nearest_point_of_a_float_range_lies_in_it(low: float, width: float, parts: float, value: float) -> None:
    step = width / parts or None
    parameter = FloatRange(low=low, high=low + width, step=step)
    point = parameter.nearest(value)
    assert parameter.contains(point)
    if step is None:
        assert point == min(max(value, parameter.low), parameter.high)


@given(st.integers(-1000, 1000), st.integers(0, 1000), st.integers(1, 50), st.integers(-3000, 3000))
def test_the_nearest_point_of_an_int_range_lies_on_its_steps(low: int, width: int, step: int, value: int) -> None:
    parameter = IntRange(low=low, high=low + width, step=step)
    point = parameter.nearest(value)
    assert parameter.contains(point)
    assert (point - low) % step == 0
    grid = range(low, low + width + 1, step)
    assert abs(point - value) == min(abs(candidate - value) for candidate in grid)
