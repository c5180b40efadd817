"""The language of conditions: what it accepts, what it means, and where it says a fault is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpsearch.spec.expression import LONGEST, NAMES, check, holds, names_in
from hpsearch.spec.finetune import Hyperparameters
from tests.builders import a_spec

VALUES: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "learning_rate_multiplier": 0.5,
    "lr_schedule": "cosine",
    "warmup_fraction": 0.0,
    "examples": 1000,
    "steps": 125,
}


def test_every_parameter_can_be_named_and_has_its_kind() -> None:
    kinds = {
        name: "text" if name == "lr_schedule" else "number"
        for name in (*Hyperparameters.model_fields, "examples", "steps")
    }
    assert kinds == NAMES


@pytest.mark.parametrize(
    ("condition", "is_true"),
    [
        ("epochs * steps <= 2000", True),
        ("epochs * steps <= 374", False),
        ("lr_schedule != 'constant' and not epochs > 3", True),
        ("lr_schedule in ('constant', 'linear')", False),
        ("lr_schedule not in ['constant', 'linear'] or epochs == 9", True),
        ("1 < epochs <= 3 < batch_size", True),
        ("-epochs // 2 == -2 and batch_size % 3 == 2", True),
        ("(epochs + 1) / 2 - 0.5 == 1.5", True),
        ("epochs / warmup_fraction > 0", False),
    ],
)
def test_a_condition_means_what_it_says(condition: str, is_true: bool) -> None:
    assert holds(check(condition), VALUES) is is_true


def test_one_requirement_is_a_list_of_one() -> None:
    assert a_spec(require="epochs <= 3").require == a_spec(require=["epochs <= 3"]).require == ("epochs <= 3",)


def test_a_condition_knows_what_it_depends_on() -> None:
    assert names_in("epochs * steps <= 2000 and lr_schedule == 'epochs'") == {"epochs", "steps", "lr_schedule"}


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("epoch * steps <= 9", "column 1, 'epoch': unknown name; did you mean 'epochs'?"),
        ("epochs <= 3 and tokens < 5", "column 17, 'tokens': unknown name; known: epochs,"),
        ("epochs * steps", "it gives a number, not yes or no"),
        ("epochs <=", "can't be read"),
        ("epochs ** 99 < 3", "column 1, 'epochs ** 99': this is not in the language"),
        ("__import__('os').system('x') == 0", "column 1, '__import__('os').system('x')': this is not in the language"),
        ("epochs.real == 3", "this is not in the language"),
        ("[epochs for epochs in (1, 2)] == 3", "this is not in the language"),
        ("(lambda: 1)() == 1", "this is not in the language"),
        ("f'{epochs}' == '3'", "this is not in the language"),
        ("lr_schedule * 3 == 'x'", "column 1, 'lr_schedule': a number is needed here; this is a text"),
        ("lr_schedule == 3", "column 16, '3': a text is needed here; this is a number"),
        ("lr_schedule < 'linear'", "neither more nor less"),
        ("epochs in 3", "column 11, '3': behind `in` stands a list"),
        ("epochs == True", "True and False are not in this language"),
        ("epochs < 1e999", "numbers go up to"),
        ("epochs and epochs == 3", "a yes or no is needed here; this is a number"),
        ("not epochs", "a yes or no is needed here"),
        ("(" * 240 + "epochs" + ")" * 240 + " == 3", ""),
        ("epochs == 3" + " and epochs == 3" * 40, "at most"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(condition: str, told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        a_spec(require=[condition])
    (fault,) = refused.value.errors()
    assert fault["loc"] == ("require", 0)
    assert told in fault["msg"]


@given(st.text(max_size=60) | st.text("epochs()<=+-*/%'[], andortin0123456789.", max_size=LONGEST))
def test_whatever_is_accepted_can_be_read(text: str) -> None:
    try:
        condition = check(text)
    except ValueError:
        return
    assert holds(condition, dict.fromkeys(NAMES, 1)) in (True, False)


def test_numbers_beyond_any_float_do_not_hold() -> None:
    huge = "*".join(["999999999999999"] * 25)
    for condition in (f"{huge} / 2 > 1", f"{huge} * learning_rate_multiplier > 1", f"{huge} * dropout < 1"):
        assert not holds(check(condition), dict.fromkeys(NAMES, 0.5))


def test_the_same_nesting_is_refused_wherever_it_is_checked() -> None:
    assert holds(check("-" * 60 + "epochs > 0"), {"epochs": 1})
    for deep in ("-" * 70 + "epochs > 0", "+".join(["epochs"] * 70) + " > 0"):
        with pytest.raises(ValueError, match="nested too deeply: 64"):
            check(deep)


def test_a_parameter_may_not_wait_for_one_that_waits_itself() -> None:
    space = {
        "dropout": {"low": 0, "high": 0.5, "when": "weight_decay > 0.1"},
        "weight_decay": {"low": 0, "high": 0.5, "when": "epochs > 1"},
        "epochs": {"low": 1, "high": 4},
    }
    with pytest.raises(ValidationError, match="depends on 'weight_decay', which has a `when` of its own"):
        a_spec(search_space=space)
    with pytest.raises(ValidationError, match="depends on itself"):
        a_spec(search_space={"dropout": {"low": 0, "high": 0.5, "when": "dropout > 0.1"}})


@pytest.mark.parametrize(
    ("condition", "through"),
    [("steps > 10", "steps"), ("learning_rate_multiplier > 0.1 and steps > 1", "learning_rate_multiplier and steps")],
)
def test_a_condition_does_not_depend_on_a_conditional_through_what_follows_from_it(
    condition: str, through: str
) -> None:
    sometimes = {"choices": [4, 8], "when": "lr_schedule == 'cosine'"}
    space = {"batch_size": sometimes, "dropout": {"low": 0, "high": 0.5, "when": condition}}
    said = f"depends on 'batch_size', which has a `when` of its own, through {through};"
    with pytest.raises(ValidationError, match=said):
        a_spec(search_space=space)
    with pytest.raises(ValidationError, match="depends on itself, through steps;"):
        a_spec(search_space={"batch_size": {"choices": [4, 8], "when": "steps > 10"}})
    a_spec(search_space={**space, "batch_size": {"choices": [4, 8]}})
    a_spec(search_space={**space, "learning_rate_multiplier": 1.0, "dropout": 0.1})


@pytest.mark.parametrize(
    "condition", ["lr_schedule == 'Cosine'", "'flat' != lr_schedule", "lr_schedule in ('linear', 'x')"]
)
def test_a_schedule_that_there_is_not_is_no_condition(condition: str) -> None:
    with pytest.raises(ValidationError, match="lr_schedule is never that; it is constant, linear, cosine"):
        a_spec(require=condition)
