"""What is learned from: examples read from JSON lines, checked, split and fingerprinted. No torch."""

from hpsearch.dataset.fingerprint import fingerprint
from hpsearch.dataset.formats import ChatExample, Example, Message, TextExample, read_examples
from hpsearch.dataset.lint import LintReport, lint, lint_overlap
from hpsearch.dataset.load import Split, load
from hpsearch.dataset.split import split

__all__ = [
    "ChatExample",
    "Example",
    "LintReport",
    "Message",
    "Split",
    "TextExample",
    "fingerprint",
    "lint",
    "lint_overlap",
    "load",
    "read_examples",
    "split",
]
