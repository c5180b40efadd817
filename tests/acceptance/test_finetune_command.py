"""`hpsearch finetune` as its users run it: real processes, Ctrl-C and kill -9."""

import functools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STUDIES = Path(__file__).parents[2] / "studies"
PATIENCE = 150


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))


def a_config_file(folder: Path, **hyperparameters: Any) -> Path:
    """A trial of some seconds, as `hpsearch show STUDY NUMBER --json` prints one, its data beside it."""
    for split, count in (("train", 40), ("validation", 10)):
        lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "model").symlink_to(STUDIES / "models/pydoc-llama")
    config = {
        "model": {"base": "model", "method": "lora"},
        "data": {"train": "train.jsonl", "validation": "./validation.jsonl"},
        "hyperparameters": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate_multiplier": 1.0,
            "prompt_loss_weight": 0.1,
            "dropout": 0.1,
            "weight_decay": 0.01,
            "lr_schedule": "cosine",
            "warmup_fraction": 0.1,
            "frozen_layers": 0,
            "layer_lr_decay": 1.0,
        }
        | hyperparameters,
        "learning_rate": 4e-3,
        "base_learning_rate": 4e-3,
    }
    path = folder / "winner.json"
    path.write_text(json.dumps({"number": 7, "state": "COMPLETE", "config": config}))
    return path


def command(config: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "hpsearch", "finetune", str(config), "--output", str(output), *options]


def start(config: Path, output: Path) -> "subprocess.Popen[str]":
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background has its children ignore Ctrl-C.
    hears = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    started = command(config, output, "--json", "--device", "cpu")
    return subprocess.Popen(started, preexec_fn=hears, **streams)  # noqa: PLW1509 - it sets a handler and no more


def run(config: Path, output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    arguments = command(config, output, *options)
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE)


def reports_in(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("exposure ")]


def timeless(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**report, "seconds": 0} for report in reports]


def stop_after(process: "subprocess.Popen[str]", reports: int, how: signal.Signals) -> list[str]:
    """Its lines on standard error, once it has printed so many reports and is stopped."""
    assert process.stderr is not None
    lines: list[str] = []
    while len(reports_in(lines)) < reports:
        line = process.stderr.readline()
        assert line, lines
        lines.append(line.rstrip("\n"))
    process.send_signal(how)
    lines += process.stderr.read().splitlines()  # `communicate` would forget what was read ahead
    process.wait(PATIENCE)
    return lines


def killed_before_its_end(config: Path, output: Path) -> "tuple[subprocess.Popen[str], list[str]]":
    """Again where it was quicker than this process, which may have to wait for a core."""
    for _ in range(10):
        process = start(config, output)
        lines = stop_after(process, 3, signal.SIGKILL)
        if process.returncode != 0:
            break
        shutil.rmtree(output)
    return process, lines


def test_after_kill_9_the_curve_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = a_config_file(tmp_path)
    uninterrupted = start(config, tmp_path / "whole")
    interrupted, lines = killed_before_its_end(config, tmp_path / "resumed")
    assert interrupted.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [".checkpoint"]

    again = start(config, tmp_path / "resumed")
    written, said = uninterrupted.communicate(timeout=PATIENCE)
    assert uninterrupted.returncode == 0, said
    whole = json.loads(written)
    resumed_written, resumed_said = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, resumed_said
    resumed = json.loads(resumed_written)

    assert timeless(resumed["reports"]) == timeless(whole["reports"])
    assert len(whole["reports"]) == 7
    assert resumed["best"]["validation_loss"] == whole["best"]["validation_loss"] < whole["baseline"]["validation_loss"]
    going_on = next(line for line in resumed_said.splitlines() if line.startswith("going on from exposure "))
    assert int(going_on.split()[-1]) > 0
    # A report that was printed, but not yet in the checkpoint when the kill came, is printed again, and is the same.
    together = dict.fromkeys(reports_in(lines) + reports_in(resumed_said.splitlines()))
    assert list(together) == reports_in(said.splitlines())

    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed["weights"] == str(tmp_path / "resumed")
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    done = run(config, tmp_path / "resumed")
    assert done.returncode == 65
    assert "not empty" in done.stderr


