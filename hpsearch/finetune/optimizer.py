"""AdamW with decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) and rates by depth."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
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


def build_optimizer(named: Mapping[str, nn.Parameter], anatomy: Anatomy, config: FinetuneConfig) -> AdamW:
    """AdamW over the trained parameters, in groups of one peak rate (key `peak`) and one weight decay.

    Args:
        named: By name, as the anatomy knows them.
        anatomy: Tells how deep each lies: its rate is multiplied by `layer_lr_decay` per layer above it.
        config: Of the fine-tune. Weight decay spares vectors: norms and biases.
    """
    chosen = config.hyperparameters
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        peak = config.learning_rate * chosen.layer_lr_decay ** anatomy.depth(name)
        weight_decay = chosen.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((peak, weight_decay), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "lr": peak, "peak": peak, "weight_decay": weight_decay}
            for (peak, weight_decay), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def set_learning_rates(optimizer: AdamW, factor: float) -> None:
    """Each group's rate for the next step: its peak times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
