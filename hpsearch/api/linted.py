"""What checks of data files have found, by content: what is checked again, with the same model, is not read again.

A hundred thousand examples take most of a minute. A study is often checked before it is submitted, and submitted again
every night.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from hpsearch.dataset.lint import LintReport

MOST = 6
"""Reports that are kept; one of a hundred thousand examples takes 15 MB."""


class Linted:
    """Safe to use from any thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._reports: OrderedDict[tuple[object, ...], LintReport] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        path: Path,
        terms: tuple[object, ...],
        read: Callable[[], LintReport],
        is_final: Callable[[LintReport], bool] = lambda _: True,
    ) -> LintReport:
        """The report on a file as it is now.

        Args:
            path: Of the file.
            terms: What else decides its report.
            read: Makes it.
            is_final: Whether it would be the same again; others are not kept.

        Raises:
            OSError: The file can't be read.
        """
        with path.open("rb") as content:
            key = (hashlib.file_digest(content, "sha256").hexdigest(), *terms)
        with self._lock:
            known = self._reports.get(key)
        report = known or read()
        if not is_final(report):
            return report
        with self._lock:
            self._reports[key] = report
            self._reports.move_to_end(key)
            while len(self._reports) > self._most:
                self._reports.popitem(last=False)
        return report


LINTED = Linted()
"""Of this process."""
