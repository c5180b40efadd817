"""What people may change in a study's spec: a little while it runs, anything in a clone."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hpsearch.spec.closed import Closed, as_invalid_spec
from hpsearch.spec.study import StudyName, StudySpec


class ParallelismChanges(Closed):
    """Other values for parts of `parallelism`; what is left out stays."""

    max_concurrent_trials: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = None
    """Trials at once. Fewer than run now: no new ones begin until enough have ended."""


class StudyChanges(Closed):
    """Other values for what may change while a study is queued or runs; what is left out stays."""

    priority: int | None = Field(None, ge=-100, le=100)
    """Queued studies start highest first."""
    parallelism: ParallelismChanges | None = None

    @model_validator(mode="after")
    def _check_something_changes(self) -> Self:
        if not self.as_changes():
            raise ValueError("say what to change: priority or parallelism.max_concurrent_trials")
        return self

    def as_changes(self) -> dict[str, Any]:
        """What was given."""
        given = self.model_dump(exclude_none=True)
        return {name: value for name, value in given.items() if value != {}}


class CloneSpec(Closed):
    """A study like another one, but for some changes."""

    name: StudyName
    """Of the new study."""
    changes: dict[str, Any] = Field(default_factory=dict, max_length=32)
    """Laid over the other's spec (RFC 7396): objects are merged, `null` takes a value away, everything else replaces.
    A parameter of `search_space` is replaced whole."""


def clone(spec: StudySpec, wanted: CloneSpec) -> StudySpec:
    """The spec of the new study.

    Raises:
        InvalidSpec: With the changes it is no valid spec.
    """
    values: dict[str, Any] = json.loads(spec.model_dump_json())
    changes = dict(wanted.changes)
    model = changes.get("model")
    if isinstance(model, dict) and model.get("base", spec.model.base) != spec.model.base:
        values["model"].pop("revision")  # it names a commit of the other model
    for parameter in (changes.get("search_space") or {}) if isinstance(changes.get("search_space"), dict) else ():
        values["search_space"].pop(parameter, None)
    merged = _merge(values, changes)
    merged["name"] = wanted.name
    try:
        return StudySpec.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise as_invalid_spec(error) from error


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged
