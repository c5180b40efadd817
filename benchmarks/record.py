"""Records learning curves with the project's own fine-tunes: what `search.py` replays.

    python benchmarks/record.py --output recorded          # goes on where it stopped; an hour or two on one core
    python benchmarks/record.py --output recorded --tables tickets-1 --rows 209
    python benchmarks/record.py --output recorded --pack   # what is there so far, as benchmarks/curves/*.json.gz

A table is a few hundred configs over the six hyperparameters on one model and dataset, each with its whole curve. The
first 160 are a scrambled Sobol sequence over continuous ranges (epochs and batch size: over levels), which covers the
space evenly. The rest are another over its better part: a search draws there most of the time, and would otherwise
find the same few rows whatever it does. All share the data order and dropout streams of their seed,
as the trials of a study do. Members of a cohort train side by side, which changes no curve.

`docstrings` reads the docstrings of the Python that runs it: another version gives another text, and another table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import DATA, PLAIN, ROOT

CURVES = Path(__file__).resolve().parent / "curves"
MODEL = ROOT / "studies/models/pydoc-llama"
BASE_LEARNING_RATE = 4e-3
"""The bundled model's rate in pre-training."""

EPOCHS = (1, 2, 3, 4, 6, 8)
BATCH_SIZES = (4, 8, 16, 32)
COMPANY = 4
"""Members side by side: small batches gain by it."""


@dataclass(frozen=True)
class Task:
    """One table."""

    data: str
    method: str
    examples: int
    validation: int
    learning_rate_multiplier: tuple[float, float]
    better: tuple[float, float]
    """Learning rate multipliers that the first rows did best with."""


TASKS = {
    "tickets": Task("tickets", "lora", 160, 60, (0.03, 10.0), (0.8, 5.0)),
    "docstrings": Task("docstrings", "lora", 100, 30, (0.03, 10.0), (0.3, 3.0)),
    "tickets-full": Task("tickets", "full", 160, 60, (0.003, 1.0), (0.05, 0.5)),
}
PLAN = (("tickets", 0), ("docstrings", 0), ("tickets", 1), ("docstrings", 1), ("tickets-full", 0))
"""(task, seed), in the order of their importance: whatever there is time for."""


def space(task: Task) -> dict[str, dict[str, Any]]:
    """As a study spec writes it."""
    low, high = task.learning_rate_multiplier
    return {
        "epochs": {"choices": list(EPOCHS)},
        "batch_size": {"choices": list(BATCH_SIZES)},
        "learning_rate_multiplier": {"low": low, "high": high, "log": True},
        "prompt_loss_weight": {"low": 0.0, "high": 1.0},
        "dropout": {"low": 0.0, "high": 0.3},
        "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
    }


EVENLY = 160
"""Rows over the whole space."""


def drawn(task: Task, rows: int) -> list[dict[str, float]]:
    low, high = task.better
    better = {
        **space(task),
        "epochs": {"choices": [3, 4, 6, 8]},
        "batch_size": {"choices": [4, 8, 16]},
        "learning_rate_multiplier": {"low": low, "high": high, "log": True},
    }
    return [*_sobol(space(task), 5, EVENLY), *_sobol(better, 6, max(rows - EVENLY, 0))][:rows]


def _sobol(ranges: dict[str, dict[str, Any]], seed: int, rows: int) -> list[dict[str, float]]:
    from scipy.stats import qmc

    points = qmc.Sobol(6, scramble=True, rng=seed).random(1024)[:rows]
    drawn = []
    for point in points:
        params: dict[str, float] = {}
        for place, (name, parameter) in zip(point, ranges.items(), strict=True):
            if "choices" in parameter:
                choices = parameter["choices"]
                params[name] = choices[int(place * len(choices))]
            else:
                low, high = parameter["low"], parameter["high"]
                value = low * (high / low) ** place if parameter.get("log") else low + (high - low) * place
                params[name] = float(f"{value:.4g}")
        drawn.append(params)
    return drawn


