"""The test split: read once, when a fine-tune that was given one has ended."""

from __future__ import annotations

import functools
import itertools

from hpsearch.finetune.evaluate import Evaluation, evaluate
from hpsearch.finetune.member import Member
from hpsearch.finetune.step import in_less_memory
from hpsearch.finetune.weights import reader
from hpsearch.results.sealed import SealedScore
from hpsearch.spec.objective import Metric

MOST_BLOCKS = 20
"""Enough to tell how the examples differ: a mean over so many has 19 degrees of freedom."""


def score_sealed(member: Member) -> SealedScore | None:
    """Evaluate the weights that a fine-tune keeps on its test split; None when it has none.

    The member is not to be trained on afterwards: its weights are those of its best report from here on.

    Raises:
        OutOfMemory: Not even a single sequence of the test split fits.
    """
    split, prepared = member.prepared.test, member.prepared
    if split is None:
        return None
    member.return_to_best()
    count = len(split.examples)
    blocks = min(MOST_BLOCKS, count)
    company, anatomy, budget = reader([member.weights]), prepared.loaded.anatomy, member.evaluation_budget
    values, weights = [], []
    for start, end in itertools.pairwise(block * count // blocks for block in range(blocks + 1)):
        read = functools.partial(evaluate, company, anatomy, split.examples[start:end])
        (evaluation,), budget = in_less_memory(read, budget)
        value, weight = _measured(evaluation, member.metric)
        values.append(value)
        weights.append(weight)
    return SealedScore(count, tuple(values), tuple(weights))


def _measured(evaluation: Evaluation, metric: Metric) -> tuple[float, float]:
    """The metric, and what it is a mean over."""
    if metric == "validation_bits_per_byte":
        return evaluation.bits_per_byte, float(max(evaluation.text_bytes, 1))
    value = evaluation.loss if metric == "validation_loss" else evaluation.token_accuracy
    return value, float(evaluation.tokens)
