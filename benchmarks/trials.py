"""Whole trials and whole searches: as the service runs them, as processes, and as a stock script does (`cohort.py`).

python benchmarks/trials.py 8 0.001  # one trial in this process: batch size, learning rate
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune import DATA as DATASETS
from finetune import PLAIN

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "studies/models/pydoc-llama"
DATA = Path(os.environ.get("BENCHMARK_DATA", ROOT / "studies/data/tickets"))
"""Of a child process: where the parent has written it."""
BATCH_SIZES = (4, 8, 16)
LEARNING_RATES = (5e-4, 5e-3)
STOCK = Path(__file__).with_name("stock.py")
SEARCHED = {"learning_rate": (8e-4, 2e-2), "dropout": (0.0, 0.2), "weight_decay": (1e-3, 0.3)}
"""What `searches` draws from beside batch size and epochs; the rates are 0.2 to 5 times the model's own."""
OWN_RATE = 4e-3
EPOCHS = 3
"""At most."""


def a_config(batch_size: int, learning_rate: float, seed: int, reports: int = 2) -> Any:
    from hpsearch.spec.finetune import FinetuneConfig

    hyperparameters = PLAIN | {"batch_size": batch_size}
    return FinetuneConfig.model_validate(
        {
            "model": {"base": str(MODEL), "lora": {"rank": 8, "alpha": 16}},
            "data": {"train": str(DATA / "train.jsonl"), "validation": str(DATA / "validation.jsonl")},
            "hyperparameters": hyperparameters,
            "learning_rate": learning_rate,
            "base_learning_rate": learning_rate,
            "seed": seed,
            "reports_per_epoch": reports,
        }
    )


def drawn(trials: int) -> list[tuple[int, float]]:
    """(batch size, learning rate) of each trial."""
    source = random.Random(0)
    low, high = LEARNING_RATES
    return [(source.choice(BATCH_SIZES), low * (high / low) ** source.random()) for _ in range(trials)]


def trials(asked: argparse.Namespace) -> None:
    """K trials to their ends."""
    ways: dict[str, Way] = {"service": run_service, "processes": run_processes, "stock": run_stock}
    _raced({name: way for name, way in ways.items() if name in asked.contenders}, asked)


def searches(asked: argparse.Namespace) -> None:
    """A whole search of K trials."""
    halving = {
        "sampler": {"type": "tpe"},
        "pruner": {"type": "successive_halving", "min_reports": 1, "reduction_factor": 4},
    }
    ways: dict[str, Way] = {
        "service": functools.partial(run_service, search={}),
        "halving": functools.partial(run_service, search=halving),
        "stock": functools.partial(run_stock, searching=True),
    }
    _raced({name: way for name, way in ways.items() if name in asked.contenders}, asked)


Found = list[tuple[float, float]]
"""(time, validation loss) of all that a search saw; times as `time.time` has them."""
Way = Callable[[int, Path, int], Found]
"""Runs so many trials in a folder under a seed."""


