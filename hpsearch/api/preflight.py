"""Everything that can be checked before a study is queued is checked here; nothing is left behind."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpsearch.api.fits import check_against_model, check_tokenizer, tokenizer_version
from hpsearch.api.linted import LINTED
from hpsearch.api.webhooks import check_known
from hpsearch.basemodel import BaseModel, describe, token_counter
from hpsearch.dataset.hub import Fetched, fetch
from hpsearch.dataset.lines import together
from hpsearch.dataset.lint import LintReport, lint, lint_overlap
from hpsearch.dataset.load import ALL_THE_SAME
from hpsearch.dataset.split import held_back
from hpsearch.errors import (
    HubUnavailable,
    InvalidDataset,
    InvalidSpec,
    TooFewExamples,
    UnknownDataset,
    UnknownModel,
)
from hpsearch.settings import Settings
from hpsearch.spec import population
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.data import HUB_PREFIX, DataSpec, HubDataset, SplitRole
from hpsearch.spec.defaults import base_learning_rate, default_hyperparameters
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.reach import check_reach
from hpsearch.spec.study import StudySpec
from hpsearch.storage import Datasets

DATASET_PREFIX = "dataset:"
NOT_TESTED = (
    "data.test: it is read when the best trials are confirmed, and `confirm` is not in the spec; add it, or ask for it "
    "afterwards (`hpsearch confirm`)"
)


class Preflight:
    """The checks of one spec. After them the spec's paths are absolute and everything it names exists."""

    def __init__(
        self,
        spec: StudySpec,
        settings: Settings,
        datasets: Datasets,
        *,
        webhooks: Collection[str] = (),
        keep: bool = True,
        origins: DataSpec | None = None,
        check_name: Callable[[str, str], None] | None = None,
    ) -> None:
        """Run all checks.

        Args:
            spec: As it was sent.
            settings: Where to look, and the limits.
            datasets: The uploads.
            webhooks: The names of those that are told.
            keep: Whether what is downloaded from the hub is kept like an upload, for the study to read. Without, the
                spec names it on the hub at its commit.
            check_name: Given the name and the fingerprint of what is asked, raises where another study has the name. It
                is asked before anything is downloaded.
            origins: Data of a stored study: a file that is named there too has its origin.

        Raises:
            InvalidInput: The first thing that is wrong, with its field, its line and what to do.
        """
        self._settings, self._datasets = settings, datasets
        check_known(spec, webhooks)
        self.spec = self._located(spec, origins)
        self.fingerprint = self.spec.fingerprint()
        """Of what was asked, before a hub model's branch became a commit: asking again is the same study."""
        if check_name is not None:
            check_name(spec.name, self.fingerprint)
        try:
            self.model: BaseModel = describe(self.spec.model.base, self.spec.model.revision, settings.roots)
        except HubUnavailable as error:  # a folder that isn't there looks like a hub id: no study is queued on a guess
            raise UnknownModel(error.detail, error.field) from error
        self._pin_revision()
        check_against_model(self.spec, self.model)
        with self._fetched_from_hub(keep):
            self._check_data()

    def _check_data(self) -> None:
        self.warnings: list[str] = []
        self.reports: dict[SplitRole, LintReport] = {}
        self._count_tokens = token_counter(self.model)
        check_tokenizer(self.model, self._count_tokens)
        train = self._lint(self.spec.data.train, "train")
        if self.spec.data.validation is None:
            held = sum(held_back(train.sketches, self.spec.data.validation_fraction))
            if not held:
                raise InvalidDataset(ALL_THE_SAME, "data.train")
            self.examples = {"train": train.examples - held, "validation": held}
        else:
            validation = self._lint(self.spec.data.validation, "validation")
            self.examples = {"train": train.examples, "validation": validation.examples}
        if self.spec.data.test is not None:
            self.examples["test"] = self._lint(self.spec.data.test, "test").examples
            if self.spec.confirm is None:
                self.warnings.append(NOT_TESTED)
        self.warnings += lint_overlap(self.reports)
        self.defaults = default_hyperparameters(self.examples["train"], self.spec.model.method)
        self._check_population()
        self.warnings += check_reach(self.spec, self.examples["train"])

    def _check_population(self) -> None:
        """Refuse a population that would never exchange weights, where `auto` epochs make that a matter of the data."""
        pruner, space = self.spec.pruner, self.spec.search_space
        if not isinstance(pruner, PopulationSpec) or space.epochs != "auto":
            return
        reports = self.spec.objective.reports_per_epoch
        fault = population.fault_of_exchanges(pruner, space, self.defaults.epochs, reports)
        if fault is not None:
            raise InvalidSpec(fault, "pruner.interval")

    @property
    def tokens(self) -> int | None:
        """That one pass over the training examples reads, about; None where they can't be counted."""
        train = self.reports["train"]
        return None if train.tokens is None else round(train.tokens * self.examples["train"] / train.examples)

    @property
    def base_learning_rate(self) -> float:
        """What multipliers multiply: the spec's own, or the family's at this size."""
        given = self.spec.model.base_learning_rate
        return given or base_learning_rate(self.model.model_type, self.model.parameters)

    def _located(self, spec: StudySpec, origins: DataSpec | None) -> StudySpec:
        """The spec with absolute paths; hub ids stay."""
        base = self._settings.locate(spec.model.base, "model.base")
        looks_like_path = spec.model.base.startswith(("/", "./", "../")) or spec.model.base.count("/") > 1
        if base is None and looks_like_path:
            roots = ", ".join(str(root) for root in self._settings.roots)
            raise UnknownModel(
                f"there is no folder '{spec.model.base}' below the allowed roots ({roots})", "model.base"
            )
        changes: dict[str, dict[str, Any]] = {
            "data": {
                **{role: self._data_path(named, f"data.{role}") for role, named in spec.data.files.items()},
                "origins": _origins(spec.data, origins),
            },
            "model": {"base": str(base) if base else spec.model.base},
        }
        return _changed(spec, changes)

    def _pin_revision(self) -> None:
        """A hub model's branch moves: every trial of the study gets the commit that it names now."""
        if not Path(self.model.path).is_absolute():
            self.spec = _changed(self.spec, {"model": {"revision": self.model.fingerprint}})

    def _data_path(self, named: str, field: str) -> str:
        if named.startswith(HUB_PREFIX):
            return named
        if named.startswith(DATASET_PREFIX):
            upload = self._datasets.path(self._datasets.get(named.removeprefix(DATASET_PREFIX)).id)
            upload.touch()  # it is in use: not one of those that are removed because no study names them
            return str(upload)
        path = self._settings.locate(named, field)
        if path is None or not path.is_file():
            raise UnknownDataset(
                f"{field}: there is no file '{named}' below the allowed roots; upload it with POST /v1/datasets "
                "(`hpsearch submit` does so for files beside the spec)",
                field,
            )
        return str(path)

    @contextmanager
    def _fetched_from_hub(self, keep: bool) -> Iterator[None]:
        """Hub datasets are files while they are checked; after it they are uploads, or gone."""
        asked = {role: HubDataset.parse(named, role) for role, named in self.spec.data.files.items()}
        hub: dict[SplitRole, HubDataset] = {role: dataset for role, dataset in asked.items() if dataset}
        if not hub:
            yield
            return
        until = time.monotonic() + self._settings.hub_timeout_seconds
        with tempfile.TemporaryDirectory(prefix="hub-", dir=self._settings.datasets_folder) as folder:
            files = {role: Path(folder) / f"{role}.jsonl" for role in hub}
            fetched = {
                role: fetch(
                    dataset, files[role], f"data.{role}", self._settings.max_upload_bytes, until - time.monotonic()
                )
                for role, dataset in hub.items()
            }
            for (one, rows), (other, its) in itertools.combinations(fetched.items(), 2):
                if rows.sha256 == its.sha256:
                    raise InvalidSpec(f"data.{one} and data.{other} hold the same rows", f"data.{other}")
            written: dict[str, Any] = {role: str(file) for role, file in files.items()}
            self.spec = _changed(self.spec, {"data": written})
            yield
            pinned: dict[str, Any] = {role: str(dataset.at(fetched[role].commit)) for role, dataset in hub.items()}
            notes = {role: _note(hub[role], rows) for role, rows in fetched.items()}
            self.warnings = [*(f"data.{role}: {note}" for role, note in notes.items()), *self.warnings]
            if not keep:
                self.spec = _changed(self.spec, {"data": pinned})
                return
            kept: dict[str, Any] = {"origins": pinned}
            for role, file in files.items():
                report = self.reports[role]
                warnings = (notes[role], *report.warnings)
                row = self._datasets.add(file, fetched[role].sha256, str(report.format), report.examples, warnings)
                kept[role] = str(self._datasets.path(row.id))
            self.spec = _changed(self.spec, {"data": kept})

    def _lint(self, path: str, role: SplitRole) -> LintReport:
        field = f"data.{role}"
        max_length = min(self.spec.data.max_length, self.model.max_positions or self.spec.data.max_length)
        form = self.spec.data.format
        terms = (
            form,
            role,
            max_length,
            self.spec.data.max_length,
            self.model.path,
            self.model.fingerprint,
            tokenizer_version(self.model),
        )

        def read() -> LintReport:
            is_limited = max_length < self.spec.data.max_length
            return lint(Path(path), form, role, max_length, self._count_tokens, limited_by_model=is_limited)

        is_local = Path(self.model.path).is_absolute()  # else the hub may give the tokenizer the next time
        report = LINTED.get(Path(path), terms, read, lambda report: is_local or report.tokens is not None)
        refuse(report, field)
        self.reports[role] = report
        self.warnings += [f"{field}: {warning}" for warning in report.warnings]
        return report


def _origins(named: DataSpec, stored: DataSpec | None) -> dict[str, str]:
    """Only the service says where data comes from: what a client claims is dropped."""
    known = {} if stored is None else stored.files
    origins = {} if stored is None else dict(stored.origins)
    return {role: origin for role, origin in origins.items() if named.files.get(role) == known.get(role)}


def _note(asked: HubDataset, fetched: Fetched) -> str:
    """Where rows come from, and which of their columns were not kept."""
    left_out = f"; left out, for JSON can't hold them: {', '.join(fetched.left_out)}" if fetched.left_out else ""
    return f"{asked.at(fetched.commit)}, {fetched.rows:,} rows{left_out}"


def _changed(spec: StudySpec, changes: Mapping[str, Mapping[str, Any]]) -> StudySpec:
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
    text = "; ".join(together(report.faults))
    if line == 0:
        raise TooFewExamples(f"{field}: {text}", field)
    raise InvalidDataset(f"{field}: {text}", field, line)
