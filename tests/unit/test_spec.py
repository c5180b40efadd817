"""The study spec: what is refused, with which words, and what survives a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpsearch.cli.specs import read_spec
from hpsearch.spec import StudySpec
from hpsearch.spec.closed import as_invalid_spec, problems_of, sentence
from hpsearch.spec.data import HubDataset
from hpsearch.spec.space import SearchSpace
from tests.builders import a_spec, spec_fields

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        pytest.param("name", "My study", "lower-case letters", id="name"),
        pytest.param("search_space.batch_size", [4, 8], "{choices: [...]}", id="list"),
        pytest.param("search_space.dropout", [0.1, 0.2], "{choices: [...]}", id="list-of-floats"),
        pytest.param("search_space.lr_schedule", ["linear"], "{choices: [...]}", id="list-of-words"),
        pytest.param("pruner", "median", "such as {type: auto}", id="pruner"),
        pytest.param("sampler", "tpe", "such as {type: auto}", id="sampler"),
        pytest.param("model", "gpt2", "a mapping of keys to values belongs here", id="model"),
        pytest.param("budget.wall_clock", "ninety minutes", "a duration such as 90m", id="duration"),
    ],
)
def test_what_is_written_otherwise_is_told_how_to_write_it(path: str, value: Any, told: str) -> None:
    (found,) = problems(with_value(path, value))
    assert found["field"] == path
    assert told in found["message"]


def problems(fields: dict[str, Any]) -> list[dict[str, str]]:
    """What the spec is refused for."""
    with pytest.raises(ValidationError) as refused:
        StudySpec.model_validate(fields)
    return problems_of(refused.value)


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A valid spec with one value replaced, or added, at a dotted path."""
    fields = json.loads(json.dumps(spec_fields()))
    *parents, last = path.split(".")
    place = fields
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return fields


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        pytest.param("nmae", "did you mean 'name'?", id="top"),
        pytest.param("model.bse", "did you mean 'base'?", id="model"),
        pytest.param("model.lora.rnk", "did you mean 'rank'?", id="lora"),
        pytest.param("data.validatoin", "did you mean 'validation'?", id="data"),
        pytest.param("search_space.learning_rate", "did you mean 'learning_rate_multiplier'?", id="search-space"),
        pytest.param("search_space.epochs.hgih", "did you mean 'high'?", id="range"),
        pytest.param("search_space.batch_size.choises", "did you mean 'choices'?", id="choices"),
        pytest.param("objective.metrc", "did you mean 'metric'?", id="objective"),
        pytest.param("budget.trails", "did you mean 'trials'?", id="budget"),
        pytest.param("parallelism.trials_per_gpu", "did you mean 'trials_per_device'?", id="parallelism"),
        pytest.param("wholly_else", "known keys: name, model", id="nothing-near"),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_key_it_resembles(path: str, suggestion: str) -> None:
    found = problems(with_value(path, 1))
    assert [problem["field"] for problem in found] == [path]
    assert f"unknown key '{path.rpartition('.')[2]}'" in found[0]["message"]
    assert suggestion in found[0]["message"]


@pytest.mark.parametrize(
    ("variant", "key"),
    [("sampler", "type"), ("pruner", "type")],
)
def test_an_unknown_key_inside_a_variant_is_named_with_its_place(variant: str, key: str) -> None:
    variants = {"sampler": {"type": "tpe", "startup_trial": 3}, "pruner": {"type": "hyperband", "startup_trial": 3}}
    (problem,) = problems(spec_fields(**{variant: variants[variant]}))
    assert problem["field"].startswith(variant)
    assert problem["field"].endswith("startup_trial")
    assert "unknown key 'startup_trial'" in problem["message"]


RATE = "search_space.learning_rate_multiplier"
EPOCHS = "search_space.epochs"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        pytest.param(RATE, float("nan"), "finite", id="nan"),
        pytest.param(RATE, float("inf"), "finite", id="inf"),
        pytest.param(RATE, {"low": float("nan"), "high": 1.0}, "finite", id="nan-low"),
        pytest.param(RATE, {"low": 0.1, "high": float("inf")}, "finite", id="inf-high"),
        pytest.param(RATE, {"low": 0.1, "high": 1.0, "step": float("nan")}, "finite", id="nan-step"),
        pytest.param(RATE, {"choices": [0.1, float("nan")]}, "finite", id="nan-choice"),
        pytest.param(RATE, 10**400, "", id="float-of-400-digits"),
        pytest.param(RATE, {"low": 1, "high": 10**400}, "", id="high-of-400-digits"),
        pytest.param(EPOCHS, 10**400, "outside [1, 1000]", id="integer-of-400-digits"),
        pytest.param(EPOCHS, {"low": 1, "high": 10**400}, "outside [1, 1000]", id="integer-high-of-400-digits"),
        pytest.param(EPOCHS, {"low": 1, "high": 10**6000}, "", id="more-digits-than-python-prints"),
        pytest.param(EPOCHS, {"choices": [1, 10**400]}, "outside [1, 1000]", id="integer-choice-of-400-digits"),
        pytest.param(RATE, {"low": 0.1, "high": 10.0, "step": 1e-9}, "1,000,000 points", id="tiny-step"),
        pytest.param(RATE, {"low": 0.1, "high": 10.0, "step": 5e-324}, "1,000,000 points", id="smallest-step"),
        pytest.param(RATE, {"low": 0.1, "high": 10.0, "step": 0}, "step must be positive", id="step-zero"),
        pytest.param(EPOCHS, {"low": 1, "high": 5, "step": -1}, "step must be positive", id="step-negative"),
        pytest.param(RATE, {"low": 2, "high": 1}, "low (2.0) is above high (1.0)", id="low-above-high"),
        pytest.param(EPOCHS, {"low": 5, "high": 1}, "low (5) is above high (1)", id="integer-low-above-high"),
        pytest.param(RATE, {"low": 0, "high": 1, "log": True}, "starts above 0", id="log-from-zero"),
        pytest.param(RATE, {"low": -1, "high": 1, "log": True}, "starts above 0", id="log-from-below-zero"),
        pytest.param(RATE, {"low": 1, "high": 9, "log": True, "step": 1}, "exclude each other", id="log-and-step"),
        pytest.param(RATE, {"low": 1}, "required", id="no-high"),
        pytest.param(RATE, {"high": 1}, "required", id="no-low"),
        pytest.param(RATE, {}, "required", id="empty-mapping"),
        pytest.param(RATE, {"choices": []}, "at least 1", id="no-choices"),
        pytest.param(RATE, {"choices": [1, 2, 1]}, "repeat", id="repeated-choices"),
        pytest.param(RATE, {"choices": [1, 1.0]}, "repeat", id="choices-equal-as-numbers"),
        pytest.param(RATE, {"choices": [*range(1, 300)]}, "at most 256", id="too-many-choices"),
        pytest.param(RATE, {"low": 1, "high": 2, "choices": [1]}, "unknown key", id="range-and-choices"),
        pytest.param(RATE, None, "", id="null"),
        pytest.param(RATE, "automatic", "'auto'", id="not-quite-auto"),
        pytest.param(RATE, [1, 2], "", id="bare-list"),
        pytest.param(EPOCHS, True, "", id="truth-value"),
        pytest.param(EPOCHS, 1.5, "", id="half-an-epoch"),
        pytest.param(EPOCHS, {"low": 1.5, "high": 3}, "", id="half-an-epoch-as-low"),
        pytest.param("search_space.lr_schedule", "cosin", "cosine", id="unknown-schedule"),
        pytest.param("search_space.lr_schedule", {"choices": ["cosine", "cosine"]}, "repeat", id="repeated-schedules"),
        pytest.param("search_space.lr_schedule", {"low": 1, "high": 2}, "", id="range-of-schedules"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_at_its_place(path: str, value: Any, said: str) -> None:
    found = problems(with_value(path, value))
    assert found
    assert all(problem["field"].startswith(path) for problem in found), found
    assert any(said in problem["message"] for problem in found), found


BOUNDS = {
    "epochs": (1, 1000, 0, 1001),
    "batch_size": (1, 4096, 0, 4097),
    "learning_rate_multiplier": (1e-9, 1e6, 0, 1.1e6),
    "prompt_loss_weight": (0, 1, -0.01, 1.01),
    "dropout": (0, 0.95, -0.01, 0.96),
    "weight_decay": (0, 100, -0.01, 101),
    "warmup_fraction": (0, 0.9, -0.01, 0.91),
    "frozen_layers": (0, 1000, -1, 1001),
    "layer_lr_decay": (1e-9, 1, 0, 1.01),
}


def test_every_numeric_parameter_has_bounds_in_the_table() -> None:
    assert {*BOUNDS, "lr_schedule"} == set(SearchSpace.model_fields)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_parameter_takes_its_bounds_and_nothing_beyond(name: str) -> None:
    least, most, below, above = BOUNDS[name]
    for inside in (least, most, {"low": least, "high": most}, {"choices": [least, most]}):
        assert getattr(SearchSpace.model_validate({name: inside}), name) != "auto"
    for outside in (
        below,
        above,
        {"low": below, "high": most},
        {"low": least, "high": above},
        {"choices": [least, above]},
        {"choices": [below]},
    ):
        (problem,) = problems(with_value(f"search_space.{name}", outside))
        assert problem["field"] == f"search_space.{name}"
        assert "is outside" in problem["message"]


@pytest.mark.parametrize(
    ("as_text", "as_number"),
    [
        pytest.param("1e-4", 1e-4, id="fixed"),
        pytest.param({"low": "1e-4", "high": "1e-2"}, {"low": 1e-4, "high": 1e-2}, id="range"),
        pytest.param({"choices": ["1e-4", "1e-3"]}, {"choices": [1e-4, 1e-3]}, id="choices"),
    ],
)
def test_a_number_that_yaml_reads_as_text_is_a_number(as_text: Any, as_number: Any) -> None:
    one, other = (SearchSpace(learning_rate_multiplier=written) for written in (as_text, as_number))
    assert one == other


def test_a_first_trial_may_spell_its_numbers_as_yaml_reads_them() -> None:
    spec = a_spec(first_trials=[{"learning_rate_multiplier": "1e-1"}])
    assert spec.first_trials[0]["learning_rate_multiplier"] == 0.1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 64, id="64-characters"),
        pytest.param("a" * 600, id="600-characters"),
        pytest.param("a\x00b", id="nul"),
        pytest.param("Tickets", id="upper-case"),
        pytest.param("a/b", id="slash"),
        pytest.param("..", id="dots"),
        pytest.param("../a", id="up"),
        pytest.param(".a", id="hidden"),
        pytest.param("a-", id="dash-at-the-end"),
        pytest.param("a b", id="space"),
        pytest.param("a\n", id="line-break-at-the-end"),
        pytest.param("ä", id="not-ascii"),
        pytest.param(7, id="number"),
        pytest.param(None, id="null"),
    ],
)
def test_a_name_that_could_not_be_a_folder_or_an_address_is_refused(name: Any) -> None:
    assert [problem["field"] for problem in problems(spec_fields(name=name))] == ["name"]


