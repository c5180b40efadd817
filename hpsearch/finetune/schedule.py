"""The learning rate over a trial's own steps, as a factor of its peak.

The same figures as transformers' `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup` and
`get_cosine_schedule_with_warmup`.
"""

from __future__ import annotations

import math

from hpsearch.spec.schedules import LRSchedule


def warmup_steps(total_steps: int, warmup_fraction: float) -> int:
    """Steps of warm-up: a part of all, rounded up, but never all (the first step's factor is 0)."""
    return min(math.ceil(total_steps * warmup_fraction), total_steps - 1)


def learning_rate_factor(schedule: LRSchedule, step: int, total_steps: int, warmup: int) -> float:
    """Factor in [0, 1] of one step (from 0): up to 1 over the warm-up, then constant, or falling to 0 at the end."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (total_steps - warmup)
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
