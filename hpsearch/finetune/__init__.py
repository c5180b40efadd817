"""What a trial does: it fine-tunes a causal language model and reports its validation loss.

It does not know that it is searched over. Importing it loads torch; how many threads torch may use is the
caller's business.
"""

from hpsearch.finetune.alone import Outcome, finetune
from hpsearch.finetune.cohort import Cohort, Event, Failed, Finished, as_failure
from hpsearch.finetune.member import Member
from hpsearch.finetune.order import report_exposures
from hpsearch.finetune.prepare import Prepared, prepare, prepared_key

__all__ = [
    "Cohort",
    "Event",
    "Failed",
    "Finished",
    "Member",
    "Outcome",
    "Prepared",
    "as_failure",
    "finetune",
    "prepare",
    "prepared_key",
    "report_exposures",
]
