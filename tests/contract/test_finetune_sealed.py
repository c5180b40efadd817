"""The test split is read with the weights that a fine-tune keeps, and changes nothing else."""

from __future__ import annotations

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

from hpsearch.errors import InvalidDataset, TooFewExamples
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


def test_tokens_from_the_cache_are_the_same(tmp_path: Path) -> None:
    config = with_files(a_config(), test=sealed_file(7))
    without, cold, warm = prepare(config), prepare(config, cache=tmp_path), prepare(config, cache=tmp_path)
    assert without.test is not None
    for prepared in (cold, warm):
        assert prepared.test is not None
        assert prepared.test.fingerprint == without.test.fingerprint
        assert prepared.validation.fingerprint == without.validation.fingerprint
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert prepare(a_config(), cache=tmp_path).test is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_what_is_tested_is_not_shared_with_what_is_not() -> None:
    config = a_config()
    assert len({prepared_key(each) for each in (config, with_files(config, test=sealed_file(7)))}) == 2


def test_a_test_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(TooFewExamples, match=r"empty\.jsonl has no examples; test needs some") as refused:
        prepare(with_files(a_config(), test=str(empty)))
    assert refused.value.field == "data.test"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": 1}\n')
    with pytest.raises(InvalidDataset) as faulty:
        prepare(with_files(a_config(), test=str(broken)))
    assert (faulty.value.field, faulty.value.line) == ("data.test", 1)
