"""Cursors of the list of studies: where a page ended, whatever has become of the study that stood there."""

from __future__ import annotations

import base64
import json
import math

from hpsearch.errors import InvalidInput

MARK = "~"
"""How a cursor begins; no study's name does."""


def written(place: tuple[float, str]) -> str:
    """A place in the list as a client sends it back."""
    return MARK + base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read(text: str) -> tuple[float, str] | None:
    """The place that a cursor stands for; None where the text is no cursor, but maybe a name.

    Raises:
        InvalidInput: It begins like a cursor, and `written` has not made it.
    """
    if not text.startswith(MARK):
        return None
    try:
        created_at, name = json.loads(base64.urlsafe_b64decode(text.removeprefix(MARK) + "=="))
        if isinstance(name, str) and isinstance(created_at, float) and math.isfinite(created_at) and "\0" not in name:
            name.encode()
            return created_at, name
    except (ValueError, TypeError):  # no base64, no JSON, no pair
        pass
    raise InvalidInput("after: it is no cursor of this service: send `next` of the page before as it is", "after")
