"""A few figures over all studies, cheap enough to be asked for every few seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpsearch.lifecycle import StudyState
from hpsearch.results import attributes
from hpsearch.storage.database import Database
from hpsearch.storage.rows import count_by_state
from hpsearch.storage.tables import events, studies, webhooks

# Optuna's tables, as far as they are read here.
TRIALS = sa.table("trials", sa.column("trial_id"), sa.column("state"))
ATTRIBUTES = sa.table("trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json"))


OPTUNA_STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
STUDY_ATTRIBUTES = sa.table("study_user_attributes", sa.column("study_id"), sa.column("key"), sa.column("value_json"))


@dataclass(frozen=True)
class Figures:
    """Of all studies that are stored."""

    studies: dict[str, float]
    trials: dict[str, float]
    failures: dict[str, float]
    cohorts: dict[str, float]
    """Trials that train on each device that has any."""
    tokens: float
    """Training tokens of trials that have ended."""
    device_seconds: float
    queue_age: float
    """Seconds that the study waits that waits longest; 0 when none does."""
    lease_ages: dict[str, float]
    """Seconds since the runner of each running study was heard."""
    set_aside: dict[str, float]
    """Devices that get no trials of a running study, because they fail what others train."""
    held: dict[str, float]
    """Trials that each running study has on devices or on their way to one."""
    shares: dict[str, float]
    """Trials that each running study may hold, as far as its runner knows."""
    webhooks: dict[str, float]
    """Attempts that have failed so far of what each webhook is to be told next; also of those that nobody tells now."""


def figures(database: Database) -> Figures:
    """Read them, in one snapshot but for the states of studies."""
    by_state = count_by_state(database)
    with database.read() as connection:
        now = database.now(connection)
        of_study = sa.and_(events.c.study == studies.c.name, events.c.kind.in_(("study.queued", "study.resumed")))
        queued_at = sa.select(sa.func.max(events.c.at)).where(of_study).scalar_subquery()
        waiting = sa.select(studies.c.created_at, studies.c.resumed_at, queued_at)
        queued = connection.execute(waiting.where(studies.c.state == StudyState.QUEUED)).all()
        oldest = min((max(at for at in times if at is not None) for times in queued), default=None)
        standing = (studies.c.name, studies.c.driven_at, studies.c.held, studies.c.share)
        driven = connection.execute(sa.select(*standing).where(studies.c.state == StudyState.RUNNING)).all()
        counted = sa.select(TRIALS.c.state, sa.func.count()).group_by(TRIALS.c.state)
        value = sa.cast(ATTRIBUTES.c.value_json, sa.Double)
        keys = (attributes.TOKENS, attributes.DEVICE_SECONDS)
        summed = sa.select(ATTRIBUTES.c.key, sa.func.sum(value)).where(ATTRIBUTES.c.key.in_(keys))
        sums = {key: float(total) for key, total in connection.execute(summed.group_by(ATTRIBUTES.c.key)).all()}
        failures = connection.execute(_named(attributes.FAILURE, "FAIL")).all()
        cohorts = connection.execute(_named(attributes.DEVICE, "RUNNING")).all()
        attempts = connection.execute(sa.select(webhooks.c.name, webhooks.c.attempts)).all()
        return Figures(
            studies={state: float(count) for state, count in by_state.items()},
            trials={str(state): float(count) for state, count in connection.execute(counted).all()},
            failures={str(json.loads(failure)): float(count) for failure, count in failures},
            cohorts={str(json.loads(device)): float(count) for device, count in cohorts},
            tokens=sums.get(attributes.TOKENS, 0.0),
            device_seconds=sums.get(attributes.DEVICE_SECONDS, 0.0),
            queue_age=0.0 if oldest is None else max(0.0, now - oldest),
            lease_ages={name: max(0.0, now - at) for name, at, _, _ in driven if at is not None},
            set_aside={name: float(len(aside)) for name, aside in _set_aside(connection, now).items()},
            held={name: float(held) for name, _, held, _ in driven},
            shares={name: float(share) for name, _, _, share in driven if share is not None},
            webhooks={name: float(count) for name, count in attempts},
        )


def _named(key: str, state: str) -> sa.Select[Any]:
    """The words that trials of one state have for an attribute, each with their number.

    Found by these trials, which are few: attributes are many, and Optuna's only index of them begins with the trial.
    """
    stands = sa.cast(TRIALS.c.state, sa.String) == state  # a type of its own in PostgreSQL
    of_trial = sa.and_(TRIALS.c.trial_id == ATTRIBUTES.c.trial_id, stands)
    query = sa.select(ATTRIBUTES.c.value_json, sa.func.count()).join(TRIALS, of_trial)
    return query.where(ATTRIBUTES.c.key == key).group_by(ATTRIBUTES.c.value_json)


def set_aside(database: Database, study: str) -> dict[str, dict[str, Any]]:
    """Devices that get no trials of a running study now, by name: `until` (seconds since the epoch) and `reason`."""
    with database.read() as connection:
        return _set_aside(connection, database.now(connection)).get(study, {})


def _set_aside(connection: sa.Connection, now: float) -> dict[str, dict[str, dict[str, Any]]]:
    """The same of all running studies, by name."""
    of_study = STUDY_ATTRIBUTES.c.study_id == OPTUNA_STUDIES.c.study_id
    runs = sa.and_(studies.c.name == OPTUNA_STUDIES.c.study_name, studies.c.state == StudyState.RUNNING)
    stored = sa.select(studies.c.name, STUDY_ATTRIBUTES.c.value_json).where(
        of_study, runs, STUDY_ATTRIBUTES.c.key == attributes.ASIDE
    )
    found = {}
    for name, text in connection.execute(stored).all():
        found[name] = {device: each for device, each in json.loads(text).items() if each["until"] > now}
    return found