def config_of(task: Task, params: dict[str, float], seed: int, folder: Path) -> Any:
    from hpsearch.spec.finetune import FinetuneConfig

    return FinetuneConfig.model_validate(
        {
            "model": {"base": str(MODEL), "method": task.method, "lora": {"rank": 8, "alpha": 16}},
            "data": {
                "train": str(folder / f"{task.data}-train.jsonl"),
                "validation": str(folder / f"{task.data}-validation.jsonl"),
                "max_length": 192,
            },
            "hyperparameters": PLAIN | params,
            "learning_rate": BASE_LEARNING_RATE * params["learning_rate_multiplier"],
            "base_learning_rate": BASE_LEARNING_RATE,
            "seed": seed,
            "reports_per_epoch": 2,
        }
    )


def record(asked: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="record-") as folder:
        for name, seed in PLAN:
            if not asked.tables or f"{name}-{seed}" in asked.tables:
                _record_rows(asked.output, name, seed, asked.rows, Path(folder))


def _record_rows(output: Path, name: str, seed: int, rows: int, folder: Path) -> None:
    from hpsearch.finetune import Cohort, Failed, Finished, Member, prepare

    task, path = TASKS[name], output / f"{name}-{seed}.jsonl"
    done = {line["row"] for line in _lines(path)}
    todo = [(row, params) for row, params in enumerate(drawn(task, rows)) if row not in done]
    if not todo:
        return
    for split, records in zip(("train", "validation"), DATA[task.data](task.examples), strict=True):
        lines = records[: task.examples if split == "train" else task.validation]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{task.data}-{split}.jsonl").write_text(text, encoding="utf-8")
    prepared = prepare(config_of(task, todo[0][1], seed, folder))
    print(f"{name}, seed {seed}: {len(done)} of {rows} rows are there", flush=True)
    cohort, running, started = Cohort(), {}, time.perf_counter()
    waiting = iter(todo)
    with path.open("a", encoding="utf-8") as file:
        while True:
            while len(cohort) < COMPANY and (taken := next(waiting, None)) is not None:
                row, params = taken
                member = Member(config_of(task, params, seed, folder), prepared)
                running[str(row)] = (params, member)
                cohort.admit(str(row), member)
            if not len(cohort):
                break
            for key, event in cohort.tick():
                if isinstance(event, Finished | Failed):
                    params, member = running.pop(key)
                    failure = event.error.code if isinstance(event, Failed) else None
                    file.write(json.dumps(_row(int(key), params, member, failure)) + "\n")
                    file.flush()
    print(f"{name}, seed {seed}: {len(todo)} rows in {time.perf_counter() - started:.0f} s", flush=True)


def _row(row: int, params: dict[str, float], member: Any, failure: str | None) -> dict[str, Any]:
    """Every report, the baseline first: [exposure, tokens, validation loss, training loss]."""
    curve = [
        [
            report.exposure,
            report.tokens,
            round(report.validation_loss, 5),
            None if report.training_loss is None else round(report.training_loss, 4),
        ]
        for report in member.reports
    ]
    return {"row": row, "params": params, "failure": failure, "tokens": member.tokens, "curve": curve}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def pack(asked: argparse.Namespace) -> None:
    CURVES.mkdir(exist_ok=True)
    for path in sorted(asked.output.glob("*.jsonl")):
        name, _, seed = path.stem.rpartition("-")
        task = TASKS[name]
        rows = sorted(_lines(path), key=lambda line: line["row"])
        table = {
            "task": name,
            "seed": int(seed),
            "method": task.method,
            "examples": task.examples,
            "python": sys.version.split()[0],
            "space": space(task),
            "columns": ["exposure", "tokens", "validation_loss", "training_loss"],
            "rows": rows,
        }
        text = json.dumps(table, separators=(",", ":"))
        target = CURVES / f"{path.stem}.json.gz"
        target.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{target.relative_to(ROOT)}: {len(rows)} rows, {target.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of what is recorded, a line for each row")
    names = [f"{name}-{seed}" for name, seed in PLAN]
    parser.add_argument("--tables", nargs="+", choices=names, default=[], help="all by default, one after another")
    parser.add_argument("--rows", type=int, default=320, help="of each table")
    parser.add_argument("--pack", action="store_true", help="write benchmarks/curves, record nothing")
    asked = parser.parse_args()
    (pack if asked.pack else record)(asked)


if __name__ == "__main__":
    main()
