"""Whether a spec and its base model fit each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpsearch.basemodel import BaseModel
from hpsearch.errors import InvalidSpec, UnsupportedModel
from hpsearch.spec.finetune import is_named, no_such_layer
from hpsearch.spec.space import IntChoices, IntRange
from hpsearch.spec.study import StudySpec


def check_against_model(spec: StudySpec, model: BaseModel) -> None:
    """Raise InvalidSpec for adapters on layers that the model has not, or for more frozen layers than it can spare."""
    _check_targets(spec, model)
    frozen = spec.search_space.frozen_layers
    most = (
        frozen.high
        if isinstance(frozen, IntRange)
        else max(frozen.choices)
        if isinstance(frozen, IntChoices)
        else frozen
    )
    if most != "auto" and most >= model.layers:
        raise InvalidSpec(
            f"search_space.frozen_layers goes up to {most}, but the model has {model.layers} layers "
            "and at least one must be trained",
            "search_space.frozen_layers",
        )


def check_tokenizer(model: BaseModel, count_tokens: Callable[[str], int | None]) -> None:
    """Raise UnsupportedModel where a local model has a tokenizer.json that counts nothing."""
    if tokenizer_version(model) is not None and count_tokens("") is None:
        text = "its tokenizer.json can't be loaded: it is damaged, or of a newer version of `tokenizers`"
        raise UnsupportedModel(f"model.base: {text}", "model.base")


def tokenizer_version(model: BaseModel) -> tuple[int, int] | None:
    """What changes with a local model's tokenizer.json: size and time; None for a hub model, which has its commit."""
    file = Path(model.path) / "tokenizer.json"
    if not file.is_file():
        return None
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


def _check_targets(spec: StudySpec, model: BaseModel) -> None:
    asked_for, known = spec.model.lora.target_modules, model.linear_layers
    if spec.model.method != "lora" or asked_for == "all-linear" or not known:
        return
    for asked in asked_for:
        # Known are the names inside a block. `layers.0.mlp.fc1`, one block's, begins further up.
        if not any(is_named(layer, asked) or is_named(asked, layer) for layer in known):
            raise no_such_layer(asked, known)
