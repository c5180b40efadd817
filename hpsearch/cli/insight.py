"""What `hpsearch insight` says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BAR = 30


def told(found: dict[str, Any]) -> Iterator[str]:
    """An insight, line by line: importances as bars, then what to do."""
    yield f"{found['study']}: {found['trials']} ranked trials"
    if any(effect["importance"] is not None for effect in found["effects"]):
        yield "how much each parameter decides whether a trial is among the best:"
        width = max(len(effect["parameter"]) for effect in found["effects"])
        for effect in found["effects"]:
            part = effect["importance"] or 0.0
            note = "" if effect["measurable"] is not False else "  no measurable effect"
            yield f"  {effect['parameter']:{width}}  {part:5.0%}  {'#' * round(part * BAR):{BAR}}{note}".rstrip()
    else:
        yield "too few completed trials to say how important the parameters are: it takes eight, and five for the edges"
    yield from (f"advice: {sentence}" for sentence in found["advice"])
