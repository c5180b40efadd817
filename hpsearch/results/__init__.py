"""What came out: pure functions over trials."""

from hpsearch.results.ranking import Ranking, rank
from hpsearch.results.trial import Failure, Report, Trial, TrialState

__all__ = ["Failure", "Ranking", "Report", "Trial", "TrialState", "rank"]