@pytest.mark.parametrize("name", ["a", "7", "a" * 63, "a.b_c-d", "2024-05-01"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert a_spec(name=name).name == name


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        pytest.param({"data": {"train": "a.jsonl", "validation": "a.jsonl"}}, "data", "same file", id="same-file"),
        pytest.param(
            {"data": {"train": "a.jsonl", "test": "a.jsonl"}}, "data", "train and test are the", id="test-train"
        ),
        pytest.param(
            {"data": {"train": "a.jsonl", "validation": "v.jsonl", "test": "v.jsonl"}},
            "data",
            "validation and test are the same file (v.jsonl)",
            id="test-validation",
        ),
        pytest.param(
            {"data": {"train": "hub:a/b", "test": "hub:a/b?split=train"}}, "data", "same file", id="test-train-of-hub"
        ),
        pytest.param({"data": {"train": "a.jsonl", "test": "hub:/b"}}, "data.test", "id on the hub", id="hub-test"),
        pytest.param(
            {"data": {"train": "hub:a/b?split=x", "validation": "hub:a/b?split=x"}},
            "data",
            "same file",
            id="same-split",
        ),
        pytest.param(
            {"data": {"train": "hub:a/b", "validation": "hub:/b"}}, "data.validation", "id on the hub", id="hub-path"
        ),
        pytest.param({"data": {"train": "hub:a/b?splt=x"}}, "data.train", "split, config, revision", id="hub-key"),
        pytest.param({"data": {"train": "hub:a/b?"}}, "data.train", "split, config, revision", id="hub-no-key"),
        pytest.param({"data": {"train": "hub:a/b?split=x&split=y"}}, "data.train", "given twice", id="hub-key-twice"),
        pytest.param({"data": {"train": "hub:a/b?split=x[1]"}}, "data.train", "train[:2000]", id="hub-split"),
        pytest.param({"data": {"train": "hub:a/b?split="}}, "data.train", "train[:2000]", id="hub-empty-split"),
        pytest.param({"data": {"train": "hub:a/b?config=../x"}}, "data.train", "configuration", id="hub-config"),
        pytest.param({"data": {"train": "hub:a/b?revision=-x"}}, "data.train", "a commit", id="hub-revision"),
        pytest.param({"data": {"train": ""}}, "data.train", "at least 1", id="no-file"),
        pytest.param({"data": {}}, "data.train", "required", id="no-data"),
        pytest.param({"model": {}}, "model.base", "required", id="no-model"),
        pytest.param({"search_space": {}}, "", "nothing varies", id="empty-space"),
        pytest.param({"search_space": {"epochs": 3}}, "", "nothing varies", id="only-fixed"),
        pytest.param(
            {"first_trials": [{"epochs": 9}]}, "first_trials.0", "epochs = 9 lies outside", id="first-trial-outside"
        ),
        pytest.param(
            {"first_trials": [{"epochs": 1}, {"dropout": 0.1}]},
            "first_trials.1",
            "'dropout' does not vary",
            id="does-not-vary",
        ),
        pytest.param(
            {"first_trials": [{"batch_size": 3}]}, "first_trials.0", "batch_size = 3", id="not-among-the-choices"
        ),
        pytest.param({"first_trials": [{"epochs": 2.5}]}, "first_trials.0", "epochs = 2.5", id="between-whole-numbers"),
        pytest.param(
            {"first_trials": [{"epochs": "two"}]}, "first_trials.0", "epochs = 'two'", id="first-trial-of-words"
        ),
        pytest.param({"budget": {"trials": None}}, "budget", "at least one limit", id="no-limit"),
        pytest.param({"budget": {"trials": 0}}, "budget.trials", "greater", id="no-trials"),
        pytest.param({"budget": {"gpu_hours": float("inf")}}, "budget.gpu_hours", "finite", id="endless-hours"),
        pytest.param(
            {"model": {"base": "m", "lora": {"target_modules": []}}},
            "model.lora.target_modules",
            "no layer would be trained",
            id="nothing-to-train",
        ),
        pytest.param(
            {"warm_start": {"studies": ["tickets"]}}, "warm_start.studies", "names the study itself", id="own-teacher"
        ),
        pytest.param(
            {"search_space": {"dropout": {"low": 0, "high": 0.2, "when": "dropout > 0"}}},
            "search_space.dropout.when",
            "it depends on itself",
            id="condition-on-itself",
        ),
        pytest.param({"model": {"base": "m", "lora": {"rank": 0}}}, "model.lora.rank", "greater", id="rank-zero"),
        pytest.param({"sampler": {"type": "grids"}}, "sampler", "tpe", id="unknown-sampler"),
        pytest.param({"pruner": {"type": "wilcox"}}, "pruner", "wilcoxon", id="unknown-pruner"),
        pytest.param({"sampler": {}}, "sampler", "type", id="sampler-without-type"),
        pytest.param({"seed": -1}, "seed", "greater", id="negative-seed"),
        pytest.param({"seed": 2**31}, "seed", "less", id="large-seed"),
        pytest.param({"priority": 101}, "priority", "less", id="priority"),
        pytest.param({"tags": {str(n): "x" for n in range(17)}}, "tags", "at most 16", id="too-many-tags"),
        pytest.param({"first_trials": [{"epochs": 1}] * 1001}, "first_trials", "at most 1000", id="many-first-trials"),
    ],
)
def test_a_contradiction_is_refused_before_anything_is_queued(changes: dict[str, Any], field: str, said: str) -> None:
    found = problems(spec_fields(**changes))
    assert [problem["field"] for problem in found] == [field]
    assert said in found[0]["message"]
    assert sentence(found) == (f"{field}: " if field else "") + found[0]["message"]
    assert not field or not found[0]["message"].startswith(field.partition(".")[0]), "it is named once"


