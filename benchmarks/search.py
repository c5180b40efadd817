"""Search policies on recorded curves: regret against the tokens spent.

    python benchmarks/search.py compare                              # every table below benchmarks/curves
    python benchmarks/search.py compare --workers 1 --seeds 50 --plot search.svg
    python benchmarks/search.py compare --continuous                 # any config, by a surrogate of the same curves
    python benchmarks/search.py compare --lcbench FOLDER             # and published curves
    python benchmarks/search.py winners                              # who stops a trial that would have won?

Every contender is the real thing: Optuna's samplers and pruners as `hpsearch.search` builds them, Ray Tune's own
OptunaSearch and ASHAScheduler for `stock`. A draw is moved to the nearest row of the table that the search has not
taken yet, and the sampler is told that row's params. Only who says so gets the `auto` defaults as first trial, and
knows of them; with *wrong defaults*, these are the params of a row that is worse than nine of ten.

The incumbent is the best validation loss at any report of any trial so far; `complete` is the best one of trials that
ran to their end. Regret is 0 for the table's best row and 1 for its median row. The whole budget is as many tokens as
`--budget` average rows take. Cost is training tokens; evaluation is free, and so is thinking.

FOLDER is `lcbench/` of https://github.com/slds-lmu/yahpo_data (Apache-2.0): YAHPO Gym's surrogate of LCBench. Needs
`pip install -e '.[dev,bench]'`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from replay import (
    LCBENCH_TASKS,
    Outcome,
    Params,
    Policy,
    Row,
    Searched,
    Stock,
    Table,
    Thawing,
    lcbench,
    recorded,
    replay,
)

from hpsearch.search.pruners import pruner
from hpsearch.search.samplers import sampler
from hpsearch.spec.pruner import (
    CurvesPrunerSpec,
    HyperbandSpec,
    NoPrunerSpec,
    PercentileSpec,
    PrunerSpec,
    SuccessiveHalvingSpec,
    WilcoxonSpec,
)
from hpsearch.spec.sampler import CurvesSamplerSpec, RandomSpec, SamplerSpec, TPESpec

CURVES = Path(__file__).resolve().parent / "curves"
GOAL = "TPE + Hyperband"
Contender = Callable[[Table, int], Policy]


def searched(
    draws: SamplerSpec,
    stops: PrunerSpec,
    defaults: Callable[[Table], Params | None] = lambda _table: None,
    kind: type[Searched] = Searched,
) -> Contender:
    """As the service builds it from a spec; with defaults, which are the first trial, or without."""

    def make(table: Table, seed: int) -> Policy:
        most = table.epochs or max(int(row.params["epochs"]) for row in table.rows)
        rule = pruner(stops, table.examples, table.reports_per_epoch, most)
        first = defaults(table)
        return kind(table, lambda number: sampler(draws, seed, number, defaults=first), rule, f"replay-{seed}", first)

    return make


def own(table: Table) -> Params | None:
    """What the service tries first."""
    return table.defaults


def wrong(table: Table) -> Params:
    """A row's that is worse than nine of ten."""
    ordered = sorted(table.rows, key=lambda row: min(row.losses))
    return ordered[len(ordered) * 9 // 10].params


CONTENDERS: dict[str, Contender] = {
    "random": searched(RandomSpec(), NoPrunerSpec()),
    "random + ASHA": searched(RandomSpec(), SuccessiveHalvingSpec()),
    "TPE": searched(TPESpec(), NoPrunerSpec()),
    "TPE + median": searched(TPESpec(), PercentileSpec()),
    GOAL: searched(TPESpec(), HyperbandSpec()),
    "TPE + ASHA": searched(TPESpec(), SuccessiveHalvingSpec()),
    "stock Ray": lambda table, seed: Stock(table, seed, grace_period=2),
    "ours": searched(CurvesSamplerSpec(), CurvesPrunerSpec()),
}
FIRST, WRONG = ", defaults first", ", wrong defaults"
OURS = ("ours", f"ours{FIRST}")
PARTS: dict[str, Contender] = {
    f"{GOAL}{FIRST}": searched(TPESpec(), HyperbandSpec(), own),
    f"ours{FIRST}": searched(CurvesSamplerSpec(), CurvesPrunerSpec(), own),
    f"ours, no prior{FIRST}": searched(CurvesSamplerSpec(prior=0), CurvesPrunerSpec(), own),
    f"{GOAL}{WRONG}": searched(TPESpec(), HyperbandSpec(), wrong),
    f"ours{WRONG}": searched(CurvesSamplerSpec(), CurvesPrunerSpec(), wrong),
    f"ours, no prior{WRONG}": searched(CurvesSamplerSpec(prior=0), CurvesPrunerSpec(), wrong),
    "ours, two reports": searched(CurvesSamplerSpec(), CurvesPrunerSpec(min_reports=2)),
    "ours, parking": searched(CurvesSamplerSpec(), CurvesPrunerSpec(), kind=Thawing),
    "curves + none": searched(CurvesSamplerSpec(), NoPrunerSpec()),
    "curves + ASHA": searched(CurvesSamplerSpec(), SuccessiveHalvingSpec()),
    "TPE + curves": searched(TPESpec(), CurvesPrunerSpec()),
}
"""With the first trial that every study of the service has, and ours, half by half."""


def tables(asked: argparse.Namespace) -> list[Table]:
    make, suffix = recorded, ""
    if asked.continuous:
        from surrogate import continuous

        make, suffix = continuous, "-continuous"
    paths = {f"{path.name.removesuffix('.json.gz')}{suffix}": path for path in sorted(CURVES.glob("*.json.gz"))}
    found = [make(path) for name, path in paths.items() if not asked.tables or name in asked.tables]
    if asked.lcbench is None:
        print("LCBench is left out: no --lcbench FOLDER.\n")
    else:
        found += [lcbench(asked.lcbench, task) for task in LCBENCH_TASKS]
    return [table for table in found if not asked.tables or table.name in asked.tables]


# -- regret against tokens ---------------------------------------------------------------------------------------------


def compare(asked: argparse.Namespace) -> None:
    figure = []
    for table in tables(asked):
        budget = asked.budget * table.cost
        print(
            f"### {table.name}: {len(table.rows)} rows, {asked.workers} workers, {asked.seeds} seeds, "
            f"{asked.budget:g} average rows = {budget:,.0f} tokens\n"
        )
        print("| | regret at 12.5 % | 25 % | 50 % | 100 % of the tokens | complete | to the goal | started | seconds |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        outcomes: dict[str, list[Outcome]] = {}
        taken: dict[str, float] = {}
        for name in [GOAL, *(name for name in asked.contenders if name != GOAL)]:
            started = time.process_time()
            make = (CONTENDERS | PARTS)[name]
            seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
            outcomes[name] = [replay(table, make(table, seed), asked.workers, budget) for seed in seeds]
            taken[name] = (time.process_time() - started) / asked.seeds
        goal = statistics.median(outcome.at(budget) for outcome in outcomes[GOAL])
        for name in asked.contenders:
            print(_line(table, name, outcomes[name], budget, goal, taken[name]), flush=True)
        print()
        figure.append((table, budget, outcomes))
    if asked.plot:
        plot(figure, asked.plot)


def _line(table: Table, name: str, outcomes: list[Outcome], budget: float, goal: float, seconds: float) -> str:
    cells = [name]
    for part in (0.125, 0.25, 0.5, 1.0):
        low, middle, high = np.percentile([_regret(table, each, part * budget) for each in outcomes], [25, 50, 75])
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    complete = statistics.median(table.regret(min(each.complete, table.baseline)) for each in outcomes)
    reached = statistics.median_low(each.reaches(goal) for each in outcomes) / budget
    cells += [f"{complete:.3f}", f"{reached:.2f}" if math.isfinite(reached) else "-"]
    cells += [f"{statistics.mean(each.started for each in outcomes):.0f}", f"{seconds:.2f}"]
    return "| " + " | ".join(cells) + " |"


def _regret(table: Table, outcome: Outcome, tokens: float) -> float:
    """Before the first report there is the untouched model."""
    return table.regret(min(outcome.at(tokens), table.baseline))


def plot(figure: list[tuple[Table, float, dict[str, list[Outcome]]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "hpsearch"
    from matplotlib import pyplot as plt

    columns = min(len(figure), 3)
    rows = -(-len(figure) // columns)
    picture, places = plt.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False)
    for place, (table, budget, outcomes) in zip(places.flat, figure, strict=False):
        parts = np.linspace(0.05, 1, 60)
        for name, own in outcomes.items():
            regrets = np.array([[_regret(table, each, part * budget) for part in parts] for each in own])
            low, middle, high = np.percentile(np.maximum(regrets, 1e-3), [25, 50, 75], axis=0)
            (line,) = place.plot(parts * 100, middle, label=name, lw=2.4 if name in OURS else 1.2)
            if name in (*OURS, GOAL):
                place.fill_between(parts * 100, low, high, color=line.get_color(), alpha=0.15, lw=0)
        place.set(yscale="log", title=table.name, xlabel="% of the tokens", ylabel="regret (median, quartiles)")
    for place in places.flat[len(figure) :]:
        place.set_axis_off()
    picture.tight_layout()
    lines, names = places.flat[0].get_legend_handles_labels()
    picture.legend(lines, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize=8)
    picture.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    print(f"plot: {path}")


# -- stopped winners ---------------------------------------------------------------------------------------------------


class Few:
    """A policy that starts no more than so many trials."""

    def __init__(self, policy: Policy, trials: int) -> None:
        self.policy, self.left = policy, trials
        self.rows: list[Row] = []
        self.stopped: set[int] = set()

    def ask(self) -> tuple[int, Row, int]:
        if not self.left:
            raise StopIteration
        self.left -= 1
        number, row, index = self.policy.ask()
        self.rows.append(row)
        return number, row, index

    def report(self, number: int, exposure: int, loss: float, is_last: bool) -> bool:
        stops = self.policy.report(number, exposure, loss, is_last)
        if stops:
            self.stopped.add(number)
        return stops

    def complete(self, number: int) -> None:
        self.policy.complete(number)

    def fail(self, number: int) -> None:
        self.policy.fail(number)


RULES: dict[str, PrunerSpec] = {
    "none": NoPrunerSpec(),
    "ASHA (equal exposure)": SuccessiveHalvingSpec(),
    "Hyperband (equal exposure)": HyperbandSpec(),
    "median (equal exposure)": PercentileSpec(),
    "Wilcoxon (equal exposure)": WilcoxonSpec(),
    "curves (predicted end)": CurvesPrunerSpec(),
    "curves, two reports first": CurvesPrunerSpec(min_reports=2),
}


def winners(asked: argparse.Namespace) -> None:
    """The same random trials under every rule: how often was the one stopped that would have been best?"""
    for table in tables(asked):
        print(f"### {table.name}: {asked.trials} random trials, {asked.workers} workers, {asked.seeds} seeds\n")
        print("| rule | winner stopped | regret to the winner, mean | tokens of all |")
        print("|---|---|---|---|", flush=True)
        for name, rule in RULES.items():
            lost, behind, spent = [], [], []
            for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
                policy = Few(searched(RandomSpec(), rule)(table, seed), asked.trials)
                outcome = replay(table, policy, asked.workers, math.inf)
                best = min(range(len(policy.rows)), key=lambda number: min(policy.rows[number].losses))
                lost.append(best in policy.stopped)
                behind.append(table.regret(outcome.best[-1]) - table.regret(min(policy.rows[best].losses)))
                spent.append(outcome.spent / sum(row.tokens[-1] for row in policy.rows))
            print(f"| {name} | {np.mean(lost):.0%} | {np.mean(behind):.3f} | {np.mean(spent):.0%} |", flush=True)
        print()


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in (("compare", compare), ("winners", winners)):
        part = commands.add_parser(name)
        part.set_defaults(command=command)
        part.add_argument("--seeds", type=int, default=50)
        part.add_argument("--first-seed", type=int, default=0)
        part.add_argument("--workers", type=int, default=4)
        part.add_argument("--tables", nargs="+", default=[], help="their names; all by default")
        part.add_argument("--continuous", action="store_true", help="any config of the own tables, by a surrogate")
        part.add_argument("--lcbench", type=Path, help="folder of YAHPO Gym's surrogate")
        if command is compare:
            part.add_argument("--budget", type=float, default=12, help="average rows")
            part.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=[*CONTENDERS, *PARTS])
            part.add_argument("--plot", type=Path)
        else:
            part.add_argument("--trials", type=int, default=24)
    asked = parser.parse_args()
    asked.command(asked)


if __name__ == "__main__":
    main()
