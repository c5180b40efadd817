"""Trained weights as files: adapters in PEFT's format, whole models in transformers'.

A folder appears whole or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from hpsearch.finetune.lora import AdaptedLinear, is_conv1d
from hpsearch.finetune.model import LoadedModel
from hpsearch.spec.finetune import FinetuneConfig

PEFT_PREFIX = "base_model.model."


def save_adapters(
    state: Mapping[str, Tensor],
    folder: Path,
    config: FinetuneConfig,
    loaded: LoadedModel,
    layers: Mapping[str, AdaptedLinear],
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; `PeftModel.from_pretrained` loads them.

    Args:
        state: Tensors named `<layer>.lora_A.weight` [rank, in] and `<layer>.lora_B.weight` [out, rank].
        folder: Where to; replaced if it exists.
        config: Of the fine-tune.
        loaded: The base model.
        layers: Its adaptable layers.
    """
    adapted = list(dict.fromkeys(name.rpartition(".lora_")[0] for name in state))
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.model.base,
        "revision": config.model.revision,
        "inference_mode": True,
        "r": config.model.lora.rank,
        "lora_alpha": config.model.lora.alpha,
        "lora_dropout": config.hyperparameters.dropout,
        "target_modules": _target_modules(adapted, loaded.model),
        "fan_in_fan_out": any(is_conv1d(layers[name].frozen) for name in adapted),
        "bias": "none",
    }
    with replacing(folder) as fresh:
        tensors = {f"{PEFT_PREFIX}{name}": tensor.cpu().contiguous() for name, tensor in state.items()}
        save_file(tensors, fresh / "adapter_model.safetensors", metadata={"format": "pt"})
        (fresh / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n")


def _target_modules(adapted: Iterable[str], model: Any) -> list[str]:
    """The short names (`q_proj`) when they select exactly the adapted layers, else the full ones."""
    full = sorted(adapted)
    short = sorted({name.rpartition(".")[2] for name in full})
    linear = (
        name
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear | nn.Linear) and not name.endswith(".frozen")
    )
    selected = sorted(name for name in linear if name.rpartition(".")[2] in short)
    return short if selected == full else full


def save_model(state: Mapping[str, Tensor], folder: Path, loaded: LoadedModel) -> None:
    """Write a whole model in safetensors, with its tokenizer.

    Args:
        state: The trained parameters; all others are the base model's.
        folder: Where to; replaced if it exists.
        loaded: The base model, whose class and config are the saved model's too.
    """
    # Tied weights are one parameter with two names; `state` knows the first.
    names: dict[int, str] = {}
    tensors = dict(loaded.model.state_dict())
    for name, parameter in loaded.model.named_parameters(remove_duplicate=False):
        known = names.setdefault(id(parameter), name)
        if known in state:
            tensors[name] = state[known]
    with replacing(folder) as fresh:
        loaded.model.save_pretrained(fresh, state_dict=tensors, safe_serialization=True)
        loaded.tokenizer.save_pretrained(fresh)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`, which takes its place when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh, replaced = beside / "fresh", beside / "replaced"
        fresh.mkdir()
        (usual := beside / "usual").touch()
        yield fresh
        for file in fresh.iterdir():
            shutil.copymode(usual, file)  # safetensors lets only their owner read its files
            flush(file)
        if folder.exists():
            folder.rename(replaced)
        fresh.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def flush(file: Path) -> None:
    """To the disk: a rename may otherwise outlive a power cut that the contents do not."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
