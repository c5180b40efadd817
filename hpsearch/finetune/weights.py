"""The trained weights of one member: adapters on a shared base, or a whole model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpsearch.errors import InvalidSpec
from hpsearch.finetune import checkpoint
from hpsearch.finetune.batches import MicroBatch
from hpsearch.finetune.dropout import Dropout, set_dropout
from hpsearch.finetune.evaluate import Reader
from hpsearch.finetune.lora import AdaptedLinear, MemberRows, activated, new_adapters
from hpsearch.finetune.model import LoadedModel
from hpsearch.finetune.optimizer import Piece, is_trained
from hpsearch.finetune.recompute import recomputing
from hpsearch.finetune.seeds import derived_seed
from hpsearch.spec.finetune import TARGETS_FIELD, FinetuneConfig

State = dict[str, Tensor]
"""Trained tensors by name."""


class LoraWeights:
    """Adapters of one member, on a base that others use too."""

    def __init__(self, config: FinetuneConfig, loaded: LoadedModel, layers: Mapping[str, AdaptedLinear]) -> None:
        self.config, self.loaded, self.layers = config, loaded, layers
        self.adapters = new_adapters(
            loaded, layers, config.model.lora, seed=config.seed, frozen=config.hyperparameters.frozen_layers
        )
        if not self.adapters:
            raise InvalidSpec("every layer that would get an adapter is frozen (frozen_layers)", TARGETS_FIELD)
        self.named: dict[str, nn.Parameter] = {}
        """The trained parameters, named as the anatomy knows them."""
        for name, adapter in self.adapters.items():
            self.named[f"{name}.lora_A.weight"] = adapter.a
            self.named[f"{name}.lora_B.weight"] = adapter.b
        self._gather()

    def _gather(self) -> None:
        """Let all parameters, and all gradients, lie in one piece of memory: one call clears, clips or updates them.

        They are small and many, and a call for each costs more than what it computes.
        """
        thin = [each for adapter in self.adapters.values() for each in (adapter.a, adapter.b.t())]  # [rank, wide]
        sizes = [each.numel() for each in thin]
        self._values = torch.cat([each.detach().flatten() for each in thin])
        self._gradients = torch.zeros_like(self._values)
        places = zip(*(each.split_with_sizes(sizes) for each in (self._values, self._gradients)), strict=True)
        for adapter in self.adapters.values():
            rank = len(adapter.a)
            adapter.a.data, adapter.a.grad = (each.view(rank, -1) for each in next(places))
            adapter.b.data, adapter.b.grad = (each.view(rank, -1).t() for each in next(places))

    reads_alike = True
    """Whether what begins alike is alike all the way through the model: adapters drop it alike, too."""

    def clear_gradients(self) -> None:
        """Before a step."""
        self._gradients.zero_()

    def pieces(self, runs: Iterable[Sequence[str]]) -> list[list[Piece]]:
        """One for each run: see `optimizer.Trained`."""
        found, start = [], 0
        for run in runs:
            sizes = tuple(self.named[name].numel() for name in run)
            end = start + sum(sizes)
            tensor = nn.Parameter(self._values[start:end])
            tensor.grad = self._gradients[start:end]
            found.append([Piece(tuple(run), sizes, tensor)])
            start = end
        return found

    def change(self, config: FinetuneConfig) -> None:
        """Train on under another dropout."""
        self.config = config

    def save(self, state: State, folder: Path) -> None:
        """PEFT's format."""
        checkpoint.save_adapters(state, folder, self.config, self.loaded, self.layers)


class FullWeights:
    """A copy of the whole model."""

    def __init__(self, config: FinetuneConfig, loaded: LoadedModel) -> None:
        self.config, self.loaded = config, loaded
        chosen = config.hyperparameters
        self.model = copy.deepcopy(loaded.model)
        set_dropout(self.model, chosen.dropout)
        self.named: dict[str, nn.Parameter] = {}
        """The trained parameters, named as the anatomy knows them."""
        for name, parameter in self.model.named_parameters():
            if is_trained(loaded.anatomy, name, chosen.frozen_layers):
                self.named[name] = parameter.requires_grad_(requires_grad=True)

    @property
    def reads_alike(self) -> bool:
        """As `LoraWeights.reads_alike`: the dropout inside of models draws for every example anew."""
        return self.config.hyperparameters.dropout == 0

    def clear_gradients(self) -> None:
        """Before a step."""
        for parameter in self.named.values():
            parameter.grad = None

    def pieces(self, runs: Iterable[Sequence[str]]) -> list[list[Piece]]:
        """One for each parameter: see `optimizer.Trained`."""
        return [[Piece((name,), (self.named[name].numel(),), self.named[name]) for name in run] for run in runs]

    def change(self, config: FinetuneConfig) -> None:
        """Train on under another dropout."""
        self.config = config
        set_dropout(self.model, config.hyperparameters.dropout)

    def save(self, state: State, folder: Path) -> None:
        """As `save_pretrained` does, with the tokenizer."""
        checkpoint.save_model(state, folder, self.loaded)


Weights = LoraWeights | FullWeights
"""What a member trains. The two share no state but the frozen base."""


def own_weights(config: FinetuneConfig, loaded: LoadedModel, layers: Mapping[str, AdaptedLinear]) -> Weights:
    """Fresh weights of one member, as the config's method says."""
    return LoraWeights(config, loaded, layers) if config.model.method == "lora" else FullWeights(config, loaded)


def reader(members: Sequence[Weights]) -> Reader:
    """For evaluating members with adapters on one base, or one member with a model of its own."""
    first, *_ = members
    if isinstance(first, FullWeights):
        return Reader(first.model.eval())
    return Reader(first.loaded.model, first.layers, [own.adapters for own in members if isinstance(own, LoraWeights)])


@contextmanager
def full_training(weights: FullWeights, step: int, number: int) -> Iterator[Any]:
    """A member's own model in training mode, for one micro-batch.

    Args:
        weights: The member's.
        step: The optimizer step; entering again for the same one drops out the same.
        number: Of the micro-batch in the step.
    """
    weights.model.train()
    with _activations([weights.config], weights.loaded, weights.model):
        # What models draw in training, dropout and the jitter of routers, comes from the global generators: they are
        # lent a stream of the member's own.
        device = weights.loaded.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(weights.config.seed, "dropout", step, number))
            yield weights.model


@contextmanager
def lora_training(members: Sequence[tuple[LoraWeights, int]], batch: MicroBatch) -> Iterator[Any]:
    """The shared base with the adapters of each member at its own rows; the base's own dropout stays off.

    Args:
        members: (weights, optimizer step) of each share of the batch; on one base.
        batch: What will be read.
    """
    parts, drawn = [], []
    for part in batch.parts:
        weights, step = members[part.share]
        rate, (start, end) = weights.config.hyperparameters.dropout, part.tokens
        parts.append(MemberRows(weights.adapters, start, end, rate))
        drawn.append((rate, derived_seed(weights.config.seed, "dropout", step), batch.tokens[start:end]))
    first, _ = members[0]
    configs = [weights.config for weights, _ in members]
    with activated(first.layers, parts, Dropout.of(drawn)), _activations(configs, first.loaded, first.loaded.model):
        yield first.loaded.model


def _activations(configs: Sequence[FinetuneConfig], loaded: LoadedModel, model: Any) -> AbstractContextManager[None]:
    """Kept for the backward pass, or computed again when any of the configs says so."""
    if not any(config.model.activation_checkpointing for config in configs):
        return nullcontext()
    # A model in training mode may draw without any dropout, as routers of experts do; a frozen base never does.
    draws = any(config.model.method == "full" for config in configs)
    return recomputing(model, model.get_submodule(loaded.anatomy.blocks), draws=draws)
