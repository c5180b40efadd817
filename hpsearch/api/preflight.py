"""Everything that can be checked before a study is queued is checked here; nothing is left behind."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from hpsearch.basemodel import BaseModel, describe
from hpsearch.dataset.lint import LintReport, lint, lint_overlap
from hpsearch.dataset.load import load
from hpsearch.errors import InvalidDataset, InvalidSpec, TooFewExamples, UnknownDataset, UnknownModel
from hpsearch.settings import Settings
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.defaults import default_hyperparameters
from hpsearch.spec.space import IntChoices, IntRange
from hpsearch.spec.study import StudySpec
from hpsearch.storage import Datasets

DATASET_PREFIX = "dataset:"


class Preflight:
    """The checks of one spec. After them the spec's paths are absolute and everything it names exists."""

    def __init__(self, spec: StudySpec, settings: Settings, datasets: Datasets) -> None:
        """Run all checks.

        Raises:
            InvalidInput: The first thing that is wrong, with its field, its line and what to do.
        """
        self._settings, self._datasets = settings, datasets
        self.spec = self._located(spec)
        self.fingerprint = self.spec.fingerprint()
        """Of what was asked, before a hub model's branch became a commit: asking again is the same study."""
        self.model: BaseModel = describe(self.spec.model.base, self.spec.model.revision)
        self._pin_revision()
        self._check_against_model()
        self.warnings = [*self._lint(self.spec.data.train, "train")]
        if self.spec.data.validation is not None:
            self.warnings += self._lint(self.spec.data.validation, "validation")
            paths = Path(self.spec.data.train), Path(self.spec.data.validation)
            self.warnings += lint_overlap(*paths, self.spec.data.format)
        split = load(self.spec.data)
        self.examples = {"train": len(split.train), "validation": len(split.validation)}
        self.defaults = default_hyperparameters(len(split.train), self.spec.model.method)

    def _located(self, spec: StudySpec) -> StudySpec:
        """The spec with absolute paths; hub ids stay."""
        base = self._settings.locate(spec.model.base, "model.base")
        looks_like_path = spec.model.base.startswith(("/", "./", "../")) or spec.model.base.count("/") > 1
        if base is None and looks_like_path:
            roots = ", ".join(str(root) for root in self._settings.roots)
            raise UnknownModel(
                f"there is no folder '{spec.model.base}' below the allowed roots ({roots})", "model.base"
            )
        changes: dict[str, dict[str, str | None]] = {
            "data": {
                "train": self._data_path(spec.data.train, "data.train"),
                "validation": self._data_path(spec.data.validation, "data.validation"),
            },
            "model": {"base": str(base) if base else spec.model.base},
        }
        return _changed(spec, changes)

    def _pin_revision(self) -> None:
        """A hub model's branch moves: every trial of the study gets the commit that it names now."""
        if not Path(self.model.path).is_absolute():
            self.spec = _changed(self.spec, {"model": {"revision": self.model.fingerprint}})

    def _data_path(self, named: str | None, field: str) -> str | None:
        if named is None:
            return None
        if named.startswith(DATASET_PREFIX):
            return str(self._datasets.path(self._datasets.get(named.removeprefix(DATASET_PREFIX)).id))
        path = self._settings.locate(named, field)
        if path is None or not path.is_file():
            raise UnknownDataset(
                f"{field}: there is no file '{named}' below the allowed roots; upload it with POST /v1/datasets "
                "(`hpsearch submit` does so for files beside the spec)",
                field,
            )
        return str(path)

    def _lint(self, path: str, role: str) -> list[str]:
        field = f"data.{role}"
        report = lint(Path(path), self.spec.data.format, "train" if role == "train" else "validation")
        refuse(report, field)
        return [f"{field}: {warning}" for warning in report.warnings]

    def _check_against_model(self) -> None:
        frozen = self.spec.search_space.frozen_layers
        most = (
            frozen.high
            if isinstance(frozen, IntRange)
            else max(frozen.choices)
            if isinstance(frozen, IntChoices)
            else frozen
        )
        if most != "auto" and most >= self.model.layers:
            raise InvalidSpec(
                f"search_space.frozen_layers goes up to {most}, but the model has {self.model.layers} layers "
                "and at least one must be trained",
                "search_space.frozen_layers",
            )


def _changed(spec: StudySpec, changes: dict[str, dict[str, str | None]]) -> StudySpec:
    """The spec with some values replaced, checked again: two names may turn out to be one file."""
    values = spec.model_dump()
    for part, replaced in changes.items():
        values[part] |= replaced
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        raise as_invalid_spec(error) from error


def refuse(report: LintReport, field: str) -> None:
    """Raise what a lint report found."""
    if report.is_usable:
        return
    line, _ = report.faults[0]
    text = "; ".join(f"line {line}: {text}" if line else text for line, text in report.faults)
    if line == 0:
        raise TooFewExamples(f"{field}: {text}", field)
    raise InvalidDataset(f"{field}: {text}", field, line)
