"""The test split: read when a fine-tune that was given one has ended. Nothing hangs on it, so it fails nothing."""

from __future__ import annotations

import functools
import itertools
import logging
from pathlib import Path
from weakref import WeakKeyDictionary

from hpsearch.dataset.load import read_some
from hpsearch.errors import HpsearchError, InvalidDataset
from hpsearch.finetune.evaluate import Evaluation, evaluate
from hpsearch.finetune.member import Member
from hpsearch.finetune.prepare import Base, check_vocabulary, longest
from hpsearch.finetune.step import in_less_memory
from hpsearch.finetune.tokenised import TokenisedSplit
from hpsearch.finetune.tokens import tokenise
from hpsearch.finetune.weights import reader
from hpsearch.results.sealed import SealedScore
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric

log = logging.getLogger(__name__)

MOST_BLOCKS = 20
"""Enough to tell how the examples differ: a mean over so many has 19 degrees of freedom."""

_last: WeakKeyDictionary[Base, tuple[tuple[object, ...], TokenisedSplit]] = WeakKeyDictionary()
"""The trainings that confirm a study's best all read the same."""


def score_sealed(member: Member) -> SealedScore | None:
    """Evaluate the weights that a fine-tune keeps on its test split; None when its config names none.

    The member is not to be trained on afterwards: its weights are those of its best report from here on. Whatever goes
    wrong is what the score says.

    Args:
        member: Its best weights are kept by now. Whoever wants it gone waits: a trial that has ended has its score.
    """
    if member.config.data.test is None:
        return None
    try:
        return _score(member, _read(member))
    except Exception as error:  # a file that was moved, an example that is too long for the memory
        known = isinstance(error, HpsearchError)
        text = (str(error) if known else f"{type(error).__name__}: {error}")[:500]
        log.warning("test split not read", exc_info=not known, extra={"reason": text})
        return SealedScore.failed(text)


def _read(member: Member) -> TokenisedSplit:
    config, prepared = member.config, member.prepared
    key = _key(config, max_length := longest(config, prepared.loaded))
    known = _last.get(prepared.base)
    if known is None or known[0] != key:
        examples = read_some(str(config.data.test), config.data, "test")
        split = tokenise(examples, prepared.loaded.tokenizer, max_length, config.data.chat_template, "data.test")
        if not split.examples:
            text = f"no test example has any completion left within {max_length} tokens: raise data.max_length"
            raise InvalidDataset(text, "data.max_length")
        check_vocabulary(prepared.loaded, split)
        known = _last[prepared.base] = key, split
    return known[1]


def _key(config: FinetuneConfig, max_length: int) -> tuple[object, ...]:
    path = Path(str(config.data.test))
    stat = path.stat() if path.is_file() else None  # whoever reads it says that it is gone
    content = None if stat is None else (stat.st_size, stat.st_mtime_ns)
    return config.data.test, content, config.data.format, config.data.chat_template, max_length


def _score(member: Member, split: TokenisedSplit) -> SealedScore:
    member.return_to_best()
    count = len(split.examples)
    blocks = min(MOST_BLOCKS, count)
    company, budget = reader([member.weights]), member.evaluation_budget
    values, weights = [], []
    for start, end in itertools.pairwise(block * count // blocks for block in range(blocks + 1)):
        examples = split.examples[start:end]
        read = functools.partial(evaluate, company, member.prepared.loaded.anatomy, examples)
        (evaluation,), budget = in_less_memory(read, budget)
        value, weight = _measured(evaluation, member.metric)
        values.append(value)
        weights.append(weight)
    return SealedScore(split.fingerprint, count, tuple(values), tuple(weights))


def _measured(evaluation: Evaluation, metric: Metric) -> tuple[float, float]:
    """The metric, and what it is a mean over."""
    if metric == "validation_bits_per_byte":
        return evaluation.bits_per_byte, float(max(evaluation.text_bytes, 1))
    value = evaluation.loss if metric == "validation_loss" else evaluation.token_accuracy
    return value, float(evaluation.tokens)
