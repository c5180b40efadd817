"""Everything one fine-tune needs: what a study spec says about the model, and the resolved config of a trial."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hpsearch.spec.closed import Closed
from hpsearch.spec.data import DataSpec
from hpsearch.spec.space import LRSchedule


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
    """Data order, dropout and the adapters' initial weights; the same for every trial of a study."""
    reports_per_epoch: int = Field(2, ge=1, le=100)
    """Validation passes per epoch, at equal exposures."""
    patience: int | None = Field(None, ge=1, le=1000, exclude_if=lambda patience: patience is None)
    """The fine-tune ends after so many reports in a row without a new best one; None to train every epoch."""

    def curve_terms(self) -> dict[str, Any]:
        """What of it decides a curve: not where files lie, nor what only moves memory and time around."""
        dumped = self.model_dump(mode="json", exclude={"data": True, "base_learning_rate": True})
        for place in ("base", "revision", "base_learning_rate", "activation_checkpointing"):
            del dumped["model"][place]
        return dumped
