"""What the routes share: one database, one Optuna storage, the settings and the tokens."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Annotated, Any

import optuna
from fastapi import Depends, Request

from hpsearch.errors import AdapterNotFound
from hpsearch.lifecycle import StudyState
from hpsearch.results import Ranking, Trial, rank
from hpsearch.search import history
from hpsearch.settings import Settings
from hpsearch.storage import Acting, Acts, Database, Datasets, Studies, StudyRow


@dataclass(frozen=True)
class Service:
    """The service behind the door."""

    settings: Settings
    database: Database
    studies: Studies
    acts: Acts
    datasets: Datasets
    optuna_storage: optuna.storages.BaseStorage

    def trials(self, study: str) -> list[Trial]:
        """All trials of a study that exists."""
        return history.trials(history.load(self.optuna_storage, study))

    def trial(self, study: str, number: int) -> Trial:
        """One trial; TrialNotFound without it."""
        return history.trial(history.load(self.optuna_storage, study), number)

    def ranking(self, study: StudyRow) -> Ranking:
        """The study's completed trials, best first."""
        searched = history.load(self.optuna_storage, study.name)
        trials, baseline = history.trials(searched), history.baseline(searched)
        return rank(study.name, study.state, study.spec.objective, baseline, trials)

    def adapter(self, study: str, number: int) -> str:
        """The folder of a trial's weights; AdapterNotFound without."""
        folder = self.settings.artifacts_folder / study / str(number)
        if self.trial(study, number).adapter is None or not folder.is_dir():
            raise AdapterNotFound(f"trial {number} of '{study}' has no saved weights: only completed trials keep them")
        return str(folder)

    def cancel(self, study: str, acting: Acting) -> StudyRow:
        """End a study; what nobody drives any more is closed at once."""
        row = self.acts.cancel(study, acting)
        if row.state == StudyState.CANCELLED:
            history.close_open(self.optuna_storage, study, "the study was cancelled")
        return row

    def delete(self, study: str, acting: Acting) -> None:
        """Forget a study that is over: our rows, Optuna's trials, the weights."""
        self.acts.check_deletable(study, acting)
        history.delete(self.optuna_storage, study)
        shutil.rmtree(self.settings.artifacts_folder / study, ignore_errors=True)
        self.acts.delete(study, acting)  # last, so that a deletion that breaks off can be repeated


def _service(request: Request) -> Any:
    return request.app.state.service


Door = Annotated[Service, Depends(_service)]
"""A route's parameter: the service."""
