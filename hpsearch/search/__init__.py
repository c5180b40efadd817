"""Which trial next: Optuna behind ask, report, complete, prune and fail."""

from hpsearch.search.memory import Lineage
from hpsearch.search.search import Asked, Decision, Search

__all__ = ["Asked", "Decision", "Lineage", "Search"]
