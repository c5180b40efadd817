"""A merged model computes what the base model with its adapter computes in PEFT, an independent reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from finetune_reference import a_config, tiny_model
from peft import PeftModel

from hpsearch.errors import InvalidInput, UnsupportedModel
from hpsearch.finetune import finetune
from hpsearch.finetune.merge import merge

IDS = torch.arange(12)[None] % 50


def an_adapter(architecture, folder):
    finetune(a_config(architecture, "lora"), save_to=folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "llama-untied", "gemma", "gpt_neox", "gpt2"])
def test_the_merged_model_computes_what_peft_does(architecture, tmp_path):
    adapter = an_adapter(architecture, tmp_path / "adapter")
    merge(adapter, tmp_path / "merged")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(architecture))
    untrained = base(IDS).logits.detach().clone()
    expected = PeftModel.from_pretrained(base, str(adapter))(IDS).logits
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(IDS).logits, expected, atol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.get_vocab() == transformers.AutoTokenizer.from_pretrained(tiny_model(architecture)).get_vocab()


def test_the_precision_of_the_base_is_kept(tmp_path):
    adapter = an_adapter("llama", tmp_path / "adapter")
    half = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.bfloat16)
    shutil.copytree(tiny_model("llama"), tmp_path / "half")
    half.save_pretrained(tmp_path / "half")
    merge(adapter, tmp_path / "merged", base=str(tmp_path / "half"))
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16


def test_what_can_not_be_merged_is_refused_and_leaves_nothing(tmp_path):
    adapter = an_adapter("llama", tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="another model's"):
        merge(adapter, tmp_path / "merged", base=tiny_model("gpt2"))
    with pytest.raises(UnsupportedModel, match="--base"):
        merge(adapter, tmp_path / "merged", base=str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match="whole model already"):
        merge(Path(tiny_model("llama")), tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter"]
