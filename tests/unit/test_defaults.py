"""What `auto` means."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.spec import StudySpec
from hpsearch.spec.defaults import base_learning_rate, default_hyperparameters, default_params, resolve
from tests.builders import a_spec
from tests.unit.test_spec import SPECS


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [
        ("125e6", 6e-4),
        ("350e6", 3e-4),
        ("760e6", 2.5e-4),
        ("1.3e9", 2e-4),
        ("2.7e9", 1.6e-4),
        ("6.7e9", 1.2e-4),
        ("13e9", 1e-4),
    ],
)
def test_the_rows_of_the_gpt3_table_are_met_exactly(parameters: str, rate: float) -> None:
    assert base_learning_rate("gpt2", int(float(parameters))) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(("parameters", "rate"), [(1, 6e-4), (1_300_000, 6e-4), (10**12, 1e-4)])
def test_beyond_the_table_the_rate_is_its_last_row(parameters: int, rate: float) -> None:
    assert base_learning_rate("unheard-of", parameters) == rate


def test_between_two_rows_the_rate_is_interpolated_in_the_logarithm() -> None:
    middle = round(math.sqrt(125e6 * 350e6))
    assert base_learning_rate("gpt2", middle) == pytest.approx(math.sqrt(6e-4 * 3e-4), rel=1e-6)


@given(st.integers(10**6, 10**11), st.integers(10**6, 10**11))
def test_a_larger_model_never_gets_a_larger_rate(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert base_learning_rate("gpt2", small) >= base_learning_rate("gpt2", large)


@pytest.mark.parametrize(
    ("family", "parameters", "rate"),
    [
        ("llama", 13_000_000_000, 3e-4),
        ("llama", 70_000_000_000, 1.5e-4),
        ("gpt_neox", 160_000_000, 6e-4),
        ("gpt_neox", 12_000_000_000, 1.2e-4),
    ],
)
def test_a_known_family_has_the_rate_of_its_paper(family: str, parameters: int, rate: float) -> None:
    assert base_learning_rate(family, parameters) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [
        (1, 25),
        (4, 25),
        (10, 10),
        (20, 5),
        (24, 5),
        (25, 4),
        (1000, 4),
        (100_000, 4),
        (100_001, 2),
        (250_000, 2),
        (250_001, 1),
        (10_000_000, 1),
    ],
)
def test_small_datasets_are_passed_more_often_and_huge_ones_less(examples: int, epochs: int) -> None:
    assert default_hyperparameters(examples, "lora").epochs == epochs


@pytest.mark.parametrize(("examples", "batch"), [(1, 1), (400, 1), (1000, 2), (50_000, 100), (10**6, 256)])
def test_the_batch_size_is_a_five_hundredth_of_the_examples_within_1_and_256(examples: int, batch: int) -> None:
    assert default_hyperparameters(examples, "full").batch_size == batch


@pytest.mark.parametrize(("batch", "multiplier"), [(1, 0.05), (8, 0.05), (9, 0.1), (64, 0.1), (65, 0.2), (256, 0.2)])
def test_the_multiplier_of_a_full_finetune_grows_with_the_batch(batch: int, multiplier: float) -> None:
    assert default_hyperparameters(1000, "full", batch).learning_rate_multiplier == multiplier


@given(st.integers(1, 4096), st.integers(1, 10**6))
def test_lora_learns_faster_than_a_full_finetune(batch: int, examples: int) -> None:
    lora, full = (default_hyperparameters(examples, method, batch) for method in ("lora", "full"))
    assert lora.learning_rate_multiplier > full.learning_rate_multiplier
    assert lora.model_copy(update={"learning_rate_multiplier": 0}) == full.model_copy(
        update={"learning_rate_multiplier": 0}
    )


def test_the_rest_of_the_defaults_are_the_documented_ones() -> None:
    defaults = default_hyperparameters(1000, "full").model_dump()
    assert {name: defaults[name] for name in ("prompt_loss_weight", "dropout", "weight_decay", "lr_schedule")} == {
        "prompt_loss_weight": 0.01,
        "dropout": 0.0,
        "weight_decay": 0.0,
        "lr_schedule": "linear",
    }


def test_what_was_drawn_beats_what_is_fixed_and_that_beats_auto() -> None:
    spec = a_spec(search_space={"epochs": {"low": 1, "high": 9}, "dropout": 0.2})
    config = resolve(spec, {"epochs": 7}, 1000, "gpt2", 125_000_000)
    hyperparameters = config.hyperparameters
    assert (hyperparameters.epochs, hyperparameters.dropout, hyperparameters.batch_size) == (7, 0.2, 2)
    assert resolve(spec, {"dropout": 0.3}, 1000, "gpt2", 125_000_000).hyperparameters.dropout == 0.3


def test_the_auto_multiplier_follows_the_batch_size_that_was_drawn() -> None:
    spec = a_spec(model={"base": "m", "method": "full"}, search_space={"batch_size": {"choices": [1, 32, 128]}})
    rates = [
        resolve(spec, {"batch_size": size}, 1000, "gpt2", 125_000_000).hyperparameters.learning_rate_multiplier
        for size in (1, 32, 128)
    ]
    assert rates == [0.05, 0.1, 0.2]


def test_the_learning_rate_is_the_base_rate_times_the_multiplier() -> None:
    spec = a_spec()
    config = resolve(spec, {"learning_rate_multiplier": 2.0}, 1000, "gpt2", 125_000_000)
    assert config.base_learning_rate == pytest.approx(6e-4)
    assert config.learning_rate == pytest.approx(12e-4)


def test_the_spec_can_name_the_base_learning_rate() -> None:
    spec = a_spec(model={"base": "m", "base_learning_rate": 0.01})
    assert resolve(spec, {"learning_rate_multiplier": 2.0}, 1000, "gpt2", 1).learning_rate == pytest.approx(0.02)


@given(SPECS, st.integers(1, 10**7))
def test_the_default_params_lie_in_the_space_and_make_a_config(spec: StudySpec, examples: int) -> None:
    params = default_params(spec, examples)
    assert list(params) == list(spec.search_space.varying())
    assert list(spec.search_space.faults(params)) == []
    config = resolve(spec, params, examples, "llama", 10**9)
    assert config.hyperparameters.model_dump().items() >= {**spec.search_space.fixed(), **params}.items()


def test_there_is_no_gap_between_the_steps_of_the_epochs_table() -> None:
    epochs = [default_hyperparameters(examples, "lora").epochs for examples in range(1, 200)]
    assert all(before >= after for before, after in itertools.pairwise(epochs))
