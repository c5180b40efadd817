"""Which trial next: Optuna behind ask, report, complete, prune and fail."""

from hpsearch.search.answers import Asked, Decision
from hpsearch.search.losses import Loss
from hpsearch.search.memory import Lineage
from hpsearch.search.search import Search

__all__ = ["Asked", "Decision", "Lineage", "Loss", "Search"]
