"""Everything one fine-tune needs: what a study spec says about the model, and the resolved config of a trial."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hpsearch.errors import InvalidSpec
from hpsearch.spec.closed import Closed
from hpsearch.spec.data import DataSpec
from hpsearch.spec.schedules import LRSchedule

TARGETS_FIELD = "model.lora.target_modules"


def is_named(layer: str, asked: str) -> bool:
    """Whether a layer's name is the asked one, or ends in it part by part: `model.layers.0.self_attn.q_proj`."""
    return layer == asked or layer.endswith(f".{asked}")


def no_such_layer(asked: str, layers: Iterable[str]) -> InvalidSpec:
    """That none of these linear layers is named so."""
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    text = f"{TARGETS_FIELD}: no linear layer's name ends in '{asked}'; the model's are: {kinds}"
    return InvalidSpec(text, TARGETS_FIELD)


class LoraSpec(Closed):
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W x + alpha / rank * B A x."""

    rank: int = Field(8, ge=1, le=1024)
    """Inner dimension of the adapters."""
    alpha: float = Field(16, gt=0, le=1e6)
    """Scale of the adapters' output, divided by the rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which linear layers get an adapter: all but the output embedding, or those whose name ends so (`q_proj`)."""


class ModelSpec(Closed):
    """The base model and how it is trained."""

    base: str = Field(min_length=1, max_length=1024)
    """A Hugging Face hub id, or a folder below an allowed root (absolute, or relative to one of the roots)."""
    revision: str | None = Field(None, max_length=255)
    """Branch, tag or commit, for a hub id."""
    method: Literal["lora", "full"] = "lora"
    """Train adapters on a frozen base, or every weight."""
    lora: LoraSpec = LoraSpec()
    """The adapters' shape, when the method is LoRA."""
    base_learning_rate: float | None = Field(None, gt=0, le=1)
    """The base model's pre-training learning rate. Left out: known families by table, others by size."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """The gradient is scaled down to this norm; null for no clipping."""
    activation_checkpointing: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, more time, the same curve."""


class Hyperparameters(Closed):
    """The ten parameters of the table, each with its value."""

    epochs: int
    batch_size: int
    learning_rate_multiplier: float
    prompt_loss_weight: float
    dropout: float
    weight_decay: float
    lr_schedule: LRSchedule
    warmup_fraction: float
    frozen_layers: int
    layer_lr_decay: float


CHANGEABLE = ("learning_rate_multiplier", "prompt_loss_weight", "dropout", "weight_decay", "layer_lr_decay")
"""What may change in the middle of a fine-tune: numbers of a step's loss and of AdamW's update. All others decide what
the weights are (frozen layers), or what a step is and where in its schedule (epochs, batch size, schedule, warm-up)."""

MOST_PHASES = 1000


class Phase(Closed):
    """An earlier part of a fine-tune, under other hyperparameters than its last part."""

    until: int = Field(ge=1)
    """Training examples seen at its end, over all epochs: the first step that reaches them is its last."""
    hyperparameters: Hyperparameters
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""


class FinetuneConfig(Closed):
    """One fine-tune, resolved: nothing in it is `auto`."""

    model: ModelSpec
    data: DataSpec
    hyperparameters: Hyperparameters
    learning_rate: float
    """Peak learning rate: `base_learning_rate * learning_rate_multiplier`."""
    base_learning_rate: float
    """The base model's pre-training learning rate that was used."""
    seed: int = 0
    """Data order, dropout and the adapters' initial weights; the same for every trial of a study but for those that
    confirm others."""
    reports_per_epoch: int = Field(2, ge=1, le=100)
    """Validation passes per epoch, at equal exposures."""
    patience: int | None = Field(None, ge=1, le=1000, exclude_if=lambda patience: patience is None)
    """The fine-tune ends after so many reports in a row without a new best one; None to train every epoch."""
    earlier: tuple[Phase, ...] = Field((), max_length=MOST_PHASES, exclude_if=lambda phases: not phases)
    """Parts of the training under other hyperparameters, in order; those above are of the rest. Weights and AdamW's
    state go on from one part to the next. Population based training makes such configs."""

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        ends = [phase.until for phase in self.earlier]
        if ends != sorted(set(ends)):
            raise ValueError(f"the parts of `earlier` end one after the other, not at {ends}")
        fixed = self.hyperparameters.model_dump(exclude=set(CHANGEABLE))
        for phase in self.earlier:
            for name, value in phase.hyperparameters.model_dump(exclude=set(CHANGEABLE)).items():
                if value != fixed[name]:
                    raise ValueError(f"{name} can't change in the middle of a fine-tune: {value}, then {fixed[name]}")
        return self

    def at(self, exposure: int) -> FinetuneConfig:
        """The config of the part that trains on after so many examples, as if it were the last one."""
        for place, phase in enumerate(self.earlier):
            if exposure < phase.until:
                part = {"hyperparameters": phase.hyperparameters, "learning_rate": phase.learning_rate}
                return self.model_copy(update={**part, "earlier": self.earlier[:place]})
        return self

    def changed(self, exposure: int, hyperparameters: Hyperparameters) -> FinetuneConfig:
        """The config of what is trained as here up to an exposure, and under other hyperparameters from there on."""
        before = self.at(exposure - 1)
        phase = Phase(until=exposure, hyperparameters=before.hyperparameters, learning_rate=before.learning_rate)
        rate = self.base_learning_rate * hyperparameters.learning_rate_multiplier
        values = {"hyperparameters": hyperparameters.model_dump(), "learning_rate": rate}
        return FinetuneConfig.model_validate(
            {
                **self.model_dump(),
                **values,
                "earlier": [*(each.model_dump() for each in before.earlier), phase.model_dump()],
            }
        )

    def curve_terms(self) -> dict[str, Any]:
        """What of it decides a curve: not where files lie, nor what only moves memory and time around."""
        dumped = self.model_dump(mode="json", exclude={"data": True, "base_learning_rate": True})
        for place in ("base", "revision", "base_learning_rate", "activation_checkpointing"):
            del dumped["model"][place]
        return dumped
