"""The lines of a file, without ever holding more than one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import UnknownDataset

LONGEST_LINE = 2**20
"""Bytes. A longer line is no example but a mistake, such as a file without line breaks."""

_BEGINS_A_LIST = re.compile(rb"\s*\[\s*(\{|$)")
_LIST = "a JSON list, but each line is to hold one example: jq -c '.[]' FILE writes it so"
_OTHER_KINDS = (
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"\xfd7zXZ", "an xz file: unpack it first"),
    (b"PK\x03\x04", "a zip file: unpack it first"),
    (b"PAR1", "a parquet file: write its rows as JSON, one a line"),
    (b"\xff\xfe", "UTF-16, not UTF-8"),
    (b"\xfe\xff", "UTF-16, not UTF-8"),
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line can't be used."""

    line: int
    """From 1; 0 is the file as a whole."""
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


def together(faults: Iterable[tuple[int, str]]) -> list[str]:
    """Faults by line number and text as sentences; lines with the same fault share one."""
    lines: dict[str, list[int]] = {}
    for line, text in faults:
        lines.setdefault(text, []).append(line)
    return [_of_lines(numbers, text) for text, numbers in lines.items()]


def _of_lines(numbers: list[int], text: str) -> str:
    if numbers == [0]:
        return text
    if len(numbers) == 1:
        return f"line {numbers[0]}: {text}"
    in_a_row = len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1
    named = f"{numbers[0]} to {numbers[-1]}" if in_a_row else ", ".join(map(str, numbers))
    return f"lines {named}: {text}"


def numbered_lines(path: Path, field: str) -> Iterator[tuple[int, str | Fault]]:
    """Every line that is not blank, with its number from 1: its text, or why it has none.

    Raises:
        UnknownDataset: There is no such file, or it can't be read; `field` names it in the spec.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 2):
                number += 1
                if number == 1 and (whole := _whole_fault(raw)):
                    yield number, Fault(number, whole)
                    return
                if len(raw.rstrip(b"\r\n")) > LONGEST_LINE:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(LONGEST_LINE)
                    yield number, Fault(number, f"longer than {LONGEST_LINE:,} bytes")
                    continue
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                if raw.strip():
                    yield number, _decoded(raw, number)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UnknownDataset(f"the file {path} can't be read: {reason}", field) from None


def _whole_fault(beginning: bytes) -> str:
    """Why no line of a file can be used that begins so, or nothing."""
    for mark, kind in _OTHER_KINDS:
        if beginning.startswith(mark):
            return kind
    return _LIST if _BEGINS_A_LIST.match(beginning.removeprefix(_BYTE_ORDER_MARK)) else ""


def _decoded(raw: bytes, number: int) -> str | Fault:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(number, f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})")
