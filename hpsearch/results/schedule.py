"""What a trial was trained with on its way, where that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def schedule_of(config: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a fine-tune: `since` and `until` (exposures; None: the end) and `hyperparameters` of each.

    Args:
        config: As it is stored; empty is the answer for one without parts.
    """
    earlier = [] if config is None else config.get("earlier", [])
    if config is None or not earlier:
        return []
    ends = [phase["until"] for phase in earlier]
    parts = [*(phase["hyperparameters"] for phase in earlier), config["hyperparameters"]]
    return [
        {"since": start, "until": end, "hyperparameters": part}
        for start, end, part in zip([0, *ends], [*ends, None], parts, strict=True)
    ]


def told(schedule: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A schedule in words, a line for each parameter that changes."""
    for name in schedule[0]["hyperparameters"] if schedule else ():
        pieces: list[tuple[Any, int | None]] = []  # value, and where it ends
        for part in schedule:
            value = part["hyperparameters"][name]
            if pieces and pieces[-1][0] == value:
                pieces.pop()
            pieces.append((value, part["until"]))
        if len(pieces) > 1:
            words = [f"{value:.4g}" + (f" until {until} examples" if until else " then") for value, until in pieces]
            yield f"{name}: {', '.join(words)}"
