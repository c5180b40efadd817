"""What earlier studies may teach."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from hpsearch.spec.closed import Closed

StudyNames = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=63)], ...], Field(min_length=1, max_length=16)
]


class WarmStartSpec(Closed):
    """Completed trials of earlier studies that lie in this search space teach the sampler; they are not ranked here."""

    studies: Literal["similar"] | StudyNames = "similar"
    """Names, or `similar`: all studies of the same data, model family and method."""
    first_trials: int = Field(1, ge=0, le=20)
    """So many of the best of them are tried here first, after the defaults and your own first trials."""
