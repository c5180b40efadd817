"""What is saved is loaded by PEFT and transformers, and is worth what was reported."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from finetune_reference import a_config, records_of, reference_tokens, reference_validation, tiny_tokenizer
from safetensors import safe_open

from hpsearch.basemodel import describe
from hpsearch.finetune import Member, finetune, prepare
from hpsearch.finetune import checkpoint as checkpoint_module

ARCHITECTURES = ["llama", "llama-untied", "gpt2", "gpt_neox", "gemma"]
HARD = {"learning_rate": 0.02, "epochs": 2}


def validation_loss(model, config) -> float:
    validation = [reference_tokens(record, tiny_tokenizer()) for record in records_of(config.data.validation)]
    return reference_validation(model.eval(), validation)


def base_of(config):
    return transformers.AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"frozen_layers": 1}], ids=["all", "frozen"])
def test_peft_loads_the_best_adapter(architecture, changes, tmp_path):
    config = a_config(architecture, **HARD, **changes)
    outcome = finetune(config, save_to=tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(base_of(config), tmp_path / "adapter")
    assert validation_loss(model, config) == pytest.approx(outcome.best.validation_loss, rel=1e-5)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as tensors:
        adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
        assert {name.replace(".default", "") for name in adapted} == set(tensors.keys())


def test_the_adapter_that_is_saved_is_the_best_not_the_last(tmp_path):
    config = a_config(learning_rate=0.02, epochs=10, lr_schedule="constant", reports_per_epoch=1)
    outcome = finetune(config, save_to=tmp_path / "adapter")
    assert outcome.best.validation_loss < outcome.reports[-1].validation_loss
    model = peft.PeftModel.from_pretrained(base_of(config), tmp_path / "adapter")
    assert validation_loss(model, config) == pytest.approx(outcome.best.validation_loss, rel=1e-5)


def test_the_adapter_config_is_short_where_it_can_be(tmp_path):
    finetune(a_config("gpt2"), save_to=tmp_path / "gpt2")
    content = json.loads((tmp_path / "gpt2" / "adapter_config.json").read_text())
    assert content["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert content["fan_in_fan_out"] is True
    finetune(a_config(target_modules=("q_proj",)), save_to=tmp_path / "llama")
    content = json.loads((tmp_path / "llama" / "adapter_config.json").read_text())
    assert content["target_modules"] == ["q_proj"]
    assert content["fan_in_fan_out"] is False
    assert (content["r"], content["lora_alpha"]) == (4, 8.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("changes", [{}, {"frozen_layers": 1, "dropout": 0.1}], ids=["all", "frozen"])
def test_transformers_loads_the_best_full_model(architecture, changes, tmp_path):
    config = a_config(architecture, "full", **(HARD | {"learning_rate": 3e-3}), **changes)
    outcome = finetune(config, save_to=tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert validation_loss(model, config) == pytest.approx(outcome.best.validation_loss, rel=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("User: Paris")["input_ids"] == tiny_tokenizer()("User: Paris")["input_ids"]
    saved = describe(str(tmp_path / "model"))  # it can be a base model again
    assert saved.parameters == describe(config.model.base).parameters
    before = transformers.AutoConfig.from_pretrained(config.model.base)
    assert getattr(model.config, "attention_dropout", None) == getattr(before, "attention_dropout", None)


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(tmp_path):
    config = a_config(reports_per_epoch=1)
    prepared = prepare(config)
    folder = tmp_path / "trials" / "0"
    finetune(config, prepared=prepared, save_to=folder)
    (folder / "stale").write_text("")
    finetune(config, prepared=prepared, save_to=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["0"]
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "usual").stat().st_mode}


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    config = a_config(reports_per_epoch=1)
    outcome = finetune(config, save_to=tmp_path / "a")
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        outcome.member.save_best(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_can_be_saved_before_the_first_report(tmp_path):
    config = a_config()
    with pytest.raises(ValueError, match="first report"):
        Member(config, prepare(config)).save_best(tmp_path / "a")
