"""Searches of conditional spaces on made-up losses: is the better branch found, and what does a draw cost?

    python benchmarks/conditional.py
    python benchmarks/conditional.py --seeds 20 --first-seed 420 --trials 20

Every contender is the service's own search (`hpsearch.search.Search`), nothing is stopped, and the first trial is the
`auto` defaults. *as drawn* is `curves` with one thing taken out: a candidate is promised what it would come to if all
drawn values mattered. Regret is the loss above the least of the space; *poorer* counts draws in the poorer branch,
after the first trials. Time is the process's CPU time for each trial that is asked for.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from hpsearch.results import Report
from hpsearch.search import Search
from hpsearch.spec import StudySpec
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.spec.finetune import Hyperparameters

EXAMPLES = 100
FIRST = 6
"""Trials before draws are counted."""
RATE = {"low": 0.1, "high": 5.0, "log": True}
COSINE = {"when": "lr_schedule == 'cosine'"}
BRANCHES: dict[str, Any] = {
    "lr_schedule": {"choices": ["linear", "cosine"]},
    "warmup_fraction": {"low": 0.0, "high": 0.2, **COSINE},
    "weight_decay": {"low": 0.0, "high": 0.3, **COSINE},
    "dropout": {"low": 0.0, "high": 0.3, **COSINE},
    "learning_rate_multiplier": RATE,
    "epochs": 4,
}
FREE_EPOCHS: dict[str, Any] = {
    "lr_schedule": {"choices": ["linear", "constant"]},
    "epochs": {"low": 1, "high": 8},
    "learning_rate_multiplier": RATE,
}


@dataclass(frozen=True)
class Case:
    """A space of two branches, and the end of each fine-tune."""

    name: str
    space: dict[str, Any]
    loss: Callable[[Hyperparameters], float]
    least: float
    poorer: str
    """The schedule of the poorer branch."""


def branches(gain: float, best_rate: float) -> Callable[[Hyperparameters], float]:
    """Cosine is better by `gain`, where its own three parameters are right."""

    def loss(trained: Hyperparameters) -> float:
        away = 0.2 * math.log(trained.learning_rate_multiplier / best_rate) ** 2
        if trained.lr_schedule == "linear":
            return 1.0 + away
        own = 5 * (trained.warmup_fraction - 0.15) ** 2 + 2 * (trained.weight_decay - 0.2) ** 2
        return 1.0 - gain + away + own + 2 * (trained.dropout - 0.1) ** 2

    return loss


def long_ones(gain: float) -> Callable[[Hyperparameters], float]:
    """More epochs are better, and with a constant rate, where they are free, by `gain` more."""

    def loss(trained: Hyperparameters) -> float:
        away = 0.2 * math.log(trained.learning_rate_multiplier) ** 2
        return 1.0 - gain * (trained.lr_schedule == "constant") + away + 0.4 * (1 / trained.epochs - 1 / 8)

    return loss


CASES = (
    Case("cosine, with three parameters of its own, is better by 0.1", BRANCHES, branches(0.1, 1.0), 0.9, "linear"),
    Case("by 0.05, the best rate lies off the default", BRANCHES, branches(0.05, 2.5), 0.95, "linear"),
    Case("worse by 0.05", BRANCHES, branches(-0.05, 2.5), 1.0, "cosine"),
    Case("constant, with epochs that are free, is better by 0.05", FREE_EPOCHS, long_ones(0.05), 0.95, "linear"),
)
CONTENDERS: dict[str, dict[str, Any]] = {
    "curves": {"type": "curves"},
    "curves, as drawn": {"type": "curves"},
    "curves, no prior": {"type": "curves", "prior": 0},
    "curves, no prior, as drawn": {"type": "curves", "prior": 0},
    "tpe": {"type": "tpe"},
    "random": {"type": "random"},
}


def searched(case: Case, name: str, seed: int, trials: int) -> tuple[float, int, float]:
    """Regret, draws in the poorer branch, and CPU seconds of a draw."""
    spec = StudySpec.model_validate(
        {
            "name": f"conditional-{seed}",
            "model": {"base": "made-up", "base_learning_rate": 0.001},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "search_space": case.space,
            "sampler": CONTENDERS[name],
            "pruner": {"type": "none"},
            "budget": {"trials": trials},
            "seed": seed,
        }
    )
    storage = optuna.storages.InMemoryStorage()
    search = Search(spec, storage, examples=EXAMPLES, default_params=default_params(spec, EXAMPLES))
    if name.endswith("as drawn"):
        search._points.projection = None
    best, poorer, spent = math.inf, 0, 0.0
    while True:
        started = time.process_time()
        asked = search.ask()
        spent += time.process_time() - started
        if asked is None:
            return best - case.least, poorer, spent / trials
        config = resolve(spec, asked.params, EXAMPLES, "llama", 10**6)
        search.start(asked.number, config)
        end = case.loss(config.hyperparameters)
        halves = 2 * config.hyperparameters.epochs
        for half in range(halves + 1):
            loss = end + 0.1 * (halves - half) if half else 5.0
            last = Report(
                half * EXAMPLES // 2, half / 2, loss, loss, 1 / loss, training_loss=loss, tokens=half, seconds=half
            )
            search.report(asked.number, last, "made-up")
        search.complete(asked.number, last, "made-up", "nowhere")
        best = min(best, end)
        poorer += asked.number >= FIRST and config.hyperparameters.lr_schedule == case.poorer


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=420)
    parser.add_argument("--trials", type=int, default=20)
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    print(f"| | regret, mean | worst | poorer, of {asked.trials - FIRST} | ms a draw |\n|---|---|---|---|---|")
    for case in CASES:
        for name in CONTENDERS:
            regrets, poorer, spent = np.array([searched(case, name, seed, asked.trials) for seed in seeds]).T
            line = f"{regrets.mean():.3f} | {regrets.max():.3f} | {poorer.mean():.1f} | {1000 * spent.mean():.0f}"
            print(f"| {case.name}: {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
