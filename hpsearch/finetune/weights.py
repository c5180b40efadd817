"""The trained weights of one member: adapters on a shared base, or a whole model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpsearch.errors import InvalidSpec
from hpsearch.finetune import checkpoint
from hpsearch.finetune.lora import TARGETS_FIELD, AdaptedLinear, Dropout, activate, new_adapters
from hpsearch.finetune.model import LoadedModel
from hpsearch.finetune.optimizer import is_trained
from hpsearch.finetune.recompute import recomputing
from hpsearch.finetune.seeds import derived_seed
from hpsearch.spec.finetune import FinetuneConfig

State = dict[str, Tensor]
"""Trained tensors by name."""


class Weights(Protocol):
    """What a member needs of its weights. The two implementations share no state but the frozen base."""

    named: dict[str, nn.Parameter]
    """The trained parameters, named as the anatomy knows them."""

    def training(self, step: int) -> AbstractContextManager[Any]:
        """The model, ready for one optimizer step; entering again for the same step drops out the same."""

    def evaluation(self) -> AbstractContextManager[Any]:
        """The model, ready for evaluation."""

    def save(self, state: State, folder: Path) -> None:
        """Write a state (as copied from `named`) as files that transformers or PEFT load."""


class LoraWeights:
    """Adapters of one member, on a base that others use too."""

    def __init__(self, config: FinetuneConfig, loaded: LoadedModel, layers: Mapping[str, AdaptedLinear]) -> None:
        self._config, self._loaded, self._layers = config, loaded, layers
        chosen = config.hyperparameters
        self._dropout = Dropout(chosen.dropout, torch.Generator(loaded.device))
        self._adapters = new_adapters(
            loaded,
            layers,
            config.model.lora,
            dropout=self._dropout,
            seed=config.seed,
            frozen=chosen.frozen_layers,
        )
        if not self._adapters:
            raise InvalidSpec("every layer that would get an adapter is frozen (frozen_layers)", TARGETS_FIELD)
        self.named: dict[str, nn.Parameter] = {}
        for name, adapter in self._adapters.items():
            self.named[f"{name}.lora_A.weight"] = adapter.a
            self.named[f"{name}.lora_B.weight"] = adapter.b

    @contextmanager
    def training(self, step: int) -> Iterator[Any]:
        """The shared base with this member's adapters; the base's own dropout stays off."""
        self._dropout.generator.manual_seed(derived_seed(self._config.seed, "dropout", step))
        self._dropout.active = True
        activate(self._layers, self._adapters)
        try:
            with _activations(self._config, self._loaded, self._loaded.model, self._dropout.generator):
                yield self._loaded.model
        finally:
            self._dropout.active = False

    @contextmanager
    def evaluation(self) -> Iterator[Any]:
        """The shared base with this member's adapters."""
        activate(self._layers, self._adapters)
        yield self._loaded.model

    def save(self, state: State, folder: Path) -> None:
        """PEFT's format."""
        checkpoint.save_adapters(state, folder, self._config, self._loaded, self._layers)


class FullWeights:
    """A copy of the whole model."""

    def __init__(self, config: FinetuneConfig, loaded: LoadedModel) -> None:
        self._config, self._loaded = config, loaded
        chosen = config.hyperparameters
        self._model = copy.deepcopy(loaded.model)
        set_dropout(self._model, chosen.dropout)
        self.named: dict[str, nn.Parameter] = {}
        for name, parameter in self._model.named_parameters():
            if is_trained(loaded.anatomy, name, chosen.frozen_layers):
                self.named[name] = parameter.requires_grad_(requires_grad=True)

    @contextmanager
    def training(self, step: int) -> Iterator[Any]:
        """The member's model in training mode."""
        self._model.train()
        with _activations(self._config, self._loaded, self._model):
            if self._config.hyperparameters.dropout == 0:
                yield self._model
                return
            # The dropout inside of models draws from the global generators: lend it a stream of the member's own.
            device = self._loaded.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(derived_seed(self._config.seed, "dropout", step))
                yield self._model

    @contextmanager
    def evaluation(self) -> Iterator[Any]:
        """The member's model in eval mode."""
        self._model.eval()
        yield self._model

    def save(self, state: State, folder: Path) -> None:
        """As `save_pretrained` does, with the tokenizer."""
        checkpoint.save_model(state, folder, self._loaded)


def own_weights(config: FinetuneConfig, loaded: LoadedModel, layers: Mapping[str, AdaptedLinear]) -> Weights:
    """Fresh weights of one member, as the config's method says."""
    return LoraWeights(config, loaded, layers) if config.model.method == "lora" else FullWeights(config, loaded)


def _activations(
    config: FinetuneConfig, loaded: LoadedModel, model: Any, generator: torch.Generator | None = None
) -> AbstractContextManager[None]:
    """Kept for the backward pass, or computed again, as the config says."""
    if not config.model.activation_checkpointing:
        return nullcontext()
    return recomputing(model, model.get_submodule(loaded.anatomy.blocks), generator)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout that an architecture has: modules, attributes of modules, and fields of the config.

    Dropouts of classification heads have no part in a causal language model.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, rate)
    config: Any = model.config
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, int | float):
            setattr(config, name, rate)
