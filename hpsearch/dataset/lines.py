"""The lines of a file, without ever holding more than one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import UnknownDataset

LONGEST_LINE = 2**20
"""Bytes. A longer line is no example but a mistake, such as a file without line breaks."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line can't be used."""

    line: int
    """From 1; 0 is the file as a whole."""
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


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


def _decoded(raw: bytes, number: int) -> str | Fault:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(number, f"not UTF-8 (byte {error.start + 1} is 0x{raw[error.start]:02x})")
