"""`hpsearch export`: a trial's weights, from the service to a folder."""

from __future__ import annotations

import json
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hpsearch.client import Client
from hpsearch.errors import AdapterNotFound, HpsearchError, InvalidInput

Format = Literal["trained", "model"]
TRIAL = "hpsearch_trial.json"
"""In the folder: the trial as the service tells it. `hpsearch finetune` trains it again."""


def export(client: Client, name: str, trial: str, output: Path | None, *, to: Format, base: str | None) -> Path:
    """Fetch the weights of a trial (a number, or `best`: what the verdict recommends); the answer is the new folder.

    Args:
        client: The service's.
        name: The study's.
        trial: Which one.
        output: Folder to write; left out, NAME-NUMBER here.
        to: `trained` is what was trained, `model` a whole model: an adapter is folded into its base.
        base: For `model`: where the base model is, if not where the service has it.

    Raises:
        AdapterNotFound: The trial has no weights, or no trial has completed.
        InvalidInput: The trial is no number, the folder exists, or the base model is not the adapter's.
        UnsupportedModel: The base model can't be loaded here.
    """
    if to == "model":  # before anything is fetched
        for package in ("torch", "transformers"):
            if find_spec(package) is None:
                raise HpsearchError(f"--to model needs {package}, which is not here: pip install 'hpsearch[worker]'")
    elif base is not None:
        raise InvalidInput("--base goes with --to model only")
    number = chosen(client, name, trial)
    target = (output or Path(f"{name}-{number}")).absolute()
    if target.exists():
        raise InvalidInput(f"{target} exists already; name another folder with --output")
    told = client.trial(name, number)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the folder appears whole, by one rename.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        packed = Path(scratch) / "weights.tar"
        client.download_adapter(name, number, packed)
        with tarfile.open(packed) as archive:
            archive.extractall(scratch, filter="data")
        whole = _as_asked(Path(scratch) / f"{name}-{number}", to, base)
        (whole / TRIAL).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        whole.rename(target)
    return target


def _as_asked(trained: Path, to: Format, base: str | None) -> Path:
    if to == "trained":
        return trained
    if (trained / "config.json").is_file():  # a full fine-tune is a whole model
        if base is not None:
            raise InvalidInput("--base is of no use here: the trial is a full fine-tune, a whole model without a base")
        return trained
    from hpsearch.finetune.merge import merge

    merged = trained.with_name("merged")
    merge(trained, merged, base)
    return merged


def chosen(client: Client, name: str, trial: str) -> int:
    """The number of the trial that is meant: a number, or `best`."""
    if trial.isdigit():
        return int(trial)
    if trial != "best":
        raise InvalidInput(f"--trial is a number or 'best', not '{trial}'")
    ranking = client.ranking(name)
    ranked = [int(entry["number"]) for entry in ranking["ranking"]]
    verdict = ranking["verdict"]
    if verdict is None or verdict["outdated"] or verdict["recommended"] is None:
        if not ranked:
            raise AdapterNotFound(f"study '{name}' has no completed trial yet")
        return ranked[0]
    number = int(verdict["recommended"])
    if number not in ranked:  # the defaults, which may have been stopped
        raise AdapterNotFound(
            f"the verdict is to use trial {number}, which was pruned and has no weights: `hpsearch continue {name} "
            f"{number}` trains it to its end; or name another one with --trial"
        )
    return number
