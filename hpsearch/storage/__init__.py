"""Where it is kept: specs, states, leases, events and datasets beside Optuna's trials, in one database."""

from hpsearch.storage.acting import Acting
from hpsearch.storage.acts import Acts
from hpsearch.storage.claims import Standing, claims
from hpsearch.storage.database import Database
from hpsearch.storage.datasets import DatasetRow, Datasets
from hpsearch.storage.endings import Endings
from hpsearch.storage.events import Event, events_after, last_event
from hpsearch.storage.line import place_in_line
from hpsearch.storage.optuna_storage import DATABASE_AWAY, fenced, optuna_storage
from hpsearch.storage.outbox import Delivery, Outbox
from hpsearch.storage.rows import Lease, Page, StudyRow, count_by_state
from hpsearch.storage.studies import Studies
from hpsearch.storage.takeovers import MOST_TAKEOVERS

__all__ = [
    "DATABASE_AWAY",
    "MOST_TAKEOVERS",
    "Acting",
    "Acts",
    "Database",
    "DatasetRow",
    "Datasets",
    "Delivery",
    "Endings",
    "Event",
    "Lease",
    "Outbox",
    "Page",
    "Standing",
    "Studies",
    "StudyRow",
    "claims",
    "count_by_state",
    "events_after",
    "fenced",
    "last_event",
    "optuna_storage",
    "place_in_line",
]