def test_a_first_trial_off_the_steps_of_its_range_is_refused() -> None:
    space = {"dropout": {"low": 0.0, "high": 0.4, "step": 0.2}}
    (problem,) = problems(spec_fields(search_space=space, first_trials=[{"dropout": 0.3}]))
    assert problem["field"] == "first_trials.0"


def test_nothing_needs_to_vary_when_one_trial_is_wanted() -> None:
    assert a_spec(search_space={}, budget={"trials": 1}).search_space.varying() == {}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90m", 5400),
        ("1h30m", 5400),
        ("8h", 28800),
        ("1d", 86400),
        ("45s", 45),
        ("1.5h", 5400),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read_as_people_write_it(written: Any, seconds: float) -> None:
    assert a_spec(budget={"wall_clock": written}).budget.wall_clock == seconds


@pytest.mark.parametrize(
    "written", ["", "m", "90 m", "1h30", "h1", "-5m", "1w", "0s", "0", "nan", "inf", "9" * 400 + "d", "1..5h", True]
)
def test_a_bad_duration_is_refused(written: Any) -> None:
    assert [problem["field"] for problem in problems(with_value("budget.wall_clock", written))] == ["budget.wall_clock"]


def test_a_spec_can_not_be_changed() -> None:
    spec = a_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        spec.budget.trials = 5  # type: ignore[misc]