def _raced(ways: dict[str, Way], asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        for name, records in zip(("train", "validation"), DATASETS[asked.data](400), strict=True):
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (Path(folder) / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        os.environ["BENCHMARK_DATA"] = folder
        print(f"{platform.machine()}, {os.cpu_count()} cores, medians of {asked.rounds} rounds", end="; ")
        print("seconds (CPU) for K trials; of a search, its best loss @ seconds to one as good as the worst best\n")
        print("| K | " + " | ".join(ways) + " |")
        print("|---" * (1 + len(ways)) + "|", flush=True)
        for count in asked.trials:
            _race(ways, count, asked.rounds)


def _race(ways: dict[str, Way], count: int, rounds: int) -> None:
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for seed in range(rounds):
        found: dict[str, Found] = {}
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, _cpu_seconds() as spent:
                began = time.time()
                saw = way(count, Path(folder), seed)
                seconds = time.time() - began
            found[name] = sorted((moment - began, loss) for moment, loss in saw)
            taken[name].append((seconds, sum(spent.values())))
        if not all(found.values()):
            continue
        best = {name: min(loss for _, loss in each) for name, each in found.items()}
        for name, each in found.items():
            reached = next(moment for moment, loss in each if loss <= max(best.values()))
            taken[name][-1] += (best[name], reached)
    cells = []
    for each in taken.values():
        wall, cpu, *quality = (statistics.median(column) for column in zip(*each, strict=True))
        cells.append(f"{wall:.1f} ({cpu:.1f})" + (", {:.3f} @ {:.1f}".format(*quality) if quality else ""))
    print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


@contextlib.contextmanager
def _cpu_seconds() -> Iterator[dict[int, float]]:
    """Of every process that is started inside and inherits this one's environment, at the last look, by its id."""
    import psutil

    tag, spent, over = uuid.uuid4().hex, {}, threading.Event()
    os.environ["BENCHMARK_RUN"] = tag

    def look() -> None:
        while not over.wait(0.3):
            for process in psutil.process_iter(["pid", "cpu_times", "environ"]):
                if (process.info["environ"] or {}).get("BENCHMARK_RUN") == tag:
                    spent[process.info["pid"]] = process.info["cpu_times"].user + process.info["cpu_times"].system

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield spent
    finally:
        over.set()
        looking.join()


def run_service(count: int, folder: Path, seed: int, *, search: dict[str, Any] | None = None) -> Found:
    """With the policies that are given; what is left out of them is `auto`. None: K trials to their ends."""
    data = Path(os.environ["BENCHMARK_DATA"])
    own = OWN_RATE if search is not None else 1.0
    low, high = (rate / own for rate in (LEARNING_RATES if search is None else SEARCHED["learning_rate"]))
    space: dict[str, Any] = {
        "epochs": 1,
        "batch_size": {"choices": list(BATCH_SIZES)},
        "learning_rate_multiplier": {"low": low, "high": high, "log": True},
        "prompt_loss_weight": 0.0,
        "weight_decay": 0.01,
    }
    spec: dict[str, Any] = {
        "name": "benchmark",
        "model": {"base": "models/pydoc-llama", "base_learning_rate": own, "lora": {"rank": 8, "alpha": 16}},
        "data": {"train": str(data / "train.jsonl"), "validation": str(data / "validation.jsonl")},
        "search_space": space,
        "budget": {"trials": count},
        "seed": seed,
    }
    if search is None:
        spec |= {"sampler": {"type": "random"}, "pruner": {"type": "none"}}
    else:
        ranges = {name: dict(zip(("low", "high"), SEARCHED[name], strict=True)) for name in ("dropout", "weight_decay")}
        space |= {"epochs": {"low": 1, "high": EPOCHS}} | ranges
        space["weight_decay"] |= {"log": True}
        spec |= {"objective": {"reports_per_epoch": 2}} | search
    (folder / "benchmark.json").write_text(json.dumps(spec))
    home = {"HPSEARCH_HOME": str(folder / "home"), "HPSEARCH_ALLOWED_ROOTS": f"{ROOT / 'studies'}:{data}"}
    command = [str(Path(sys.executable).parent / "hpsearch"), "run", str(folder / "benchmark.json"), "--port", "8123"]
    ranking = json.loads(_run([*command, "--json"], home).splitlines()[-1])["ranking"]
    if search is not None:
        return _told(folder / "home/hpsearch.db")
    assert len(ranking) == count, f"only {len(ranking)} of {count} trials completed"
    return []


def _told(database: Path) -> Found:
    """Of the trials of its only study; what one saw counts from its end on."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{database}"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [
        (trial.datetime_complete.timestamp(), min(trial.intermediate_values.values()))
        for trial in trials
        if trial.datetime_complete and trial.intermediate_values
    ]


def run_processes(count: int, folder: Path, seed: int) -> Found:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(batch_size), str(rate)], env=environment, stdout=subprocess.DEVNULL
        )
        for batch_size, rate in drawn(count)
    ]
    assert not any(child.wait() for child in children)
    return []


def run_stock(count: int, folder: Path, seed: int, *, searching: bool = False) -> Found:
    command = [sys.executable, str(STOCK), str(count), str(folder), str(seed), *["searching"] * searching]
    found = json.loads(_run(command, {}).splitlines()[-1])
    return [(moment, loss) for moment, loss in found] if searching else []


def _run(command: list[str], environment: dict[str, str]) -> str:
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed: {done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    """A trial in a process of its own."""
    import torch

    from hpsearch.finetune import finetune

    batch_size, learning_rate = sys.argv[1:]
    torch.set_num_threads(1)
    finetune(a_config(int(batch_size), float(learning_rate), 0))


if __name__ == "__main__":
    main()
