"""What is learned from."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hpsearch.spec.closed import Closed

SplitRole = Literal["train", "validation", "test"]

HUB_PREFIX = "hub:"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # never a path: no leading dot or slash
_SLICE = r"\w+(\.\w+)*(\[(-?\d+%?)?:(-?\d+%?)?\])?"
_HUB_KEYS = {
    "split": (re.compile(rf"{_SLICE}(\+{_SLICE})*", re.ASCII), "a split or a slice, such as train or train[:2000]"),
    "config": (re.compile(r"\w[\w .,()@+-]{0,99}", re.ASCII), "the name of a configuration"),
    "revision": (re.compile(r"\w[\w./-]{0,99}", re.ASCII), "a branch, a tag or a commit"),
}


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub, as a spec names it: `hub:ORG/NAME?split=...&config=...&revision=...`."""

    id: str
    split: str
    """In the syntax of the `datasets` library: `train`, `train[:2000]`, `train[10%:20%]`, `train+test`."""
    config: str | None = None
    revision: str | None = None
    """Branch, tag or commit; None is the default branch."""

    @classmethod
    def parse(cls, named: str, role: SplitRole) -> HubDataset | None:
        """The dataset that is named; None when it is a file or an upload. The split left out is the role's.

        Raises:
            ValueError: It starts with `hub:`, but the rest can't be read.
        """
        if not named.startswith(HUB_PREFIX):
            return None
        identifier, asks, query = named.removeprefix(HUB_PREFIX).partition("?")
        if not _HUB_ID.fullmatch(identifier):
            raise ValueError(f"'{HUB_PREFIX}' is followed by a dataset's id on the hub, such as {HUB_PREFIX}org/name")
        given: dict[str, str] = {}
        for part in query.split("&") if asks else ():
            key, _, value = part.partition("=")
            if key not in _HUB_KEYS:
                raise ValueError(f"behind the '?' of a hub dataset stand {', '.join(_HUB_KEYS)}, joined by '&'")
            pattern, meaning = _HUB_KEYS[key]
            if key in given:
                raise ValueError(f"{key} is given twice")
            if not pattern.fullmatch(value):
                raise ValueError(f"{key} must be {meaning}")
            given[key] = value
        return cls(identifier, given.get("split", role), given.get("config"), given.get("revision"))

    def at(self, commit: str) -> HubDataset:
        """The same, as it was at a commit."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        given = {"split": self.split, "config": self.config, "revision": self.revision}
        query = "&".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return f"{HUB_PREFIX}{self.id}?{query}"


class DataSpec(Closed):
    """Training and validation examples, one JSON object per line.

    A data file is a path below an allowed root (absolute, or relative to one of the roots), the id of an uploaded
    dataset (`dataset:<id>`), or a dataset of the Hugging Face hub (`hub:ORG/NAME`). `hpsearch submit` uploads the
    files that a spec names relative to itself.

    Behind a hub id may stand `?split=train&config=main&revision=v2`, or some of these. The split may be a slice in the
    syntax of the `datasets` library (`train[:2000]`). The service downloads the rows once, when the study is
    submitted, and keeps them like an upload: every trial reads the same examples, whatever the branch does later.
    """

    train: str = Field(min_length=1, max_length=1024)
    """The training examples; of a hub dataset, its split `train` unless another is named."""
    validation: str | None = Field(None, min_length=1, max_length=1024)
    """The validation examples; left out, a part of the training examples is held back. Of a hub dataset, its split
    `validation` unless another is named."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """The part that is held back, chosen by content hash, when there is no validation file."""
    test: str | None = Field(None, min_length=1, max_length=1024, exclude_if=lambda test: test is None)
    """Sealed examples: no trial of the search sees them, nothing is chosen by them. What is trained again to confirm
    the best (`confirm`) is evaluated on them once, at its end, and the verdict says what the recommended trial gains
    there. Of a hub dataset, its split `test` unless another is named."""
    format: Literal["auto", "chat", "prompt_completion", "alpaca"] = "auto"
    """`chat` is `{"messages": [...]}`, `prompt_completion` is `{"prompt": ..., "completion": ...}`, `alpaca` is
    `{"instruction": ..., "input": ..., "output": ...}`; `auto` looks at the first line."""
    max_length: int = Field(1024, ge=8, le=1_000_000)
    """Tokens per example; longer ones are cut at the end (never above what the model can read)."""
    chat_template: Literal["auto", "plain"] = "auto"
    """`auto` takes the tokenizer's template when it has one; `plain` writes `Role: text` lines."""
    origins: dict[SplitRole, str] = Field(default_factory=dict, exclude_if=lambda origins: not origins)
    """Written by the service: the hub dataset and its commit that a file was written from."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _check_hub_dataset(cls, named: str | None, info: ValidationInfo) -> str | None:
        if named is not None:
            HubDataset.parse(named, cast(SplitRole, info.field_name))
        return named

    @model_validator(mode="after")
    def _check_files_differ(self) -> Self:
        for (role, named), (other, its) in itertools.combinations(self.files.items(), 2):
            one, another = HubDataset.parse(named, role), HubDataset.parse(its, other)
            if one == another and (one is not None or named == its):
                raise ValueError(f"{role} and {other} are the same file ({named}): the loss would say nothing")
        return self

    @property
    def files(self) -> dict[SplitRole, str]:
        """What is named, by what it is for."""
        named: dict[SplitRole, str | None] = {"train": self.train, "validation": self.validation, "test": self.test}
        return {role: file for role, file in named.items() if file is not None}

    def unsealed(self, test: str | None) -> DataSpec:
        """The same with these test examples, or with none."""
        return self.model_copy(update={"test": test})
