"""Which examples make up an optimizer step.

The order of an epoch depends on the seed and the epoch alone, so trials of one study see their examples in one
order, whatever their batch size. Optimizer batches are consecutive runs of it, exactly `batch_size` long but for
the last of an epoch, which takes what remains.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.finetune.seeds import derived_seed


@functools.lru_cache(maxsize=32)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int32]:
    """The examples' places in the order of one epoch (from 0), [count]."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator).numpy().astype(np.int32)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps: ceil(count / batch_size)."""
    return -(-count // batch_size)


def optimizer_batch(seed: int, step: int, count: int, batch_size: int) -> list[int]:
    """The places of the examples of one optimizer step (from 0, over all epochs)."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    places: list[int] = epoch_order(seed, epoch, count)[place * batch_size : (place + 1) * batch_size].tolist()
    return places
