"""`hpsearch finetune`: one config alone, without a service, for debugging and for the winner."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from hpsearch.cli.serve import say
from hpsearch.cli.specs import read_spec
from hpsearch.errors import HpsearchError, InvalidInput, InvalidSpec, UnknownDataset
from hpsearch.results import Report
from hpsearch.settings import Settings
from hpsearch.spec.closed import as_invalid_spec
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.space import SearchSpace

CHECKPOINT = ".checkpoint"
"""In the output folder, while the fine-tune is not done."""


def finetune(path: Path, output: Path, device: str) -> dict[str, Any]:
    """Fine-tune as a config file says, each report a line on standard error; what came out.

    The weights are in `output` at the end. Until then a checkpoint is there, from which the same call goes on.

    Raises:
        InvalidInput: The config, its data or the model can't be used, or the folder is taken.
        TrialFailure: It diverged or ran out of memory.
    """
    config = read_config(path)
    output = output.absolute()
    _check_free(output)
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise HpsearchError(f"{package} is not installed here: pip install 'hpsearch[worker]'")
    chosen = _device(device)  # the first import of torch: seconds
    from hpsearch.finetune import finetune as train
    from hpsearch.finetune import prepare, snapshot

    checkpoint = output / CHECKPOINT
    weights = checkpoint / "weights"
    try:
        checkpoint.mkdir(parents=True, exist_ok=True)  # now: a folder that can't be written should not cost an epoch
    except OSError as error:
        raise InvalidInput(f"{output} can't be written: {error.strerror}") from None
    try:
        prepared = prepare(config, chosen, Settings().token_cache_folder)
        for text in prepared.warnings:
            say(text)
        outcome = train(
            config,
            _tell,
            prepared=prepared,
            device=chosen,
            save_to=weights,
            checkpoint=checkpoint,
            on_resume=_tell_resumed,
        )
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last report")
        raise typer.Exit(130) from None
    finally:
        with contextlib.suppress(OSError):  # not empty: there is something to go on from
            checkpoint.rmdir()
            output.rmdir()
    sealed = outcome.sealed
    _move_in(weights, output)
    snapshot.remove(checkpoint)  # first: while it is there, all this can be repeated
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {
        "weights": str(output),
        "best": outcome.best.as_json(),
        "baseline": outcome.reports[0].as_json(),
        "reports": [report.as_json() for report in outcome.reports],
        "evaluation_contract": outcome.evaluation_contract,
        "test": None if sealed is None else sealed.as_json(),
        "test_loss": None if sealed is None or not math.isfinite(sealed.value) else sealed.value,
    }


def summary(outcome: dict[str, Any]) -> str:
    """What came out, as a sentence."""
    best, baseline, test = outcome["best"], outcome["baseline"], outcome["test_loss"]
    sealed = outcome["test"] or {}
    said = f", test split not read: {sealed['unread']}" if sealed.get("unread") else ""
    return (
        f"best validation loss {best['validation_loss']:.5f} at epoch {best['epoch']:.2f} "
        f"(base model {baseline['validation_loss']:.5f}){said if test is None else f', test loss {test:.5f}'}; "
        f"weights in {outcome['weights']}"
    )


def read_config(path: Path) -> FinetuneConfig:
    """The config in a file, or that of the trial in it; relative paths become absolute, from the file's folder.

    Raises:
        InvalidInput: It is no config, or it names data that only a service has.
    """
    content = read_spec(path)
    if "config" in content and "hyperparameters" not in content:
        content = content["config"]
        if content is None:
            raise InvalidSpec(f"the trial in {path} never started, so it has no config", "config")
    try:
        config = FinetuneConfig.model_validate(content)
        for chosen in (config.hyperparameters, *(phase.hyperparameters for phase in config.earlier)):
            SearchSpace.model_validate(chosen.model_dump())  # knows what values make sense
    except ValidationError as error:
        raise as_invalid_spec(error) from None
    if config.learning_rate <= 0:
        raise InvalidSpec(f"learning_rate must be above 0; it is {config.learning_rate}", "learning_rate")
    beside = path.absolute().parent
    base = config.model.base
    if base.startswith(("./", "../")) or (beside / base).is_dir():  # else a hub id
        base = os.path.normpath(beside / base)
    files: dict[str, Any] = {
        split: _data_file(file, beside, f"data.{split}") for split, file in config.data.files.items()
    }
    if "test" in files and not Path(files["test"]).is_file():  # it is read last: say so first
        raise UnknownDataset(f"there is no file {files['test']}", "data.test")
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"base": base}),
            "data": config.data.model_copy(update=files),
        }
    )


def _data_file(file: str, beside: Path, field: str) -> str:
    if file.startswith("dataset:"):
        raise UnknownDataset(f"{file} is a dataset of a service; name its file in {field}", field)
    return os.path.normpath(beside / file)


def _check_free(output: Path) -> None:
    """Refuse a folder with files that are not an unfinished fine-tune's."""
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file; name a folder with --output")
    unfinished = any((output / CHECKPOINT).glob("*.safetensors"))
    if output.is_dir() and not unfinished and any(entry.name != CHECKPOINT for entry in output.iterdir()):
        raise InvalidInput(f"{output} is not empty and holds no unfinished fine-tune; name another with --output")


def _device(asked: str) -> str:
    """The device as torch names it."""
    if not re.fullmatch(r"auto|cpu|cuda:\d+", asked):
        raise InvalidInput(f"--device is auto, cpu or cuda:N, not '{asked}'")
    import torch

    known = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    device = next(iter(known), "cpu") if asked == "auto" else asked
    if device not in ("cpu", *known):
        raise InvalidInput(f"there is no {device} here; --device can be: {', '.join(['cpu', *known])}")
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # two on a busy machine are many times slower than one
    return device


def _tell(report: Report) -> None:
    trained = "" if report.training_loss is None else f"  training loss {report.training_loss:.5f}"
    say(f"exposure {report.exposure}  epoch {report.epoch:.2f}{trained}  validation loss {report.validation_loss:.5f}")


def _tell_resumed(last: Report) -> None:
    say(f"going on from exposure {last.exposure}")


def _move_in(weights: Path, output: Path) -> None:
    """Each file by a rename, so that a second attempt replaces what a first one left."""
    for entry in weights.iterdir():
        target = output / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
