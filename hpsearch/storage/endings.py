"""How people end studies: cancelling and deleting, which also change trials and files.

Trials are Optuna's, written over connections of its own. On SQLite these would wait in vain for a transaction of ours,
so an ending takes several. The first asks for it, and from then on no other act is legal; each one after it makes sure
that the study is still the one that was asked about, in the version of then. So whoever comes late, behind another
process that has done the same, or behind a runner that has claimed the study, writes nothing: not even when a new
study has the name by then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from hpsearch.errors import ChangedMeanwhile
from hpsearch.lifecycle import Act, StudyState
from hpsearch.storage.acting import Acting, Doing, act
from hpsearch.storage.database import Database
from hpsearch.storage.events import DELETED, append
from hpsearch.storage.optuna_storage import fenced
from hpsearch.storage.rows import StudyRow, get_study
from hpsearch.storage.tables import events, idempotency_keys, studies, wishes
from hpsearch.storage.tidy import put_aside, remove


class Endings:
    """Cancels and deletes studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cancel(
        self,
        name: str,
        acting: Acting,
        close_trials: Callable[[str], Collection[int]] = lambda _: (),
        weights: Path | None = None,
    ) -> StudyRow:
        """End the study: a driven one is left to its runner, another is ended here. Cancelling twice is once.

        What breaks off here is done by the next runner that looks for work, or when the study is cancelled again.

        Args:
            name: The study's.
            acting: Who cancels it.
            close_trials: Ends the trials that wait, given why; the answer is their numbers. They are closed before
                the study says that it is cancelled, for afterwards nobody would.
            weights: A folder that nobody needs then.
        """
        with act(self._database, name, Act.CANCEL, acting) as asked:
            if asked.is_new and StudyState.CANCELLED not in (asked.study.state, asked.study.requested):
                asked.ask("study.cancel_requested", StudyState.CANCELLED)
            begun = get_study(asked.connection, name)
        if begun.state == StudyState.RUNNING or StudyState.CANCELLED not in (begun.state, begun.requested):
            return begun
        text, aside = "the study was cancelled", None
        try:
            with fenced(lambda connection: _check_still(connection, begun)):
                closed = close_trials(text)
            with self._database.write() as connection:
                _check_still(connection, begun)
                now = self._database.now(connection)
                for number in closed:
                    details = {"number": number, "failure": "cancelled", "text": text}
                    append(connection, name, "trial.failed", now, details)
                if begun.state != StudyState.CANCELLED:
                    ending = Doing(connection, begun, StudyState.CANCELLED, acting.by, now)
                    ending.change("study.cancelled", {"requested": None}, reason="cancelled")
                aside = put_aside(weights) if weights else None
        except ChangedMeanwhile:  # a runner has claimed it and hears of it, or another process has done the same
            return self._as_it_is(begun)
        if aside is not None:
            remove(aside)
        return self._as_it_is(begun)

    def delete(
        self,
        name: str,
        acting: Acting,
        forget_trials: Callable[[], None] = lambda: None,
        weights: Path | None = None,
    ) -> None:
        """Forget a study that is over. All that stays is the event that says so.

        Keys don't count here: deleting twice is once, and what a key would let pass may be alive again. A deletion that
        broke off can be repeated, in the version that was seen before; no other act is legal then.

        Args:
            name: The study's.
            acting: Who deletes it.
            forget_trials: Deletes its trials.
            weights: The folder of what its trials have left.

        Raises:
            StudyNotFound: There is none, or another process has just deleted it.
        """
        with act(self._database, name, Act.DELETE, replace(acting, key=None)) as asked:
            begun = asked.study
            requested = studies.update().where(studies.c.name == name).values(requested=StudyState.CANCELLED)
            asked.connection.execute(requested)
        try:
            with fenced(lambda connection: _check_still(connection, begun)):
                forget_trials()
            with self._database.write() as connection:
                _check_still(connection, begun)
                connection.execute(studies.delete().where(studies.c.name == name))
                for table in (events, wishes, idempotency_keys):
                    connection.execute(table.delete().where(table.c.study == name))
                append(connection, name, DELETED, self._database.now(connection), {"by": acting.by})
                aside = put_aside(weights) if weights else None
        except ChangedMeanwhile:
            self._as_it_is(begun)
            raise
        if aside is not None:
            remove(aside)

    def _as_it_is(self, begun: StudyRow) -> StudyRow:
        """The study as it is now; StudyNotFound when it is gone, also when another has its name."""
        with self._database.read() as connection:
            row = get_study(connection, begun.name)
        row.check_is(begun)
        return row


def _check_still(connection: sa.Connection, begun: StudyRow) -> None:
    """Raise ChangedMeanwhile unless the study is in this version until the transaction has ended."""
    this = sa.and_(
        studies.c.name == begun.name, studies.c.created_at == begun.created_at, studies.c.version == begun.version
    )
    if connection.execute(sa.select(studies.c.name).where(this).with_for_update(read=True)).first() is None:
        raise ChangedMeanwhile(f"study '{begun.name}' was changed or deleted meanwhile")
