"""`hpsearch export`: a trial's weights, from the service to a folder."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from hpsearch.client import Client
from hpsearch.errors import AdapterNotFound, InvalidInput


def export(client: Client, name: str, trial: str, output: Path | None) -> Path:
    """Fetch the weights of a trial (a number, or `best`); the answer is the new folder.

    Raises:
        AdapterNotFound: The trial has no weights, or no trial has completed.
        InvalidInput: The trial is no number, or the folder exists.
    """
    number = _number(client, name, trial)
    target = (output or Path(f"{name}-{number}")).absolute()
    if target.exists():
        raise InvalidInput(f"{target} exists already; name another folder with --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the folder appears whole, by one rename.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        packed = Path(scratch) / "weights.tar"
        client.download_adapter(name, number, packed)
        with tarfile.open(packed) as archive:
            archive.extractall(scratch, filter="data")
        (Path(scratch) / f"{name}-{number}").rename(target)
    return target


def _number(client: Client, name: str, trial: str) -> int:
    if trial.isdigit():
        return int(trial)
    if trial != "best":
        raise InvalidInput(f"--trial is a number or 'best', not '{trial}'")
    best = client.study(name)["best"]
    if best is None:
        raise AdapterNotFound(f"study '{name}' has no completed trial yet")
    return int(best["number"])