CANARY = "hf_canarytokenthatmustnotbeprinted"


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "model",
        "model.method",
        "model.lora",
        "model.lora.rank",
        "model.lora.target_modules",
        "model.base_learning_rate",
        "data",
        "data.format",
        "data.max_length",
        "search_space",
        "search_space.epochs",
        "search_space.epochs.low",
        "search_space.lr_schedule",
        "objective.metric",
        "sampler",
        "sampler.type",
        "pruner.type",
        "budget",
        "budget.trials",
        "budget.wall_clock",
        "parallelism.max_concurrent_trials",
        "first_trials",
        "priority",
        "seed",
        "tags",
    ],
)
def test_a_refusal_names_the_field_and_never_repeats_the_input(path: str) -> None:
    value = f"{CANARY} /" if path == "name" else CANARY
    fields = with_value(path, value)
    found = problems(fields)
    field = path.removesuffix(".type")
    assert [problem["field"] for problem in found] == [field]
    assert CANARY not in json.dumps(found)


def test_secrets_beside_the_fault_are_not_repeated_either() -> None:
    fields = spec_fields(model={"base": CANARY, "revision": CANARY}, tags={"owner": CANARY}, seed="x")
    with pytest.raises(ValidationError) as refused:
        StudySpec.model_validate(fields)
    error = as_invalid_spec(refused.value)
    assert error.field == "seed"
    assert CANARY not in f"{error.detail}{error!r}{refused.value}"


