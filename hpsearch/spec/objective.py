"""What is ranked by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpsearch.spec.closed import Closed

Metric = Literal["validation_loss", "validation_bits_per_byte", "validation_token_accuracy"]
Direction = Literal["minimize", "maximize"]


class ObjectiveSpec(Closed):
    """The metric, over the completion tokens of the whole validation split."""

    metric: Metric = "validation_loss"
    """Mean negative log-likelihood in nats per token, bits per byte of completion text, or top-1 accuracy."""
    reports_per_epoch: int = Field(2, ge=1, le=100)
    """How often a trial is evaluated, at the same exposures for every trial of the study."""

    patience: int | None = Field(None, ge=1, le=1000)
    """A trial ends, complete with its best report's value, after so many reports in a row without a new best one."""

    @property
    def direction(self) -> Direction:
        """Losses are minimised, accuracy is maximised."""
        return "maximize" if self.metric == "validation_token_accuracy" else "minimize"
