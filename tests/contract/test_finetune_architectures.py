"""Every architecture trains with adapters and in full, and where its parts are is found without knowing its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from finetune_reference import a_config, tiny_config, tiny_model

from hpsearch.basemodel import describe
from hpsearch.errors import UnknownModel, UnsupportedModel
from hpsearch.finetune import finetune
from hpsearch.finetune.lora import adapt
from hpsearch.finetune.model import examine, load_model
from hpsearch.spec.finetune import ModelSpec

ARCHITECTURES = ["llama", "llama-untied", "qwen2", "gemma", "gemma2", "granite", "gpt_neox", "gpt2", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss(architecture, method):
    reports = finetune(a_config(architecture, method, reports_per_epoch=1)).reports
    assert reports[-1].validation_loss < reports[0].validation_loss


def test_what_a_model_draws_without_dropout_is_the_members_own(tmp_path):
    """Routers of experts jitter in training; whoever else draws from the global generator changes nothing."""
    folder = tmp_path / "jitters"
    shutil.copytree(tiny_model("phimoe"), folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"router_jitter_noise": 0.2, "input_jitter_noise": 0.2}))
    config = a_config("phimoe", "full", base=str(folder), reports_per_epoch=2)
    curves = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        curves.append([report.validation_loss for report in finetune(config).reports])
    assert curves[0] == curves[1]
    other = [report.validation_loss for report in finetune(config.model_copy(update={"seed": 5})).reports]
    assert other[0] == curves[0][0]
    assert other[-1] != curves[0][-1]


@pytest.mark.parametrize(
    ("architecture", "blocks", "below"),
    [
        ("llama", "model.layers", {"model.embed_tokens.weight", "lm_head.weight"}),
        ("llama-untied", "model.layers", {"model.embed_tokens.weight"}),
        ("gpt2", "transformer.h", {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}),
        ("gpt_neox", "gpt_neox.layers", {"gpt_neox.embed_in.weight"}),
    ],
)
def test_anatomy(architecture, blocks, below):
    anatomy = examine(transformers.AutoModelForCausalLM.from_pretrained(tiny_model(architecture)))
    assert anatomy.blocks == blocks
    assert anatomy.below == below
    assert [anatomy.depth(f"{blocks}.{place}.x.weight") for place in range(3)] == [2, 1, 0]
    assert anatomy.depth(next(iter(below))) == 3
    assert anatomy.depth("a.final.norm.weight") == 0


def test_all_linear_is_every_linear_layer_of_the_blocks():
    for architecture, per_block in (("llama", 7), ("gpt2", 4), ("gpt_neox", 4), ("opt", 6)):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(architecture))
        layers = adapt(model, examine(model))
        assert len(layers) == 3 * per_block
        assert not any("lm_head" in name or "embed_out" in name for name in layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_layers_that_a_file_names_are_those_that_are_adapted(architecture):
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(architecture))
    anatomy = examine(model)
    within = {name.removeprefix(f"{anatomy.blocks}.").partition(".")[2] for name in adapt(model, anatomy)}
    assert set(describe(tiny_model(architecture)).linear_layers) == within


def test_an_adapted_model_without_an_active_adapter_is_the_base_model():
    ids = torch.arange(10)[None]
    for architecture in ("llama", "gpt2"):
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()
        expected = model(ids).logits
        adapt(model, examine(model))
        assert torch.equal(model(ids).logits, expected)


def test_a_model_that_transformers_does_not_know_is_unsupported(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "nonesuch"'))
    with pytest.raises(UnsupportedModel, match="can't load") as caught:
        load_model(ModelSpec(base=str(folder)), torch.device("cpu"))
    assert caught.value.field == "model.base"


def test_a_folder_that_is_not_there_is_unknown():
    with pytest.raises(UnknownModel, match="no folder"):
        load_model(ModelSpec(base=str(Path("nowhere").absolute())), torch.device("cpu"))