def test_each_fault_is_told_once_and_the_first_is_the_field_of_the_error() -> None:
    with pytest.raises(ValidationError) as refused:
        StudySpec.model_validate(spec_fields(name="A", seed=-1, budget={"trials": 0}))
    assert [problem["field"] for problem in problems_of(refused.value)] == ["name", "budget.trials", "seed"]
    assert as_invalid_spec(refused.value).field == "name"


# Valid specs, drawn at random.


def _int_parameter(low: int, high: int) -> st.SearchStrategy[Any]:
    numbers = st.integers(low, high)
    return (
        st.just("auto")
        | numbers
        | st.tuples(numbers, numbers).map(lambda ends: {"low": min(ends), "high": max(ends)})
        | st.tuples(numbers, numbers, st.integers(1, 5)).map(
            lambda drawn: {"low": min(drawn[:2]), "high": max(drawn[:2]), "step": drawn[2]}
        )
        | st.lists(numbers, min_size=1, max_size=5, unique=True).map(lambda choices: {"choices": choices})
    )


def _float_parameter(low: float, high: float) -> st.SearchStrategy[Any]:
    numbers = st.floats(low, high, allow_subnormal=False)
    positive = st.floats(max(low, 1e-6), high)
    return (
        st.just("auto")
        | numbers
        | st.tuples(numbers, numbers).map(lambda ends: {"low": min(ends), "high": max(ends)})
        | st.tuples(positive, positive).map(lambda ends: {"low": min(ends), "high": max(ends), "log": True})
        | st.lists(numbers, min_size=1, max_size=5, unique=True).map(lambda choices: {"choices": choices})
    )


SPACES = st.fixed_dictionaries(
    {"learning_rate_multiplier": st.just({"low": 0.1, "high": 10.0, "log": True})},
    optional={
        "epochs": _int_parameter(1, 1000),
        "batch_size": _int_parameter(1, 4096),
        "prompt_loss_weight": _float_parameter(0, 1),
        "dropout": _float_parameter(0, 0.95),
        "weight_decay": _float_parameter(0, 100),
        "lr_schedule": st.sampled_from(["auto", "linear", {"choices": ["cosine", "constant"]}]),
        "warmup_fraction": _float_parameter(0, 0.9),
        "frozen_layers": _int_parameter(0, 1000),
        "layer_lr_decay": _float_parameter(1e-6, 1),
    },
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
SPECS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z"),
        "model": st.fixed_dictionaries({"base": TEXT, "method": st.sampled_from(["lora", "full"])}),
        "data": st.fixed_dictionaries({"train": TEXT, "validation_fraction": st.floats(0.01, 0.99)}),
        "search_space": SPACES,
    },
    optional={
        "sampler": st.sampled_from([{"type": kind} for kind in ("tpe", "random", "qmc", "gp", "cmaes")]),
        "pruner": st.sampled_from(
            [{"type": kind} for kind in ("none", "successive_halving", "hyperband", "percentile", "wilcoxon")]
        ),
        "budget": st.fixed_dictionaries(
            {"trials": st.integers(1, 100_000)}, optional={"wall_clock": st.floats(0.1, 1e9) | st.just("1h30m")}
        ),
        "first_trials": st.lists(st.fixed_dictionaries({"learning_rate_multiplier": st.floats(0.1, 10)}), max_size=3),
        "tags": st.dictionaries(TEXT, TEXT, max_size=3),
        "seed": st.integers(0, 2**31 - 1),
    },
).map(StudySpec.model_validate)


@given(SPECS)
def test_a_spec_survives_json_unchanged(spec: StudySpec) -> None:
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()
    assert StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_the_fingerprint_does_not_depend_on_the_order_of_the_keys() -> None:
    fields = spec_fields(tags={"a": "1", "b": "2"})
    backwards = {name: fields[name] for name in reversed(fields)} | {"tags": {"b": "2", "a": "1"}}
    assert StudySpec.model_validate(backwards).fingerprint() == StudySpec.model_validate(fields).fingerprint()


