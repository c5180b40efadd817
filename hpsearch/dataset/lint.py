"""What is wrong with a data file, and what is merely suspicious, without training on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpsearch.dataset.examples import AskedFormat, Format
from hpsearch.dataset.fingerprint import content_digest
from hpsearch.dataset.formats import MOST_FAULTS, Fault, parse_examples
from hpsearch.dataset.load import FEWEST_EXAMPLES, too_few_text

FEW_EXAMPLES = 50
"""Below this, training works but seldom helps."""
DUPLICATES_NAMED = 5
_KEPT_BYTES = 16  # of each content hash: 1e6 examples collide with probability 1e-27


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

    @property
    def is_usable(self) -> bool:
        """Whether it can be trained on, or validated on."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """`{"format", "examples", "faults": [{"line", "text"}], "warnings"}`."""
        return {
            "format": self.format,
            "examples": self.examples,
            "faults": [{"line": line, "text": text} for line, text in self.faults],
            "warnings": list(self.warnings),
        }


def lint(path: Path, format: AskedFormat = "auto", role: Literal["train", "validation"] = "train") -> LintReport:  # noqa: A002
    """Check one data file. It is streamed; only hashes of its examples are held.

    Raises:
        UnknownDataset: The file can't be read.
    """
    found: Format | None = None
    count = 0
    faults: list[tuple[int, str]] = []
    first_lines: dict[bytes, int] = {}
    duplicates: list[tuple[int, int]] = []
    for parsed in parse_examples(path, format, f"data.{role}"):
        if isinstance(parsed, Fault):
            faults.append((parsed.line, parsed.text))
            if len(faults) == MOST_FAULTS:
                break
            continue
        count += 1
        found = found or parsed.format
        first = first_lines.setdefault(content_digest(parsed)[:_KEPT_BYTES], parsed.line)
        if first != parsed.line:
            duplicates.append((parsed.line, first))
    fewest = FEWEST_EXAMPLES if role == "train" else 1
    if not faults and count < fewest:
        faults.append((0, too_few_text(str(path), count) if role == "train" else f"{path.name} has no examples"))
    few = role == "train" and fewest <= count < FEW_EXAMPLES
    return LintReport(found, count, tuple(faults), tuple(_warnings(count if few else None, duplicates)))


def _warnings(few: int | None, duplicates: list[tuple[int, int]]) -> Iterator[str]:
    if few is not None:
        yield f"only {few} examples: fine-tuning usually needs {FEW_EXAMPLES} or more to show"
    if duplicates:
        named = ", ".join(f"line {line} repeats line {first}" for line, first in duplicates[:DUPLICATES_NAMED])
        more = ", ..." if len(duplicates) > DUPLICATES_NAMED else ""
        yield f"{len(duplicates)} exact duplicates: {named}{more}"


def lint_overlap(train: Path, validation: Path, format: AskedFormat = "auto") -> tuple[str, ...]:  # noqa: A002
    """Warn of validation examples that are also trained on: they make the validation loss too good.

    Lines that can't be used are passed over; `lint` names them.
    """
    trained = {digest for _, digest in _digests(train, format, "data.train")}
    lines = [line for line, digest in _digests(validation, format, "data.validation") if digest in trained]
    if not lines:
        return ()
    named = ", ".join(map(str, lines[:DUPLICATES_NAMED])) + (", ..." if len(lines) > DUPLICATES_NAMED else "")
    return (f"{len(lines)} validation examples are also training examples (validation lines {named})",)


def _digests(path: Path, format: AskedFormat, field: str) -> Iterator[tuple[int, bytes]]:  # noqa: A002
    for parsed in parse_examples(path, format, field):
        if not isinstance(parsed, Fault):
            yield parsed.line, content_digest(parsed)[:_KEPT_BYTES]
