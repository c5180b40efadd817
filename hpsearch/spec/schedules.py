"""Shapes of the learning rate."""

from __future__ import annotations

from typing import Literal

LRSchedule = Literal["constant", "linear", "cosine"]
"""Shape of the learning rate after warm-up, over the trial's own steps: flat, or down to zero at the last one."""
