"""Has a curve turned?"""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.spec.objective import Direction


def has_turned(values: Sequence[float], direction: Direction, patience: int | None) -> bool:
    """Whether the last `patience` values brought no new best one. Never without patience.

    Args:
        values: The objective at each report after the baseline, in order.
        direction: Of the objective.
        patience: Reports.
    """
    if patience is None or len(values) <= patience:
        return False
    best = min(values) if direction == "minimize" else max(values)
    return len(values) - 1 - values.index(best) >= patience
