"""From the data section of a spec to the two splits, as the runner and the device read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpsearch.dataset.examples import Example
from hpsearch.dataset.formats import read_examples
from hpsearch.dataset.split import split
from hpsearch.errors import InvalidDataset, TooFewExamples
from hpsearch.spec.data import DataSpec, SplitRole

FEWEST_EXAMPLES = 10
"""In the training file."""
ALL_THE_SAME = "all training examples are the same: give a validation file"


@dataclass(frozen=True)
class Split:
    """The examples that a study is searched with; never empty on either side."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]


def load(data: DataSpec) -> Split:
    """Read and check the examples that a spec names; its paths are absolute by now.

    `hpsearch.dataset.lint` finds the same without holding the examples.

    Raises:
        UnknownDataset: A file can't be read; `field` is `data.train` or `data.validation`.
        InvalidDataset: Lines can't be used, or there is nothing to validate on.
        TooFewExamples: The training file has fewer than 10, or another one none.
    """
    examples = read_examples(Path(data.train), data.format, "data.train")
    if len(examples) < FEWEST_EXAMPLES:
        raise TooFewExamples(too_few_text(data.train, len(examples)), "data.train")
    if data.validation is None:
        train, validation = split(examples, data.validation_fraction)
        if not validation:
            raise InvalidDataset(ALL_THE_SAME, "data.train")
    else:
        train, validation = tuple(examples), read_some(data.validation, data, "validation")
    return Split(train, validation)


def read_some(file: str, data: DataSpec, role: SplitRole) -> tuple[Example, ...]:
    """The examples of a file, at least one.

    Raises:
        UnknownDataset: It can't be read; `field` is that of the role.
        InvalidDataset: Lines can't be used.
        TooFewExamples: There are none.
    """
    examples = tuple(read_examples(Path(file), data.format, f"data.{role}"))
    if not examples:
        raise TooFewExamples(f"{Path(file).name} has no examples; {role} needs some", f"data.{role}")
    return examples


def too_few_text(path: str, count: int) -> str:
    """What a person reads who gave too few."""
    return f"{Path(path).name} has {count} examples; at least {FEWEST_EXAMPLES} are needed to train on"
