"""The command line: `hpsearch serve | submit | watch | rank | ...`."""

from hpsearch.cli.app import app

__all__ = ["app"]
