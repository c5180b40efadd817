"""What is wrong with a data file, and what is merely suspicious, without training on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpsearch.dataset.examples import AskedFormat, Format
from hpsearch.dataset.formats import MOST_FAULTS, Fault, parse_examples
from hpsearch.dataset.lengths import Lengths, named
from hpsearch.dataset.load import FEWEST_EXAMPLES, too_few_text
from hpsearch.spec.data import SplitRole

if TYPE_CHECKING:
    from hpsearch.dataset.duplicates import Pairs, Sketches

FEW_EXAMPLES = 50
"""Below this, training works but seldom helps."""
FEW_TO_TEST = 40
"""Below this, an interval over other examples is wide."""


@dataclass(frozen=True)
class LintReport:
    """What `lint` found. Faults must be mended; warnings are a person's choice."""

    format: Format | None
    """None when no line could be read."""
    examples: int
    """Lines that can be used."""
    faults: tuple[tuple[int, str], ...]
    """(line, text), up to the first 20; line 0 is the file as a whole."""
    warnings: tuple[str, ...]
    exact_duplicates: int
    """Examples that repeat an earlier one."""
    near_duplicates: int
    """Further examples that nearly repeat an earlier one."""
    prompt_bytes: int
    """UTF-8 bytes of what is only read."""
    completion_bytes: int
    """UTF-8 bytes of what is learned."""
    too_long: int | None
    """Examples with more tokens than are read; None when tokens could not be counted."""
    left_out: int
    """Examples whose whole completion is cut off, as far as tokens could be counted: nobody learns from them."""
    tokens: int | None
    """That are read of all examples, about: chat templates differ. None when they could not be counted."""
    sketches: Sketches = field(repr=False, compare=False)
    """Of the examples, in their order: what a split and an overlap are found from."""

    @property
    def is_usable(self) -> bool:
        """Whether it can be trained on, or validated on."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """All of it but the sketches; a fault is `{"line", "text"}`."""
        return {
            "format": self.format,
            "examples": self.examples,
            "faults": [{"line": line, "text": text} for line, text in self.faults],
            "warnings": list(self.warnings),
            "exact_duplicates": self.exact_duplicates,
            "near_duplicates": self.near_duplicates,
            "prompt_bytes": self.prompt_bytes,
            "completion_bytes": self.completion_bytes,
            "too_long": self.too_long,
            "left_out": self.left_out,
            "tokens": self.tokens,
        }


def lint(
    path: Path,
    format: AskedFormat = "auto",  # noqa: A002
    role: SplitRole | Literal["either"] = "train",
    max_length: int | None = None,
    count_tokens: Callable[[str], int | None] | None = None,
    *,
    limited_by_model: bool = False,
) -> LintReport:
    """Check one data file. It is streamed; some 160 bytes per example are held, and 100 more while they are compared.

    Args:
        path: The file.
        format: As in the spec.
        role: What it is for: only training needs many examples, and only there the prompts' share matters.
        max_length: Tokens that are read of an example.
        count_tokens: Of a text, as the base model's tokenizer has it; it may answer None when it can't tell. Left
            out, or without `max_length`, nothing is said of tokens.
        limited_by_model: Whether `max_length` is what the model can read, and the spec's is larger.

    Raises:
        UnknownDataset: The file can't be read.
    """
    from hpsearch.dataset.duplicates import Sketches, exact_repeats, near_repeats

    found: Format | None = None
    faults: list[tuple[int, str]] = []
    sketches = Sketches()
    lengths = Lengths(max_length, count_tokens)
    for parsed in parse_examples(path, format, "data.train" if role == "either" else f"data.{role}"):
        if isinstance(parsed, Fault):
            faults.append((parsed.line, parsed.text))
            if len(faults) == MOST_FAULTS:
                break
            continue
        found = found or parsed.format
        sketches.add(parsed)
        lengths.add(parsed)
    count = len(sketches)
    named = "the file" if role == "either" else path.name  # an upload has no name that anybody knows
    if not faults and count < (FEWEST_EXAMPLES if role == "train" else 1):
        faults.append((0, too_few_text(str(path), count) if role == "train" else f"{named} has no examples"))
    fewest = FEWEST_EXAMPLES if role == "train" else 1
    if not faults and count - lengths.unlearned < fewest:
        kept = f"only {count - lengths.unlearned} of {count} examples keep any completion within {max_length} tokens"
        faults.append((0, f"{kept}, and {fewest} are needed: raise data.max_length, or shorten them"))
    exact, near = exact_repeats(sketches), near_repeats(sketches)
    warnings = (
        *_few_warning(count, role),
        *_repeats_warnings(exact, near),
        *(lengths.ratio_warning() if role in ("train", "either") else ()),
        *lengths.cut_off_warning(count, limited_by_model=limited_by_model),
    )
    return LintReport(
        found, count, tuple(faults), warnings, len(exact[0]), len(near[0]),
        lengths.prompt_bytes, lengths.completion_bytes, lengths.too_long, lengths.unlearned, lengths.tokens, sketches,
    )  # fmt: skip


_ADJECTIVES: dict[SplitRole, str] = {"train": "training", "validation": "validation", "test": "test"}


def lint_overlap(reports: Mapping[SplitRole, LintReport]) -> tuple[str, ...]:
    """Warn of validation examples that are also trained on, or nearly: they make the validation loss too good.

    The same of test examples that are trained on or that the best trials are chosen by.

    Args:
        reports: Of the files of a study, by what each is for: training first, test last.
    """
    pairs = itertools.combinations(reports.items(), 2)
    return tuple(text for seen, judged in pairs for text in _overlap(*seen, *judged))


def _overlap(seen_as: SplitRole, seen: LintReport, judged_as: SplitRole, judged: LintReport) -> Iterator[str]:
    from hpsearch.dataset.duplicates import repeats_across

    exact, near = repeats_across(seen.sketches, judged.sketches)
    one, other = _ADJECTIVES[judged_as], _ADJECTIVES[seen_as]
    if len(exact):
        yield f"{len(exact)} {one} examples are also {other} examples ({one} lines {named(exact)})"
    if len(near[0]):
        lines = named(f"{one} line {line} is like {other} line {first}" for line, first in zip(*near, strict=True))
        text = f"take them out of one of the files, or the {one} loss is too good"
        yield f"{len(near[0])} {one} examples are near-duplicates of {other} examples: {lines}; {text}"


def _few_warning(count: int, role: SplitRole | Literal["either"]) -> Iterator[str]:
    if role == "test" and 0 < count < FEW_TO_TEST:
        yield f"only {count} examples: what a trial gains on so few is known within wide limits only"
    if role == "train" and FEWEST_EXAMPLES <= count < FEW_EXAMPLES:
        yield f"only {count} examples: fine-tuning usually needs {FEW_EXAMPLES} or more to show"


def _repeats_warnings(exact: Pairs, near: Pairs) -> Iterator[str]:
    if len(exact[0]):
        lines = named(f"line {line} repeats line {first}" for line, first in zip(*exact, strict=True))
        yield f"{_counted(len(exact[0]), 'exact duplicate')}: {lines}"
    if len(near[0]):
        lines = named(f"line {line} is like line {first}" for line, first in zip(*near, strict=True))
        yield f"{_counted(len(near[0]), 'near-duplicate')}: {lines}; take out those that teach nothing new"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
