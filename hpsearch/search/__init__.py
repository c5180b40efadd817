"""Which trial next: Optuna behind ask, report, complete, prune and fail."""

from hpsearch.search.answers import Asked, Decision
from hpsearch.search.confirmation import Confirmation
from hpsearch.search.losses import Loss
from hpsearch.search.memory import Lineage
from hpsearch.search.search import Search

__all__ = ["Asked", "Confirmation", "Decision", "Lineage", "Loss", "Search"]
