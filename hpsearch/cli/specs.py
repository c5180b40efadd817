"""From a spec file to what is sent: YAML, TOML or JSON in, JSON out; data files beside the spec are uploaded."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from hpsearch.client import Client
from hpsearch.errors import InvalidInput, InvalidSpec, TooLarge
from hpsearch.spec.data import SplitRole
from hpsearch.spec.study import LARGEST_SPEC

LARGE_DATA = 4 * 2**20
"""Bytes; what is larger takes seconds to check."""


class NoAliases(yaml.SafeLoader):
    """Refuses aliases (`*x`), with which a short text becomes gigabytes, and keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node."""
        if self.check_event(yaml.AliasEvent):
            raise InvalidSpec("aliases (*name) are not allowed in a spec; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping of a node."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value  # as written: what makes no key is refused below
            if not isinstance(key, str):
                line = key_node.start_mark.line + 1
                raise InvalidSpec(f"line {line}: a key must be a word", line=line)
            if key in seen:
                raise InvalidSpec(f"the key '{key}' is given twice", str(key), key_node.start_mark.line + 1)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a file; InvalidSpec names the line that can't be read."""
    if not path.is_file():
        raise InvalidSpec(f"there is no file {path}")
    if path.stat().st_size > LARGEST_SPEC:
        raise TooLarge(f"{path} is larger than {LARGEST_SPEC:,} bytes: is it a spec?")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            spec: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            spec = json.loads(text, object_pairs_hook=_no_key_twice)
        else:
            spec = yaml.load(text, NoAliases)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise InvalidSpec(f"{path}, line {line}: {error.problem}", line=line) from error
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidSpec(f"{path}: {error}") from error
    for place in _not_finite(spec):
        raise InvalidSpec(f"{place}: not a finite number", place)
    if not isinstance(spec, dict):
        raise InvalidSpec(f"{path} holds no study spec (a mapping with name, model, data, search_space)")
    return spec


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidSpec(f"the key '{name}' is given twice", name)
    return dict(pairs)


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Where a spec holds infinity or no number at all, which JSON can't say."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _not_finite(part, f"{place}.{name}" if place else str(name))


def _tell_of(file: Path, named: str) -> None:
    """Say on the console what takes long: of a large file only. It is checked twice, by itself and with the model."""
    if file.stat().st_size < LARGE_DATA:
        return
    with file.open("rb") as content:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: content.read(1 << 20), b""))
    text = f"uploading and checking {named}, about {lines:,} examples: a hundred thousand take a minute or two"
    print(text, file=sys.stderr)  # noqa: T201


def _uploaded(client: Client, file: Path, field: str) -> str:
    """Its id. The service knows neither the file's name nor what it is for: a refusal is told with both."""
    try:
        identifier: str = client.upload(file)["id"]
    except InvalidInput as error:
        detail = error.detail.removeprefix("dataset: ")
        raise type(error)(f"{field} ({file.name}): {detail}", field, error.line) from None
    return identifier


def upload_data(spec: dict[str, Any], beside: Path, client: Client, *, quiet: bool = False) -> dict[str, Any]:
    """The spec with data files that lie beside it uploaded and named by their content.

    A path that starts with `./` or `../`, or that exists relative to the spec's folder, is such a file;
    a model's folder that starts so becomes absolute, for a service on the same machine.
    """
    spec = json.loads(json.dumps(spec, default=str))
    data, model = spec.get("data"), spec.get("model")
    if isinstance(data, dict):
        for split in get_args(SplitRole):
            named = data.get(split)
            if not isinstance(named, str) or named.startswith(("dataset:", "hub:")) or Path(named).is_absolute():
                continue
            if (beside / named).is_file():
                if not quiet:
                    _tell_of(beside / named, named)
                data[split] = f"dataset:{_uploaded(client, beside / named, f'data.{split}')}"
    if isinstance(model, dict) and isinstance(model.get("base"), str) and model["base"].startswith(("./", "../")):
        model["base"] = str((beside / model["base"]).resolve())
    return spec
