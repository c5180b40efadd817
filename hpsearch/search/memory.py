"""What earlier studies know: a trial that was trained before is not trained again, and others' trials teach.

A study's lineage says what its trials learned from. It is kept on the Optuna study, so looking for relatives reads
each study once and no spec.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from hpsearch import __version__
from hpsearch.results import Report
from hpsearch.search.draw import Points
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.points import key
from hpsearch.spec.space import Params
from hpsearch.spec.warm_start import WarmStartSpec

LINEAGE = "lineage"
"""Study attribute: a `Lineage`."""
BORROWED = "borrowed"
"""Study attribute: the `Lent` trials that teach it. Emptied, they teach no more."""
MOST_LENT = 200


@dataclass(frozen=True)
class Lineage:
    """What a study's trials learned from."""

    family: str
    """`model_type` of the base model."""
    method: str
    """`lora` or `full`."""
    train: str
    """Fingerprint of the training examples."""
    validation: str
    """Fingerprint of the validation examples."""


@dataclass(frozen=True)
class Remembered:
    """A completed trial of another study."""

    study: str
    trial: FrozenTrial
    config: FinetuneConfig
    """Everything its fine-tune was given."""

    @property
    def value(self) -> float:
        """The objective at its best report."""
        assert self.trial.value is not None  # it is complete
        return self.trial.value

    @property
    def contract(self) -> str:
        """The hash of what was evaluated how."""
        return str(self.trial.user_attrs["evaluation_contract"])

    @property
    def weights(self) -> Path:
        """The folder of its best weights; they may have been deleted."""
        return Path(self.trial.user_attrs["adapter"])

    @property
    def ended_at(self) -> dt.datetime:
        """When it completed, in Optuna's time."""
        assert self.trial.datetime_complete is not None
        return self.trial.datetime_complete

    @property
    def source(self) -> dict[str, str | int]:
        """As it is kept on what was made of it."""
        return {"study": self.study, "number": self.trial.number}

    def record(self, params: Params, metric: str) -> dict[str, Any]:
        """What a study keeps that borrows it; see `Memory.borrow`."""
        reports = self.trial.user_attrs["curve"]
        return {
            **self.source,
            "params": params,
            "value": self.value,
            "evaluation_contract": self.contract,
            "epochs": self.config.hyperparameters.epochs,
            "curve": [[report["exposure"], report["epoch"], report[metric]] for report in reports],
        }


class Memory:
    """The other studies in the database.

    Args:
        storage: Where Optuna keeps all studies.
        name: The study that remembers.
        lineage: Its lineage.
        direction: Of its objective.
        metric: Of its objective.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        lineage: Lineage,
        direction: str,
        metric: str,
    ) -> None:
        self._storage, self._name, self._lineage = storage, name, lineage
        self._direction, self._metric = direction, metric
        self._terms = asdict(lineage)
        self._by_identity: dict[str, Remembered] | None = None
        self._recalled: dict[int, Remembered] = {}

    def borrow(self, study: optuna.Study, asked: WarmStartSpec | None, points: Points) -> list[dict[str, Any]]:
        """Keep on a study what it learns from, and what is lent to it; the answer is this, best first.

        Each is `{"study", "number", "params", "value", "evaluation_contract", "epochs", "curve"}`. The params are those
        that make the same trial here; the curve is `[exposure, epoch, value]` of each report.
        """
        study.set_user_attr(LINEAGE, self._terms)
        if asked is None:
            return []
        records = self._lent(asked, points)
        study.set_user_attr(BORROWED, records)
        return records

    def recalls(self, trial: optuna.Trial, contract: str) -> bool:
        """Whether an earlier study has trained the very same trial, which has not been trained here."""
        attributes = trial.user_attrs
        if attributes.get("curve") and "reused_from" not in attributes:
            return False
        found = self._identical(FinetuneConfig.model_validate(attributes["config"]), contract)
        if found is not None:
            self._recalled[trial.number] = found
        return found is not None

    def take_over(self, trial: optuna.Trial, adapter: Path) -> tuple[Report, str]:
        """Give a trial the curve of the one that was recalled, and its weights; the answer is its best report, and
        the contract under which it is the best."""
        found = self._recalled.pop(trial.number)
        _lend_weights(found, adapter)
        trial.set_user_attr("reused_from", found.source)
        curve = [Report(**report) for report in found.trial.user_attrs["curve"]]
        for report in curve:  # so that later trials are compared with it
            trial.report(float(getattr(report, self._metric)), step=report.exposure)
            trial.should_prune()
        trial.set_user_attr("curve", [report.as_json() for report in curve])
        # Not the equal one: what a continued trial repeated may differ in its last digits from its curve.
        best = min(curve[1:], key=lambda report: abs(float(getattr(report, self._metric)) - found.value))
        return best, found.contract

    def _identical(self, config: FinetuneConfig, contract: str) -> Remembered | None:
        """A trial that was the same in everything that decides its curve and its value, and whose weights are there.

        The others are looked through once, at the first question: what ends later in a study beside this one is missed.
        """
        if self._by_identity is None:
            same_data = self._completed(lambda other: other.train == self._lineage.train)
            self._by_identity = {self._identity(found.config, found.contract): found for found in same_data}
        found = self._by_identity.get(self._identity(config, contract))
        return found if found is not None and found.weights.is_dir() else None

    def _identity(self, config: FinetuneConfig, contract: str) -> str:
        """SHA-256 of all that decides a trial's curve and value: equal identities, equal trials."""
        terms = [config.curve_terms(), contract, self._metric, self._lineage.train, __version__]
        return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()

    def _lent(self, asked: WarmStartSpec, points: Points) -> list[dict[str, Any]]:
        """The newest completed trials of earlier studies that lie in this study's space, each point once.

        A trial lies in it when this study could have drawn it: its ten parameters are what its params here come to.
        """
        similar = asked.studies == "similar"
        found = self._completed(
            lambda other: other == self._lineage if similar else other.method == self._lineage.method,
            None if similar else frozenset(asked.studies),
        )
        whole = [one for one in found if not one.config.earlier]  # else the value is not what the params come to
        placed = [(one, points.params_of(one.config.hyperparameters.model_dump())) for one in whole]
        lying_here = sorted(
            ((one, params) for one, params in placed if params is not None), key=lambda pair: pair[0].ended_at
        )
        newest = list({(key(params), one.contract): (one, params) for one, params in lying_here}.values())[-MOST_LENT:]
        sign = 1.0 if self._direction == "minimize" else -1.0
        newest.sort(key=lambda pair: (sign * pair[0].value, pair[0].study, pair[0].trial.number))
        return [one.record(params, self._metric) for one, params in newest]

    def _completed(
        self, is_relative: Callable[[Lineage], bool], names: frozenset[str] | None = None
    ) -> Iterator[Remembered]:
        wanted = StudyDirection.MINIMIZE if self._direction == "minimize" else StudyDirection.MAXIMIZE
        for study in self._storage.get_all_studies():
            known = study.user_attrs.get(LINEAGE, {})
            if (
                known.keys() != self._terms.keys()
                or study.study_name == self._name
                or (names is not None and study.study_name not in names)
            ):
                continue
            spec = study.user_attrs.get("spec") or {}
            same_objective = study.direction == wanted and spec.get("objective", {}).get("metric") == self._metric
            if same_objective and is_relative(Lineage(**known)):
                complete = (TrialState.COMPLETE,)
                for trial in self._storage.get_all_trials(study._study_id, deepcopy=False, states=complete):
                    if trial.user_attrs.get("cut_short"):
                        continue
                    with contextlib.suppress(ValidationError):  # a version of other fields trained otherwise
                        config = FinetuneConfig.model_validate(trial.user_attrs.get("config"))
                        yield Remembered(study.study_name, trial, config)


def lessons(study: optuna.Study, points: Points) -> list[FrozenTrial]:
    """What a study has borrowed, as samplers see it: nothing once it was removed."""
    return [
        optuna.trial.create_trial(
            params=record["params"],
            distributions={name: points.distributions[name] for name in record["params"]},
            value=record["value"],
            intermediate_values={exposure: value for exposure, _, value in record["curve"]},
            user_attrs={
                "evaluation_contract": record["evaluation_contract"],
                "config": {"hyperparameters": {**_not_drawn(points, record["params"]), "epochs": record["epochs"]}},
                "curve": [{"exposure": exposure, "epoch": epoch} for exposure, epoch, _ in record["curve"]],
            },
        )
        for record in study.user_attrs.get(BORROWED, [])
    ]


def _not_drawn(points: Points, params: Params) -> dict[str, float | None]:
    """What decides a trial's work beside its params, where that is not the same for all."""
    if points.projection is None:
        return {}
    trained = points.projection(params)
    return {"batch_size": trained.batch_size, "learning_rate_multiplier": trained.learning_rate_multiplier}


def _lend_weights(remembered: Remembered, folder: Path) -> None:
    """The trial's weights at another place too: links to the same files where the disk has them, else copies."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(remembered.weights, folder, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