def test_ctrl_c_a_changed_config_and_a_damaged_checkpoint(tmp_path: Path) -> None:
    config = a_config_file(tmp_path, epochs=1000)
    process = start(config, tmp_path / "out")
    lines = stop_after(process, 3, signal.SIGINT)
    assert process.returncode == 130
    assert lines[-1] == "stopped; the same command goes on from the last report"

    changed = json.loads(config.read_text())
    changed["config"]["hyperparameters"]["dropout"] = 0.2
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    refused = start(tmp_path / "changed.json", tmp_path / "out")

    shutil.copytree(tmp_path / "out", tmp_path / "damaged")
    checkpoint = tmp_path / "damaged/.checkpoint/progress.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    damaged = run(config, tmp_path / "damaged")
    assert damaged.returncode == 65
    assert "delete it to start over" in damaged.stderr
    assert "Traceback" not in damaged.stderr

    said = refused.communicate(timeout=PATIENCE)[1]
    assert refused.returncode == 65
    assert "hyperparameters.dropout is 0.1 there and 0.2 here" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"config": None}, "never started", id="a-trial-without-config"),
        pytest.param({"config": {"learning_rate": 1}}, "model: Field required", id="incomplete"),
        pytest.param({"hyperparameters": {"epochs": 0}}, "epochs", id="no-epochs"),
        pytest.param({"hyperparameters": {"batch_size": 0}}, "batch_size", id="no-batch"),
        pytest.param({"hyperparameters": {"dropout": 1.5}}, "dropout", id="dropout"),
        pytest.param({"hyperparameters": {"epoch": 3}}, "did you mean 'epochs'", id="unknown-key"),
        pytest.param({"learning_rate": -1}, "learning_rate must be above 0", id="rate"),
        pytest.param({"data": {"train": "dataset:abc"}}, "is a dataset of a service", id="dataset"),
        pytest.param({"data": {"test": "gone.jsonl"}}, "there is no file", id="test-file"),
    ],
)
def test_a_config_that_can_not_be_used_is_refused_before_anything_is_loaded(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from hpsearch.cli import app

    trial = json.loads(a_config_file(tmp_path).read_text())
    for key, value in change.items():
        if key == "config":
            trial["config"] = value
        elif isinstance(value, dict):
            trial["config"][key] |= value
        else:
            trial["config"][key] = value
    (tmp_path / "bad.json").write_text(json.dumps(trial))
    done = CliRunner().invoke(app, ["finetune", str(tmp_path / "bad.json"), "--output", str(tmp_path / "out")])
    assert done.exit_code == 65
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_and_a_strange_device_are_refused(tmp_path: Path) -> None:
    config = a_config_file(tmp_path)
    taken = run(config, tmp_path)
    assert taken.returncode == 65
    assert "is not empty" in taken.stderr
    strange = run(config, tmp_path / "out", "--device", "gpu")
    assert strange.returncode == 65
    assert "auto, cpu or cuda:N" in strange.stderr
    assert not (tmp_path / "out").exists()


def test_a_yaml_config_by_itself_names_its_files_relative_to_itself(tmp_path: Path) -> None:
    import yaml

    from hpsearch.cli.finetune import read_config

    config = json.loads(a_config_file(tmp_path).read_text())["config"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    read = read_config(tmp_path / "config.yaml")
    assert read == read_config(tmp_path / "winner.json")
    assert read.model.base == str(tmp_path / "model")
    assert (read.data.train, read.data.validation) == (str(tmp_path / "train.jsonl"), f"{tmp_path}/validation.jsonl")
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(config | {"model": {"base": "org/name"}}))
    assert read_config(tmp_path / "hub.yaml").model.base == "org/name"


def test_what_is_cut_is_said_and_the_tokens_are_kept_for_the_next_call(tmp_path: Path) -> None:
    config = a_config_file(tmp_path, epochs=1)
    trial = json.loads(config.read_text())
    trial["config"]["data"]["max_length"] = 64
    config.write_text(json.dumps(trial))
    said = [run(config, tmp_path / name, "--device", "cpu").stderr.splitlines() for name in ("one", "two")]
    for lines in said:
        assert [line.split(":")[0] for line in lines if "had more than 64 tokens" in line] == [
            "data.train",
            "data.validation",
        ]
    assert reports_in(said[0]) == reports_in(said[1])
    assert len(list((tmp_path / "home/cache/tokens").glob("*.safetensors"))) == 1
