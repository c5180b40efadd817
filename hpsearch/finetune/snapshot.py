"""A fine-tune that stopped in the middle, as one file from which it goes on exactly.

Data order, schedule and dropout are functions of the seed and the step, so their state is the step's number. The
file is written aside and then renamed over the last one: after a kill at any moment it is whole, the old or the new.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hpsearch.errors import InvalidInput, OutdatedCheckpoint
from hpsearch.finetune.checkpoint import flush
from hpsearch.finetune.prepare import Prepared
from hpsearch.finetune.weights import State
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric

VERSION = "4"
"""Another one where a snapshot is laid out otherwise, or where its curve would go on otherwise."""

FILE = "progress.safetensors"
_ASIDE = "unfinished"
_CONTENT, _CHECKSUM, _VERSION = "hpsearch", "hpsearch.crc32", "hpsearch.version"
_WAY_OUT = "delete it to start over"


@dataclass(frozen=True)
class Snapshot:
    """Where a member stood between two optimizer steps; made by `Member.snapshot`."""

    identity: dict[str, Any]
    """What decides its curve, by name."""
    progress: dict[str, Any]
    """Counters and reports; JSON."""
    tensors: State
    """On the CPU: `last.*`, `best.*` and each of the optimizer's, `<kind>.*`, by the parameters' names."""

    def part(self, kind: str) -> State:
        """The tensors of one kind, by parameter."""
        return {name.removeprefix(f"{kind}."): each for name, each in self.tensors.items() if _kind(name) == kind}

    def without(self, *kinds: str) -> State:
        """The tensors of all other kinds, by full name."""
        return {name: each for name, each in self.tensors.items() if _kind(name) not in kinds}

    def check_belongs_to(self, identity: Mapping[str, Any]) -> None:
        """Raise InvalidInput, naming the differences, when it was made by a fine-tune of another curve."""
        differences = [
            f"{name} is {self.identity.get(name)} there and {identity.get(name)} here"
            for name in sorted(self.identity.keys() | identity.keys())
            if self.identity.get(name) != identity.get(name)
        ]
        if differences:
            raise InvalidInput(f"the checkpoint belongs to another fine-tune: {'; '.join(differences)}")


def _kind(name: str) -> str:
    return name.partition(".")[0]


def identity(config: FinetuneConfig, prepared: Prepared, metric: Metric) -> dict[str, Any]:
    """What decides a curve, by name: equal identities, equal curves. Contents count, not where they lie."""
    return {
        **dict(_flat(config.curve_terms())),
        "metric": metric,
        "device": prepared.loaded.device.type,
        "training examples": prepared.train.fingerprint,
        "training examples left out": prepared.train.left_out,
        "evaluation contract": prepared.evaluation_contract,
    }


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def write(snapshot: Snapshot, folder: Path) -> None:
    """Replace the snapshot in a folder, which is made if need be."""
    aside = folder / _ASIDE  # a folder, since safetensors has a temporary file of its own
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    content = json.dumps({"identity": snapshot.identity, "progress": snapshot.progress})
    checksum = str(_checksum(content, snapshot.tensors))
    try:
        save_file(snapshot.tensors, aside / FILE, {_CONTENT: content, _CHECKSUM: checksum, _VERSION: VERSION})
        flush(aside / FILE)
        (aside / FILE).replace(folder / FILE)
    finally:  # half a file on a disk that is full takes room that others need
        shutil.rmtree(aside, ignore_errors=True)


def read(folder: Path) -> Snapshot | None:
    """The snapshot in a folder; None when there is none.

    Raises:
        InvalidInput: The file is damaged.
        OutdatedCheckpoint: It is of another version of hpsearch.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"the checkpoint {path} can't be read ({error}); {_WAY_OUT}") from None
    if metadata.get(_VERSION) != VERSION:
        found = f"format {metadata.get(_VERSION)}, this version reads {VERSION}"
        raise OutdatedCheckpoint(f"the checkpoint {path} is of another version of hpsearch ({found}); {_WAY_OUT}")
    content = metadata.get(_CONTENT, "")
    if metadata.get(_CHECKSUM) != str(_checksum(content, tensors)):
        raise InvalidInput(f"the checkpoint {path} is damaged (its checksum is wrong); {_WAY_OUT}")
    known = json.loads(content)
    return Snapshot(known["identity"], known["progress"], tensors)


def exists(folder: Path) -> bool:
    """Whether there is a snapshot in a folder."""
    return (folder / FILE).is_file()


def share(folder: Path, other: Path) -> None:
    """The snapshot in a folder in another one too, where it stays when the first one is replaced."""
    other.mkdir(parents=True, exist_ok=True)
    try:
        os.link(folder / FILE, other / FILE)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links; or somebody was quicker, with the same content
        shutil.copy2(folder / FILE, other / _ASIDE)
        flush(other / _ASIDE)
        (other / _ASIDE).replace(other / FILE)


def remove(folder: Path) -> None:
    """Forget the snapshot in a folder."""
    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / _ASIDE, ignore_errors=True)


def _checksum(content: str, tensors: State) -> int:
    """Of everything: a wrong weight would make a wrong curve that nobody notices."""
    checksum = zlib.crc32(content.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum
