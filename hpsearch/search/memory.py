"""What earlier studies know: a trial that was trained before is not trained again, and others' trials teach.

A study's lineage says what its trials learned from. It is kept on the Optuna study, so looking for relatives reads
each study once and no spec.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch import __version__
from hpsearch.search.draw import Points
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.space import Value
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

    def as_json(self) -> dict[str, str]:
        """All fields, by name."""
        return asdict(self)


@dataclass(frozen=True)
class Remembered:
    """A completed trial of another study."""

    study: str
    trial: FrozenTrial

    @property
    def value(self) -> float:
        """The objective at its best report."""
        assert self.trial.value is not None  # it is complete
        return self.trial.value

    @property
    def config(self) -> FinetuneConfig:
        """Everything its fine-tune was given."""
        return FinetuneConfig.model_validate(self.trial.user_attrs["config"])

    @property
    def hyperparameters(self) -> dict[str, Value]:
        """Its ten parameters."""
        chosen: dict[str, Value] = self.trial.user_attrs["config"]["hyperparameters"]
        return chosen

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
        self._storage, self._name, self.lineage = storage, name, lineage
        self._direction, self._metric = direction, metric
        self._by_identity: dict[str, Remembered] | None = None

    def identical(self, config: FinetuneConfig, contract: str) -> Remembered | None:
        """A trial that was the same in everything that decides its curve and its value, and whose weights are there.

        The others are looked through once, at the first question: what ends later in a study beside this one is missed.
        """
        if self._by_identity is None:
            same_data = self._completed(lambda other: other.train == self.lineage.train)
            self._by_identity = {self._identity(found.config, found.contract): found for found in same_data}
        found = self._by_identity.get(self._identity(config, contract))
        return found if found is not None and found.weights.is_dir() else None

    def _identity(self, config: FinetuneConfig, contract: str) -> str:
        """SHA-256 of all that decides a trial's curve and value: equal identities, equal trials."""
        terms = [config.curve_terms(), contract, self._metric, self.lineage.train, __version__]
        return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()

    def lent(self, asked: WarmStartSpec, points: Points) -> list[dict[str, Any]]:
        """The newest trials that earlier studies lend, which lie in this study's space, best first.

        Each is `{"study", "number", "params", "value", "evaluation_contract"}`; the params are those that make the
        same trial here.

        A trial lies in it when this study could have drawn it: its ten parameters are what its params here come to.
        """
        similar = asked.studies == "similar"
        found = self._completed(
            lambda other: other == self.lineage if similar else other.method == self.lineage.method,
            None if similar else frozenset(asked.studies),
        )
        placed = [(one, points.params_of(one.hyperparameters)) for one in found]
        lying_here = [(one, params) for one, params in placed if params is not None]
        newest = sorted(lying_here, key=lambda pair: pair[0].ended_at)[-MOST_LENT:]
        sign = 1.0 if self._direction == "minimize" else -1.0
        newest.sort(key=lambda pair: (sign * pair[0].value, pair[0].study, pair[0].trial.number))
        return [
            {**one.source, "params": params, "value": one.value, "evaluation_contract": one.contract}
            for one, params in newest
        ]

    def _completed(
        self, is_relative: Callable[[Lineage], bool], names: frozenset[str] | None = None
    ) -> Iterator[Remembered]:
        wanted = StudyDirection.MINIMIZE if self._direction == "minimize" else StudyDirection.MAXIMIZE
        for study in self._storage.get_all_studies():
            known = study.user_attrs.get(LINEAGE)
            if known is None or study.study_name == self._name or (names is not None and study.study_name not in names):
                continue
            spec = study.user_attrs.get("spec") or {}
            same_objective = study.direction == wanted and spec.get("objective", {}).get("metric") == self._metric
            if same_objective and is_relative(Lineage(**known)):
                for trial in self._storage.get_all_trials(
                    study._study_id, deepcopy=False, states=(TrialState.COMPLETE,)
                ):
                    if "config" in trial.user_attrs:
                        yield Remembered(study.study_name, trial)


def as_lessons(records: Iterable[dict[str, Any]], spaces: dict[str, BaseDistribution]) -> list[FrozenTrial]:
    """Lent trials as a sampler sees them."""
    return [
        optuna.trial.create_trial(
            params=record["params"],
            distributions={name: spaces[name] for name in record["params"]},
            value=record["value"],
            user_attrs={"evaluation_contract": record["evaluation_contract"]},
        )
        for record in records
    ]


def lend_weights(remembered: Remembered, folder: Path) -> None:
    """The trial's weights at another place too: links to the same files where the disk has them, else copies."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(remembered.weights, folder, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
