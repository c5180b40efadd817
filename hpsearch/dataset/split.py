"""Holding back validation examples when there is no validation file."""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.dataset.examples import Example
from hpsearch.dataset.fingerprint import content_digest

_WHOLE = 2**64


def split(examples: Sequence[Example], fraction: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide into (train, validation), each in the given order.

    An example is held back when its content hash, read as a number in [0, 1), lies below `fraction`. So an
    example stays on its side when others are added or reordered, and exact duplicates are on one side. When
    that would leave one side empty, the content nearest to it (smallest hash: validation, largest: train) moves
    there. With a single distinct content there is nothing to divide: all of it is returned as train.
    """
    places = [int.from_bytes(content_digest(example)[:8], "big") for example in examples]
    if len(set(places)) < 2:
        return tuple(examples), ()
    smallest, largest = min(places), max(places)
    held_back = [(place < fraction * _WHOLE or place == smallest) and place != largest for place in places]
    train = tuple(example for example, held in zip(examples, held_back, strict=True) if not held)
    validation = tuple(example for example, held in zip(examples, held_back, strict=True) if held)
    return train, validation
