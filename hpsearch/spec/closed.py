"""The base of everything a person writes: closed, frozen data that explains what is wrong with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hpsearch.errors import InvalidSpec

_BRANCHES = frozenset({"int", "float", "str", "bool"})
_FIELD = re.compile(r"[a-z_0-9]+")


class Closed(BaseModel):
    """Frozen; unknown keys are refused with a suggestion; numbers are finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            known = list(cls.model_fields)
            close = difflib.get_close_matches(str(unknown[0]), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
            raise PydanticCustomError(
                "unknown_key", "unknown key '{key}'; {hint}", {"key": _printable(unknown[0]), "hint": hint}
            )
        return values


def fault_at(place: str, text: str) -> PydanticCustomError:
    """What a validator raises that knows better than pydantic where the fault lies: at a place below its own field."""
    return PydanticCustomError("fault_at", "{text}", {"key": place, "text": text})


def _printable(key: object) -> str:
    """A key as it may be shown: JSON can hold half characters, which can't be encoded."""
    return str(key)[:100].encode(errors="replace").decode()


def field_path(location: tuple[int | str, ...], extra: str = "") -> str:
    """The place of an error as a person would write it: `search_space.epochs.low`."""
    # Pydantic puts a union's branch (`<range>`, `constrained-int`) among the names; nobody wrote those.
    parts = [str(part) for part in location if part not in _BRANCHES and _FIELD.fullmatch(str(part))]
    return ".".join([*parts, extra] if extra else parts)


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Each fault as `{"field", "message", "type"}`; never the input itself, which may hold secrets."""
    return faults_of(error.errors(include_input=False, include_url=False))


def faults_of(found: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Pydantic's faults, those of one field as one."""
    problems: dict[str, dict[str, str]] = {}
    for fault in found:
        key = str(fault["ctx"]["key"]) if fault["type"] in ("unknown_key", "fault_at") else ""
        field, message = field_path(fault["loc"], key), message_of(fault)
        if field in problems:  # the branches of a union, each with its own complaint
            problems[field]["message"] += f", or: {message}"
        else:
            problems[field] = {"field": field, "message": message, "type": fault["type"]}
    return list(problems.values())


def message_of(fault: Mapping[str, Any]) -> str:
    """A pydantic fault's text, without the input."""
    if fault["type"] == "union_tag_invalid":
        return f"unknown type; it is one of {fault['ctx']['expected_tags']}"
    if fault["type"] in ("model_attributes_type", "model_type", "dict_type"):
        example = ", such as {type: auto}" if fault["loc"][-1:] in (("sampler",), ("pruner",)) else ""
        return f"a mapping of keys to values belongs here{example}"
    return str(fault["msg"]).removeprefix("Value error, ")


def as_invalid_spec(error: ValidationError) -> InvalidSpec:
    """The same faults as one `InvalidSpec`, whose `field` is the first one's."""
    problems = problems_of(error)
    return InvalidSpec(sentence(problems), problems[0]["field"])


def sentence(problems: Iterable[Mapping[str, str]]) -> str:
    """All faults on one line, each behind its field if it has one."""
    return "; ".join(": ".join(filter(None, (problem["field"], problem["message"]))) for problem in problems)
