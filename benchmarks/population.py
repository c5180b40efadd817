"""Population based training beside searches for one config, at the same tokens: real fine-tunes of the bundled model.

    python benchmarks/population.py --seeds 0 1 2 3 4 --schedules linear constant

Every contender is the service's own `Search`, one trial at a time, in one process without Ray. A budget is as many
training tokens as a population of 8 takes. Only what may change in the middle of a training varies, which is the best
case for population based training. `random` and the populations draw the same first trials; a fine-tune that two
contenders share is trained once, and counts for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import optuna  # noqa: E402

from hpsearch.basemodel import describe  # noqa: E402
from hpsearch.errors import Diverged  # noqa: E402
from hpsearch.finetune import Member, prepare  # noqa: E402
from hpsearch.finetune.prepare import Prepared  # noqa: E402
from hpsearch.finetune.snapshot import Snapshot  # noqa: E402
from hpsearch.results import Failure, Report, TrialState  # noqa: E402
from hpsearch.search import Asked, Decision, Search  # noqa: E402
from hpsearch.spec import StudySpec  # noqa: E402
from hpsearch.spec.defaults import default_params, resolve  # noqa: E402
from hpsearch.spec.finetune import FinetuneConfig  # noqa: E402

POPULATION, EPOCHS = 8, 4
RANDOM: dict[str, Any] = {"sampler": {"type": "random"}}
PBT: dict[str, Any] = {"type": "pbt", "population": POPULATION}
CONTENDERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "random": lambda _: {**RANDOM, "pruner": {"type": "none"}, "budget": {"trials": POPULATION}},
    "pbt, every epoch": lambda _: {**RANDOM, "pruner": PBT, "budget": {"trials": POPULATION}},
    "pbt, every half epoch": lambda _: {**RANDOM, "pruner": {**PBT, "interval": 1}, "budget": {"trials": POPULATION}},
    "auto": lambda tokens: {"budget": {"trials": None, "tokens": tokens}},
}
"""What each adds to the spec, given the tokens that a population takes."""


class Fits:
    """Fine-tunes, each trained once, as far as anybody has asked for it."""

    def __init__(self) -> None:
        self._known: dict[str, list[Report]] = {}
        self._members: dict[str, Member] = {}
        self._left: dict[tuple[str, int], Snapshot] = {}
        self._prepared: Prepared | None = None

    def after(self, config: FinetuneConfig, exposure: int) -> Report:
        """The first report of a fine-tune behind an exposure; -1 for the baseline."""
        self._prepared = self._prepared or prepare(config)
        last = config.earlier[-1].until if config.earlier else -1
        key = _key(config)
        if exposure < last:
            return self.after(config.at(last - 1), exposure)
        known = self._known.setdefault(key, [])
        while not known or known[-1].exposure <= exposure:
            known.append(self._next(config, key))
        return next(report for report in known if report.exposure > exposure)

    def _next(self, config: FinetuneConfig, key: str) -> Report:
        if key not in self._members:
            assert self._prepared is not None
            member = self._members[key] = Member(config, self._prepared)
            if not config.earlier:
                return member.reports[0]
            last = config.earlier[-1].until
            member.take_over(self._left[_key(config.at(last - 1)), last])
        member = self._members[key]
        while (report := member.advance()) is None:
            pass
        self._left[key, report.exposure] = member.snapshot()
        return report


def _key(config: FinetuneConfig) -> str:
    return json.dumps(config.curve_terms(), sort_keys=True)


def spec_of(folder: Path, schedule: str, seed: int, **changes: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "population",
            "seed": seed,
            "model": {"base": str(ROOT / "studies/models/pydoc-llama"), "base_learning_rate": 4e-3},
            "data": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")},
            "search_space": {
                "epochs": EPOCHS,
                "batch_size": 4,
                "lr_schedule": schedule,
                "learning_rate_multiplier": {"low": 0.03, "high": 10.0, "log": True},
                "prompt_loss_weight": {"low": 0.0, "high": 1.0},
                "dropout": {"low": 0.0, "high": 0.3},
                "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
            },
            **changes,
        }
    )


def searched(spec: StudySpec, examples: int, fits: Fits) -> tuple[float, int, int]:
    """The best value of a whole search, the tokens that it took, and how many trials it started."""
    model = describe(spec.model.base)
    params = default_params(spec, examples)
    search = Search(spec, optuna.storages.InMemoryStorage(), examples=examples, default_params=params)
    while (asked := search.ask()) is not None:
        config = asked.config or resolve(spec, asked.params, examples, model.model_type, model.parameters)
        search.start(asked.number, config)
        train(search, asked, config, examples, fits)
    trials = search.trials()
    best = min(trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None)
    return best, sum(trial.tokens for trial in trials), len(trials)


def train(search: Search, asked: Asked, config: FinetuneConfig, examples: int, fits: Fits) -> None:
    """One trial, until it ends or must wait."""
    reached, decision = -1 if asked.reported is None else asked.reported, Decision.GO_ON
    while reached < EPOCHS * examples and decision is Decision.GO_ON:
        try:
            report = fits.after(config, reached)
        except Diverged as error:
            search.fail(asked.number, Failure.DIVERGED, str(error))
            return
        reached = report.exposure
        decision = search.report(asked.number, report, "contract")
    if decision is Decision.PAUSE:
        search.pause(asked.number)
    elif decision is Decision.PRUNE:
        search.prune(asked.number)
    else:
        (trial,) = [trial for trial in search.trials() if trial.number == asked.number]
        best = min(trial.reports[1:], key=lambda report: report.validation_loss)
        search.complete(asked.number, best, "contract", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--schedules", nargs="+", default=["linear", "constant"])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--validation", type=int, default=20)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| schedule | seed | " + " | ".join(CONTENDERS) + " | (best validation loss; tokens; trials)")
    with tempfile.TemporaryDirectory() as scratch:
        for split, count in (("train", asked.examples), ("validation", asked.validation)):
            lines = (ROOT / f"studies/data/tickets/{split}.jsonl").read_text().splitlines()[:count]
            (Path(scratch) / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        for schedule in asked.schedules:
            found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for seed in asked.seeds:
                fits, tokens, cells = Fits(), 0, []
                for name, changes in CONTENDERS.items():
                    spec = spec_of(Path(scratch), schedule, seed, **changes(tokens))
                    best, used, trials = searched(spec, asked.examples, fits)
                    tokens = tokens or used
                    found[name].append(best)
                    cells.append(f"{best:.4f} {used / 1e3:.0f}k {trials}")
                print(f"| {schedule} | {seed} | " + " | ".join(cells) + " |", flush=True)
            for name, values in found.items():
                gaps = [value - other for value, other in zip(values, found["random"], strict=True)]
                wins = sum(gap < 0 for gap in gaps)
                print(
                    f"{schedule}, {name}: median {statistics.median(values):.4f}, "
                    f"median gap to random {statistics.median(gaps):+.4f}, better in {wins} of {len(gaps)}"
                )


if __name__ == "__main__":
    main()
