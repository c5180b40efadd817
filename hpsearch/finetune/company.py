"""How many trials should train together on this device: found out by letting them train."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass

import torch

from hpsearch.errors import OutOfMemory
from hpsearch.finetune.member import Member
from hpsearch.finetune.prepare import Prepared
from hpsearch.finetune.step import gradients, in_less_memory, is_out_of_memory
from hpsearch.spec.finetune import FinetuneConfig

WORTH = 1.2
"""Twice the company must train so many times the tokens: the fewer at once, the more is known when each is chosen."""

ROUNDS = 5
SECONDS = 1.0
"""Steps are timed so often, but no more of them begin after so long."""


@dataclass(frozen=True)
class Measured:
    """How many members pay, and why."""

    members: int
    reason: str
    tokens_per_second: dict[int, float]
    """By the number of members that were tried."""


def measure(prepared: Prepared, config: FinetuneConfig, most: int) -> Measured:
    """Time steps of 1, 2, 4, ... trials in one pass, until twice as many gain little or do not fit.

    Args:
        prepared: On the device.
        config: Of a typical trial; of its hyperparameters the batch size matters.
        most: Members, at most.
    """
    if config.model.method == "full":
        return Measured(1, "whole models share no pass", {})
    rates: dict[int, float] = {}
    members, why = 1, f"no more than {most} are wanted"
    while members <= most:
        try:
            rates[members] = _tokens_per_second(prepared, config, members)
        except OutOfMemory:
            why = f"{members} do not fit"
            break
        if members > 1 and rates[members] < WORTH * rates[members // 2]:
            why = f"{members} gain less than {WORTH - 1:.0%} over {members // 2}"
            break
        members *= 2
    figures = ", ".join(f"{count}: {rate:,.0f}" for count, rate in rates.items())
    batch_size = config.hyperparameters.batch_size
    reason = f"{why} (tokens per second at batch size {batch_size}, by trials on the device: {figures})"
    return Measured(max(1, members // 2), reason, rates)


def _tokens_per_second(prepared: Prepared, config: FinetuneConfig, count: int) -> float:
    """Of so many members in one pass, the median of a few steps; memory that runs out is an answer too.

    On a CPU, what counts is the time that this thread had: neighbours that take turns on the core would tell by chance
    which company is quicker.

    Raises:
        OutOfMemory: They don't fit at the full token budget.
    """
    try:
        still = config.model_copy(update={"learning_rate": 0.0})  # nothing is to be learned, so nothing can diverge
        members = [Member(still.model_copy(update={"seed": config.seed + each}), prepared) for each in range(count)]
        rates: list[float] = []
        is_gpu = prepared.loaded.device.type == "cuda"
        clock = time.perf_counter if is_gpu else time.thread_time
        began = time.perf_counter()
        for number in range(min(1 + ROUNDS, members[0].total_steps)):
            if number > 1 and time.perf_counter() - began > SECONDS:
                break
            started = clock()
            turns = [member.turn() for member in members]
            compute = functools.partial(gradients, prepared.loaded, turns)
            nll, budget = in_less_memory(compute, prepared.token_budget)
            for member, turn, own in zip(members, turns, nll, strict=True):
                member.update(turn, own, seconds=0.0)
            if is_gpu:
                torch.cuda.synchronize(prepared.loaded.device)
            rates.append(sum(turn.tokens for turn in turns) / (clock() - started))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory from None
        raise
    if budget < prepared.token_budget and count > 1:
        raise OutOfMemory
    return statistics.median(rates[1:] or rates)  # the first one allocates
