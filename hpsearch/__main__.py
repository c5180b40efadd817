"""`python -m hpsearch` is `hpsearch`."""

from hpsearch.cli import app

app()
