"""Holding back validation examples when there is no validation file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpsearch.dataset.examples import Example

if TYPE_CHECKING:
    from hpsearch.dataset.duplicates import Sketches

_WHOLE = 2**64


def split(examples: Sequence[Example], fraction: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide into (train, validation), each in the given order; `held_back` says which goes where."""
    from hpsearch.dataset.duplicates import Sketches

    sketches = Sketches()
    for example in examples:
        sketches.add(example)
    held = held_back(sketches, fraction)
    train = tuple(example for example, is_held in zip(examples, held, strict=True) if not is_held)
    validation = tuple(example for example, is_held in zip(examples, held, strict=True) if is_held)
    return train, validation


def held_back(sketches: Sketches, fraction: float) -> list[bool]:
    """Of each example whether it is for validation.

    A group of near-duplicates is held back when the content hash of its first example, read as a number in [0, 1),
    lies below `fraction`. So exact duplicates and the near-duplicates that are found are on one side, and

    - an example without near-duplicates stays on its side, whatever else is added, removed or reordered;
    - appending moves no example, unless it joins two groups that were on different sides, or makes a group larger
      than 20 contents, which then is a template and is divided (see `duplicates.groups`).

    When that would leave one side empty, the group nearest to it (smallest hash: validation, largest: train) moves
    there. If all is one group, its contents are divided like that. With a single distinct content there is nothing
    to divide: nothing is held back.
    """
    from hpsearch.dataset.duplicates import groups

    if not len(sketches):
        return []
    places = sketches.places[groups(sketches)]
    if places.min() == places.max():
        places = sketches.places
    smallest, largest = places.min(), places.max()
    held: list[bool] = (((places < math.ceil(fraction * _WHOLE)) | (places == smallest)) & (places != largest)).tolist()
    return held
