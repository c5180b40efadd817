"""From a spec file to what is sent: YAML, TOML or JSON in, JSON out; data files beside the spec are uploaded."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from hpsearch.client import Client
from hpsearch.errors import InvalidSpec, TooLarge

LARGEST_SPEC = 256 * 2**10


class _NoAliases(yaml.SafeLoader):
    """Refuses aliases (`*x`), with which a short text becomes gigabytes, and keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidSpec("aliases (*name) are not allowed in a spec; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InvalidSpec(f"the key '{key}' is given twice", str(key), node.start_mark.line + 1)
        return super().construct_mapping(node, deep)


def read_spec(path: Path) -> dict[str, Any]:
    """The spec in a file; InvalidSpec names the line that can't be read."""
    if not path.is_file():
        raise InvalidSpec(f"there is no file {path}")
    if path.stat().st_size > LARGEST_SPEC:
        raise TooLarge(f"{path} is larger than {LARGEST_SPEC:,} bytes: is it a spec?")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".toml":
            spec: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            spec = json.loads(text)
        else:
            spec = yaml.load(text, _NoAliases)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise InvalidSpec(f"{path}, line {line}: {error.problem}", line=line) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidSpec(f"{path}: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidSpec(f"{path} holds no study spec (a mapping with name, model, data, search_space)")
    return spec


def upload_data(spec: dict[str, Any], beside: Path, client: Client) -> dict[str, Any]:
    """The spec with data files that lie beside it uploaded and named by their content.

    A path that starts with `./` or `../`, or that exists relative to the spec's folder, is such a file;
    a model's folder that starts so becomes absolute, for a service on the same machine.
    """
    spec = json.loads(json.dumps(spec, default=str))
    data, model = spec.get("data"), spec.get("model")
    if isinstance(data, dict):
        for split in ("train", "validation"):
            named = data.get(split)
            if isinstance(named, str) and not Path(named).is_absolute() and (beside / named).is_file():
                data[split] = f"dataset:{client.upload(beside / named)['id']}"
    if isinstance(model, dict) and isinstance(model.get("base"), str) and model["base"].startswith(("./", "../")):
        model["base"] = str((beside / model["base"]).resolve())
    return spec
