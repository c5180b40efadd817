"""Has a curve turned?"""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.spec.objective import Direction


def has_turned(values: Sequence[float], direction: Direction, patience: int | None, min_delta: float = 0.0) -> bool:
    """Whether the last `patience` values brought no new best one. Never without patience.

    Args:
        values: The objective at each report after the baseline, in order.
        direction: Of the objective.
        patience: Reports.
        min_delta: What is no more than this better than the best before counts as no better.
    """
    if patience is None or len(values) <= patience:
        return False
    before, last = values[:-patience], values[-patience:]
    if direction == "minimize":
        return min(last) >= min(before) - min_delta
    return max(last) <= max(before) + min_delta
