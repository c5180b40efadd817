"""From the data section of a spec to the two splits, as the runner and the device read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpsearch.dataset.examples import Example
from hpsearch.dataset.formats import read_examples
from hpsearch.dataset.split import split
from hpsearch.errors import InvalidDataset, TooFewExamples
from hpsearch.spec.data import DataSpec

FEWEST_EXAMPLES = 10
"""In the training file."""
ALL_THE_SAME = "all training examples are the same: give a validation file"


@dataclass(frozen=True)
class Split:
    """The examples of a study; never empty on either side."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]


def load(data: DataSpec) -> Split:
    """Read and check the examples that a spec names; its paths are absolute by now.

    `hpsearch.dataset.lint` finds the same without holding the examples.

    Raises:
        UnknownDataset: A file can't be read; `field` is `data.train` or `data.validation`.
        InvalidDataset: Lines can't be used, or there is nothing to validate on.
        TooFewExamples: The training file has fewer than 10.
    """
    examples = read_examples(Path(data.train), data.format, "data.train")
    if len(examples) < FEWEST_EXAMPLES:
        raise TooFewExamples(too_few_text(data.train, len(examples)), "data.train")
    if data.validation is None:
        train, validation = split(examples, data.validation_fraction)
        if not validation:
            raise InvalidDataset(ALL_THE_SAME, "data.train")
        return Split(train, validation)
    validation = tuple(read_examples(Path(data.validation), data.format, "data.validation"))
    if not validation:
        raise TooFewExamples(f"{Path(data.validation).name} has no examples; validation needs some", "data.validation")
    return Split(tuple(examples), validation)


def too_few_text(path: str, count: int) -> str:
    """What a person reads who gave too few."""
    return f"{Path(path).name} has {count} examples; at least {FEWEST_EXAMPLES} are needed to train on"