def test_the_fingerprint_does_not_depend_on_how_a_default_was_written() -> None:
    assert a_spec(seed=0, budget={"trials": 20}).fingerprint() == a_spec().fingerprint()
    assert a_spec(budget={"wall_clock": "1h"}).fingerprint() == a_spec(budget={"wall_clock": 3600}).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"seed": 1},
        {"priority": 1},
        {"tags": {"a": "b"}},
        {"budget": {"trials": 21}},
        {"sampler": {"type": "random"}},
        {"sampler": {"type": "tpe", "startup_trials": 9}},
        {"pruner": {"type": "none"}},
        {"objective": {"reports_per_epoch": 3}},
        {"model": {"base": "models/pydoc-llama", "lora": {"rank": 4}}},
        {"search_space": {"epochs": {"low": 1, "high": 5}}},
        {"first_trials": [{"epochs": 1}]},
        {"parallelism": {"trials_per_device": 2}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_fingerprint_changes_with_the_spec(changes: dict[str, Any]) -> None:
    assert a_spec(**changes).fingerprint() != a_spec().fingerprint()


# What is published.


def test_the_published_schema_is_the_schema_of_the_code() -> None:
    published = json.loads((STUDIES / "study.schema.json").read_text())
    assert published == StudySpec.model_json_schema(), "run `make schema`"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_study_is_valid_for_the_service_and_for_an_editor(path: Path) -> None:
    fields = read_spec(path)
    assert StudySpec.model_validate(fields).name
    jsonschema.Draft202012Validator(StudySpec.model_json_schema()).validate(fields)


@given(SPECS)
def test_the_schema_accepts_what_the_code_accepts(spec: StudySpec) -> None:
    SCHEMA.validate(spec.model_dump(mode="json"))


SCHEMA = jsonschema.Draft202012Validator(StudySpec.model_json_schema())


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("hub:squad", HubDataset("squad", "train")),
        ("hub:org/name", HubDataset("org/name", "train")),
        ("hub:org/na.me-2?split=test", HubDataset("org/na.me-2", "test")),
        ("hub:a/b?split=train[:10%]+test[-5:]", HubDataset("a/b", "train[:10%]+test[-5:]")),
        (
            "hub:a/b?config=en-US&revision=refs/convert/parquet",
            HubDataset("a/b", "train", "en-US", "refs/convert/parquet"),
        ),
        ("data/hub:a/b", None),
        ("dataset:ds-1", None),
    ],
)
def test_a_hub_dataset_is_read_from_its_name(named: str, meant: HubDataset | None) -> None:
    found = HubDataset.parse(named, "train")
    assert found == meant
    assert found is None or HubDataset.parse(str(found), "validation") == found


def test_a_study_without_a_test_split_is_the_one_it_was_before_there_were_any() -> None:
    data = {"train": "a.jsonl", "validation": "v.jsonl"}
    assert "test" not in a_spec(data=data).model_dump()["data"]
    assert a_spec(data={**data, "test": None}).fingerprint() == a_spec(data=data).fingerprint()
    assert a_spec(data={**data, "test": "t.jsonl"}).fingerprint() != a_spec(data=data).fingerprint()


def test_all_splits_may_be_of_one_hub_dataset() -> None:
    data = a_spec(data={"train": "hub:a/b", "validation": "hub:a/b", "test": "hub:a/b"}).data
    assert HubDataset.parse(str(data.test), "test") == HubDataset("a/b", "test")
    assert HubDataset.parse(str(data.validation), "validation") == HubDataset("a/b", "validation")


def test_where_data_comes_from_is_kept_only_where_it_is_known() -> None:
    assert "origins" not in a_spec().model_dump()["data"]
    spec = a_spec(data={"train": "a.jsonl", "origins": {"train": "hub:a/b?split=train&revision=1"}})
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec
