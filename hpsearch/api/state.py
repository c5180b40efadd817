"""What the routes share: one database, one Optuna storage, the settings and the tokens."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import optuna
import sqlalchemy as sa
from fastapi import Depends, Request

from hpsearch.api.preflight import Preflight
from hpsearch.errors import AdapterNotFound, IllegalMove, StudyUnreadable, TrialFinished
from hpsearch.lifecycle import StudyState
from hpsearch.results import Ranking, Trial, TrialState, rank
from hpsearch.results.budget import Limit, forgiven, left, limit_spent
from hpsearch.results.trial import gone_on
from hpsearch.search import history
from hpsearch.search.memory import BORROWED
from hpsearch.settings import Settings
from hpsearch.spec.cost import Rate
from hpsearch.spec.data import DataSpec
from hpsearch.spec.finetune import ModelSpec
from hpsearch.spec.study import StudySpec
from hpsearch.storage import (
    DATABASE_AWAY,
    Acting,
    Acts,
    Database,
    Datasets,
    Endings,
    Studies,
    StudyRow,
    fenced,
    last_event,
)
from hpsearch.storage.events import last_events

log = logging.getLogger(__name__)

OUTLINED_STUDIES = 16
LOCKS = 64
"""So many rankings are read at once; two studies may share a lock."""

RATED_STUDIES = 100
"""The newest ones, which tell how fast a base model trains."""


class Outlines:
    """The rankings of the studies that were looked at last, each as long as nothing happens to its study.

    Whatever changes a study or its trials is followed by an event, so the number of the last one says whether a
    ranking is still true.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in range(LOCKS)]
        self._kept: OrderedDict[str, tuple[int, Ranking]] = OrderedDict()

    def get(self, study: str, last: int, read: Callable[[], Ranking]) -> Ranking:
        """The ranking as of the event `last`, read if need be: by one request at a time, while others wait for it."""
        with self._reading[hash(study) % LOCKS]:
            known = self._kept.get(study)
            if known is None or known[0] != last:
                known = (last, read())
            with self._lock:
                self._kept[study] = known
                self._kept.move_to_end(study)
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            return known[1]


@dataclass(frozen=True)
class Service:
    """The service behind the door."""

    settings: Settings
    database: Database
    studies: Studies
    acts: Acts
    endings: Endings
    datasets: Datasets
    optuna_storage: optuna.storages.BaseStorage
    webhooks: Collection[str] = ()
    """The names of those that this process tells."""
    outlines: Outlines = field(default_factory=lambda: Outlines(OUTLINED_STUDIES))

    def checked(self, spec: StudySpec, *, keep: bool = True, origins: DataSpec | None = None) -> Preflight:
        """A spec after all checks; see `Preflight`."""
        return Preflight(
            spec,
            self.settings,
            self.datasets,
            webhooks=self.webhooks,
            keep=keep,
            origins=origins,
            check_name=self.studies.check_name if keep else None,
        )

    def page(self, study: str, limit: int, after: int | None, state: TrialState | None) -> tuple[list[Trial], bool]:
        """Some trials of a study that exists, by number, and whether there are more."""
        return history.page(history.load(self.optuna_storage, study), limit, after, state)

    def trial(self, study: str, number: int) -> Trial:
        """One trial; TrialNotFound without it."""
        return history.trial(history.load(self.optuna_storage, study), number)

    def fault_of_stopping(self, study: str, number: int) -> TrialFinished | None:
        """Why a trial can't be stopped; TrialNotFound when there is none."""
        state = self.trial(study, number).state
        return TrialFinished(f"trial {number} of '{study}' has ended already: {state}") if state.is_finished else None

    def fault_of_continuing(self, study: str, number: int) -> IllegalMove | None:
        """Why a trial can't be continued; TrialNotFound when there is none."""
        state = self.trial(study, number).state
        if state != TrialState.PRUNED:
            return IllegalMove(f"trial {number} of '{study}' is {state}: only PRUNED ones can be continued")
        other = gone_on(history.trials(history.load(self.optuna_storage, study), curves=False)).get(number)
        if other is not None:
            return IllegalMove(f"trial {number} of '{study}' goes on already, as trial {other}")
        return None

    def spent(self, name: str, *, resumes: bool = False) -> Limit | None:
        """The limit of a study's budget that leaves no room for a trial of one's own, or for any of a failed study."""
        study = self.studies.get(name)
        budget = study.spec.budget
        is_timed = (budget.wall_clock, budget.gpu_hours, budget.tokens) != (None, None, None)
        if not (study.state == StudyState.FAILED if resumes else is_timed):
            return None  # reading thousands of curves takes time
        searched = history.load(self.optuna_storage, name)
        trials = history.trials(searched)
        lost = history.forgiven(searched) | forgiven(trials, math.inf, most_failures=budget.failures)
        if resumes and left(budget, trials, lost) == 0:
            return Limit("trials", f"all {budget.trials} trials of the budget were used")
        return limit_spent(budget, trials, study.driven_seconds)

    def ranking(self, study: StudyRow) -> Ranking:
        """The study's completed trials, best first."""
        last = last_event(self.database, study.name)

        def read() -> Ranking:
            searched = history.load(self.optuna_storage, study.name)
            trials, baseline = history.trials(searched, curves=False), history.baseline(searched)
            ranked = rank(study.name, study.state, study.spec.objective, baseline, trials)
            return ranked.judged(history.verdict(searched))

        return replace(self.outlines.get(study.name, last, read), state=study.state)

    def confirmation(self, study: str) -> dict[str, int] | None:
        """The trainings that confirm a study's best, by state; None before any was lined up."""
        beside = history.load(self.optuna_storage, history.confirmation_of(study))
        return dict(Counter(str(trial.state) for trial in history.trials(beside, curves=False))) or None

    def rate(self, model: ModelSpec) -> Rate | None:
        """How fast the last trials that completed on this base model were trained; None without any."""
        alike = [row.name for row in self.studies.page(RATED_STUDIES).rows if _trains(row, model)]
        found = [event for event in last_events(self.database, alike, "trial.completed") if "tokens" in event.details]
        tokens, seconds = (sum(event.details[figure] for event in found) for figure in ("tokens", "device_seconds"))
        return Rate(found[-1].study, len(found), tokens / seconds) if tokens and seconds else None

    def read_ahead(self) -> None:
        """Read the trials of running studies before somebody looks at them: ten thousand take many seconds."""
        try:
            for row in self.studies.page(OUTLINED_STUDIES, state=StudyState.RUNNING).rows:
                with contextlib.suppress(StudyUnreadable):  # whoever looks at it is told
                    self.ranking(row)
        except DATABASE_AWAY:
            log.warning("not read ahead: the database is away", exc_info=True)

    def adapter(self, study: str, number: int) -> str:
        """The folder of a trial's weights; AdapterNotFound without."""
        folder = self.settings.artifacts_folder / study / str(number)
        if self.trial(study, number).adapter is None or not folder.is_dir():
            raise AdapterNotFound(f"trial {number} of '{study}' has no saved weights: only completed trials keep them")
        return str(folder)

    def cancel(self, study: str, acting: Acting) -> StudyRow:
        """End a study; what nobody drives any more is closed at once."""

        def close_trials(text: str) -> list[int]:
            return history.close_open(self.optuna_storage, study, text)

        return self.endings.cancel(study, acting, close_trials, self.settings.confirmation_folder(study))

    def forget_borrowed(self, study: str, acting: Acting) -> None:
        """Take away what earlier studies lent it, in one transaction with the event that says so."""
        row = self.studies.get(study)
        searched = history.load(self.optuna_storage, study)
        if searched is None or not (lent := searched.user_attrs.get(BORROWED)):
            return self.acts.forget_borrowed(row, 0, acting)

        def say_so(connection: sa.Connection) -> None:
            self.acts.forget_borrowed(row, len(lent), acting, within=connection)

        with fenced(say_so):
            searched.set_user_attr(BORROWED, [])

    def delete(self, study: str, acting: Acting) -> None:
        """Forget a study that is over: our rows, Optuna's trials, the weights."""

        def forget_trials() -> None:
            history.delete(self.optuna_storage, study)

        self.endings.delete(study, acting, forget_trials, self.settings.artifacts_folder / study)


def _trains(study: StudyRow, model: ModelSpec) -> bool:
    with contextlib.suppress(StudyUnreadable):
        return (study.spec.model.base, study.spec.model.method) == (model.base, model.method)
    return False


def _service(request: Request) -> Any:
    return request.app.state.service


Door = Annotated[Service, Depends(_service)]
"""A route's parameter: the service."""
