"""Every field of a study spec and every setting, from their declarations.

python -m tests.reference > docs/reference.md
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hpsearch.settings import Settings
from hpsearch.spec.study import StudySpec

ELSEWHERE = {
    "search_space": "What may vary: [the ten parameters](hyperparameters.md).",
    "sampler": "[Which trial next](hyperparameters.md#which-trial-next).",
    "pruner": "[Which trial stops early](hyperparameters.md#pruners).",
}
HEAD = """# Reference

Written from the code by `python -m tests.reference > docs/reference.md`.

## A study spec

In YAML, JSON or TOML; over HTTP in JSON. What is not named here is refused; the JSON schema is
`studies/study.schema.json`.

| field | default | |
|---|---|---|
"""
SETTINGS = """
## Settings of the service

Environment variables of `hpsearch serve`, and of whatever else of the service runs by itself. The client has two:
`HPSEARCH_URL` (default `http://127.0.0.1:8000`) and `HPSEARCH_TOKEN`.

| setting | default | |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    settings = (_row(f"HPSEARCH_{name.upper()}", field) for name, field in Settings.model_fields.items())
    return HEAD + "".join(_fields("", StudySpec)) + SETTINGS + "".join(settings)


def _fields(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        parts = [part for part in (field.annotation, *typing.get_args(field.annotation)) if _is_model(part)]
        if name in ELSEWHERE:
            default = "required" if field.is_required() else "`auto`"
            yield f"| `{name}` | {default} | {ELSEWHERE[name]} |\n"
        elif len(parts) == 1:
            yield from _fields(f"{prefix}{name}.", parts[0])
        else:
            yield _row(prefix + name, field)


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)


def _row(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {_default(field)} | {text} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (None, (), PydanticUndefined):
        return "`~/.hpsearch`" if "Database, uploaded" in (field.description or "") else ""
    return f"`{field.default}`"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
