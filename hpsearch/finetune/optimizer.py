"""AdamW with decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) and rates by depth."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hpsearch.errors import InvalidSpec
from hpsearch.finetune.model import Anatomy
from hpsearch.spec.finetune import FinetuneConfig


def is_trained(anatomy: Anatomy, parameter: str, frozen_layers: int) -> bool:
    """Whether a parameter lies above the frozen part: the lowest k blocks and, from k = 1, the embeddings."""
    return frozen_layers == 0 or anatomy.depth(parameter) < anatomy.layers - frozen_layers


def check_frozen_layers(anatomy: Anatomy, frozen_layers: int) -> None:
    """Raise InvalidSpec when no block would be left to train."""
    if frozen_layers >= anatomy.layers:
        text = f"frozen_layers is {frozen_layers}, but the model has {anatomy.layers} blocks: none would be trained"
        raise InvalidSpec(text, "search_space.frozen_layers")


@dataclass(frozen=True)
class Piece:
    """Parameters that are updated as one: their values, one after the other."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Elements of each."""
    tensor: nn.Parameter


class Trained(Protocol):
    """What an optimizer needs to know of weights."""

    named: dict[str, nn.Parameter]

    def pieces(self, runs: Iterable[Sequence[str]]) -> list[list[Piece]]:
        """The parameters of each run, in as few pieces as they lie in memory; runs are in the order of `named`."""
        ...


class Optimizer:
    """Clipping, schedule and AdamW for the weights of one member."""

    def __init__(self, weights: Trained, anatomy: Anatomy, config: FinetuneConfig) -> None:
        """Groups of one peak rate and one weight decay.

        Args:
            weights: Names are as the anatomy knows them.
            anatomy: Tells how deep each lies: its rate is multiplied by `layer_lr_decay` per layer above it.
            config: Of the fine-tune. Weight decay spares vectors: norms and biases.
        """
        chosen = config.hyperparameters
        self._max_norm = config.model.max_grad_norm
        self.settings = {
            name: (
                config.learning_rate * chosen.layer_lr_decay ** anatomy.depth(name),
                chosen.weight_decay if parameter.ndim >= 2 else 0.0,
            )
            for name, parameter in weights.named.items()
        }
        """Peak rate and weight decay, by name."""
        runs = [tuple(run) for _, run in itertools.groupby(self.settings, key=self.settings.__getitem__)]
        pieces = weights.pieces(runs)
        self._pieces = [piece for run in pieces for piece in run]
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for run, parts in zip(runs, pieces, strict=True):
            groups.setdefault(self.settings[run[0]], []).extend(piece.tensor for piece in parts)
        self._adamw = AdamW(
            [
                {"params": tensors, "lr": peak, "peak": peak, "weight_decay": weight_decay}
                for (peak, weight_decay), tensors in groups.items()
            ],
            betas=(0.9, 0.999),
            eps=1e-8,
            fused=True,
        )

    def step(self, factor: float) -> None:
        """Clip the gradient, then update every parameter.

        Args:
            factor: The schedule's: each rate is its peak times this.
        """
        if self._max_norm is not None:
            nn.utils.clip_grad_norm_([piece.tensor for piece in self._pieces], self._max_norm)
        for group in self._adamw.param_groups:
            group["lr"] = group["peak"] * factor
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """All it remembers, `<kind>.<parameter>`; the tensors are its own."""
        found: dict[str, Tensor] = {}
        for piece in self._pieces:
            for kind, tensor in self._adamw.state.get(piece.tensor, {}).items():
                # The number of steps is one for the whole piece.
                parts = (
                    [tensor] * len(piece.names) if tensor.ndim == 0 else tensor.view(-1).split_with_sizes(piece.sizes)
                )
                found |= {f"{kind}.{name}": part for name, part in zip(piece.names, parts, strict=True)}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, which is copied."""
        self._adamw.state.clear()
        kinds = sorted({name.partition(".")[0] for name in state})
        for piece, kind in itertools.product(self._pieces, kinds):
            parts = [state[f"{kind}.{name}"] for name in piece.names]
            whole = parts[0].clone() if parts[0].ndim == 0 else torch.cat([part.flatten() for part in parts])
            shaped = whole if whole.ndim == 0 else whole.view_as(piece.tensor)
            # Not `load_state_dict`, which numbers parameters by their groups.
            self._adamw.state[piece.tensor][kind] = shaped.to(piece.tensor.device)
