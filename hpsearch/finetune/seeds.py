"""Random streams. Nothing that decides a number draws from the global generators."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose (63 bits): streams of different purposes are independent.

    Args:
        seed: Of the fine-tune.
        purpose: Words and numbers that name it, such as `"dropout", step`.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
