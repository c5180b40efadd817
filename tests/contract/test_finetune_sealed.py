"""The test split is read with the weights that a fine-tune keeps, and changes nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_reference import (
    a_config,
    conversation,
    records_of,
    reference_tokens,
    reference_validation,
    write_examples,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpsearch.finetune import finetune, prepare
from hpsearch.finetune.prepare import prepared_key
from hpsearch.finetune.sealed import MOST_BLOCKS
from hpsearch.results import Report
from hpsearch.spec.finetune import FinetuneConfig


def with_files(config: FinetuneConfig, **files: str) -> FinetuneConfig:
    return FinetuneConfig.model_validate({**config.model_dump(), "data": {**config.data.model_dump(), **files}})


def overdone(method: str) -> FinetuneConfig:
    """A fine-tune whose best report is not its last."""
    rate = 5e-2 if method == "lora" else 2e-2
    return a_config(method=method, epochs=2, learning_rate=rate, lr_schedule="constant")


def sealed_file(count: int) -> str:
    return write_examples(f"sealed-{count}.jsonl", map(conversation, range(2000, 2000 + count)))


def timeless(reports: tuple[Report, ...]) -> list[Report]:
    return [replace(report, seconds=0.0) for report in reports]


@pytest.mark.parametrize("count", [7, 45], ids=["fewer examples than blocks", "more"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_is_what_the_kept_weights_score_with_plain_transformers(method: str, count: int, tmp_path: Path) -> None:
    config = with_files(overdone(method), test=sealed_file(count))
    outcome = finetune(config, save_to=tmp_path / "best")
    assert outcome.sealed is not None
    assert (outcome.sealed.examples, len(outcome.sealed.values)) == (count, min(MOST_BLOCKS, count))
    assert outcome.best != outcome.reports[-1]
    if method == "lora":
        base = AutoModelForCausalLM.from_pretrained(config.model.base)
        model: Any = PeftModel.from_pretrained(base, str(tmp_path / "best"))
    else:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "best")
    tokenizer = AutoTokenizer.from_pretrained(config.model.base)
    tokens = [reference_tokens(record, tokenizer) for record in records_of(sealed_file(count))]
    assert outcome.sealed.value == pytest.approx(reference_validation(model, tokens), rel=1e-5)


def test_no_report_knows_of_it() -> None:
    config = overdone("lora")
    without, beside = finetune(config), finetune(with_files(config, test=sealed_file(7)))
    assert timeless(beside.reports) == timeless(without.reports)
    assert beside.evaluation_contract == without.evaluation_contract
    assert without.sealed is None


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ("validation_token_accuracy", "validation_token_accuracy"),
        ("validation_bits_per_byte", "validation_bits_per_byte"),
    ],
)
def test_it_is_of_the_metric_that_is_ranked_by(metric: Any, field: str) -> None:
    config = a_config()
    outcome = finetune(with_files(config, test=sealed_file(45)), metric=metric)
    assert outcome.sealed is not None
    place = outcome.reports.index(outcome.best)
    same = finetune(with_files(config, validation=sealed_file(45)), metric=metric).reports[place]
    assert outcome.sealed.value == pytest.approx(getattr(same, field), rel=1e-6)


def test_a_study_and_what_confirms_it_share_what_they_are_prepared_with() -> None:
    config = a_config()
    assert prepared_key(config) == prepared_key(with_files(config, test=sealed_file(7)))


def test_a_file_that_is_changed_between_two_trainings_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "sealed.jsonl"
    config = with_files(a_config(), test=str(path))
    prepared, found = prepare(config), []
    for start in (2000, 3000):
        path.write_text("".join(json.dumps(conversation(number)) + "\n" for number in range(start, start + 9)))
        found.append(finetune(config, prepared=prepared).sealed)
    one, other = found
    assert one is not None
    assert other is not None
    assert one.fingerprint != other.fingerprint
    assert one.value != other.value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "broken.jsonl"),
        ("", "broken.jsonl has no examples; test needs some"),
        ('{"messages": 1}\n', "broken.jsonl: line 1: "),
        (json.dumps({"prompt": "long " * 400, "completion": "gone"}) + "\n", "raise data.max_length"),
    ],
    ids=["moved", "empty", "no example", "cut"],
)
def test_a_split_that_can_not_be_read_costs_nothing_but_itself(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "broken.jsonl"
    if content is not None:
        path.write_text(content)
    outcome = finetune(with_files(a_config(), test=str(path)), save_to=tmp_path / "best")
    assert outcome.sealed is not None
    assert said in (outcome.sealed.unread or "")
    assert (outcome.sealed.values, (tmp_path / "best").is_dir()) == ((), True)
    assert timeless(outcome.reports) == timeless(finetune(a_config()).reports)
