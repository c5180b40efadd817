"""An adapter folded into its base model: one whole model that any server loads, without knowing adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hpsearch.errors import InvalidInput, UnsupportedModel
from hpsearch.finetune.checkpoint import PEFT_PREFIX, replacing
from hpsearch.finetune.lora import is_conv1d
from hpsearch.finetune.model import read_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def merge(adapter: Path, output: Path, base: str | None = None) -> None:
    """Write the base model with W + alpha / rank * B A in place of each adapted W, and its tokenizer.

    The sum is made in float32 and kept in the precision that the base model is stored in.

    Args:
        adapter: A folder as `checkpoint.save_adapters` writes it.
        output: Folder to write; appears whole or not at all.
        base: Where the base model is, if it is no longer where it was when the adapter was trained.

    Raises:
        InvalidInput: The folder holds no adapter, or one of another model.
        UnsupportedModel: transformers can't load the base model.
    """
    if not (adapter / CONFIG).is_file():
        raise InvalidInput(f"{adapter} holds no LoRA adapter: a full fine-tune is a whole model already")
    config = json.loads((adapter / CONFIG).read_text("utf-8"))
    try:
        named = base or config["base_model_name_or_path"]
        model, tokenizer = read_model(named, None if base else config["revision"], "auto")
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{error}; say with --base where the base model is", "base") from error
    state = load_file(adapter / WEIGHTS)
    names = {name.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for name in state}
    modules = dict(model.named_modules())
    for name in sorted(names):
        a = state[f"{PEFT_PREFIX}{name}.lora_A.weight"].float()
        b = state[f"{PEFT_PREFIX}{name}.lora_B.weight"].float()
        _add(modules.get(name), name, config["lora_alpha"] / config["r"] * (b @ a))
    with replacing(output) as fresh:
        model.save_pretrained(fresh, safe_serialization=True)
        tokenizer.save_pretrained(fresh)


def _add(module: Any, name: str, change: torch.Tensor) -> None:
    """Add [out, in] to a layer's weight, which GPT-2 keeps as [in, out]."""
    if module is None or not hasattr(module, "weight"):
        raise InvalidInput(f"the base model has no layer {name}: the adapter is another model's")
    change = change.t() if is_conv1d(module) else change
    if module.weight.shape != change.shape:
        has, needs = tuple(module.weight.shape), tuple(change.shape)
        raise InvalidInput(f"the base model's {name} is {has}, not {needs}: the adapter is another model's")
    with torch.no_grad():
        module.weight.copy_(module.weight.float() + change)
