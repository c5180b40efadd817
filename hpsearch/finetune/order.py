"""Which examples make up an optimizer step, and how far a trial has come after it.

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


def exposure_after(steps: int, count: int, given: int, batch_size: int) -> int:
    """Training examples passed after so many optimizer steps, over all epochs.

    Those that lose their whole completion to the cut are spread evenly over the others: a pass over the data is as
    many examples as were given, which is what a search counts in too.

    Args:
        steps: From the beginning.
        count: Examples that are learned from.
        given: Those and the ones left out.
        batch_size: Of a step.
    """
    epoch, place = divmod(steps, steps_per_epoch(count, batch_size))
    return epoch * given - (-place * batch_size * given // count)


def report_exposures(examples: int, epochs: int, reports_per_epoch: int) -> tuple[int, ...]:
    """The exposures of all reports after the baseline: multiples of a part of an epoch, rounded up.

    They depend on the data and on `reports_per_epoch` alone; more epochs only go on further. So they are the same
    for every trial of a study. A trial reports a point after the first optimizer step that reaches it, under the
    point's own number, although its batch may reach a little further. A step that passes several points reports
    the last of them only: its weights did not exist at the earlier ones. Batches end with their epoch, so the
    last example of each epoch is always a report.
    """
    points = {-(-place * examples // reports_per_epoch) for place in range(1, epochs * reports_per_epoch + 1)}
    return tuple(sorted(points))
