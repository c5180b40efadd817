"""Replays a search on recorded curves, as so many workers would see it, without waiting.

A worker trains one token in one unit of time. A policy is told a report when a worker would have made it, never before.
"""

from __future__ import annotations

import dataclasses
import gzip
import heapq
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpsearch.results.attributes import CONTINUES
from hpsearch.search.candidates import Candidates, improvement, params_at
from hpsearch.search.curve_policy import CurveSampler, _fitted, _known, _with_ends_of_running
from hpsearch.search.curves import Curves
from hpsearch.search.evidence import Evidence, trained

Params = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One config's curve; the reports do not include the baseline."""

    params: Params
    exposures: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: tuple[float, ...]
    failed: bool = False
    """It diverged after its last report."""


@dataclass(frozen=True)
class Table:
    """Configs and their curves."""

    name: str
    distributions: dict[str, BaseDistribution]
    rows: tuple[Row, ...]
    examples: int
    """Exposure of one epoch."""
    baseline: float
    reports_per_epoch: int = 2
    epochs: int | None = None
    """Of every row, when it does not vary."""
    defaults: Params | None = None
    """What the service tries first; of published tables there are none."""
    curve: Callable[[Params], Row] | None = None
    """Of any config, where the rows are only examples of it."""

    def __post_init__(self) -> None:
        best = np.array([min(row.losses, default=self.baseline) for row in self.rows])
        object.__setattr__(self, "least", float(best.min()))
        object.__setattr__(self, "middle", float(np.median(best)))
        object.__setattr__(self, "cost", float(np.mean([row.tokens[-1] for row in self.rows if row.tokens])))

    least: float = field(init=False)
    """Best loss of any row."""
    middle: float = field(init=False)
    """Best loss of the median row."""
    cost: float = field(init=False)
    """Mean tokens of a whole row."""

    def regret(self, loss: float) -> float:
        """0 for the table's best, 1 for what a median config reaches."""
        return (loss - self.least) / (self.middle - self.least)


def place(distribution: BaseDistribution, value: Any) -> float:
    """Where in [0, 1] a value lies."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(len(distribution.choices) - 1, 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def recorded(path: Path) -> Table:
    """A table of `record.py`."""
    from hpsearch.search.distributions import distributions
    from hpsearch.spec.defaults import default_hyperparameters
    from hpsearch.spec.space import SearchSpace

    table = json.loads(gzip.decompress(path.read_bytes()))
    levels = table["space"]["epochs"]["choices"]
    space = SearchSpace.model_validate({**table["space"], "epochs": {"low": min(levels), "high": max(levels)}})
    usual = default_hyperparameters(table["examples"], table["method"]).model_dump()
    rows = []
    for row in table["rows"]:
        curve = row["curve"][1:]
        exposures, tokens, losses, _ = zip(*curve, strict=True) if curve else ((), (), (), ())
        if curve:
            rows.append(Row(row["params"], exposures, tokens, losses, failed=row["failure"] is not None))
    return Table(
        path.name.removesuffix(".json.gz"),
        distributions(space),
        tuple(rows),
        table["examples"],
        table["rows"][0]["curve"][0][2],
        defaults={name: parameter.nearest(usual[name]) for name, parameter in space.varying().items()},
    )


LCBENCH_TASKS = ("3945", "7593", "126026", "167104", "168908", "189862")
LCBENCH_EPOCHS = 51
_LCBENCH_UNIT = 1000
_LCBENCH_INPUTS = (
    "epoch",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
_LCBENCH_CROSS_ENTROPY = 2
"""Of the outputs: the validation split's."""


def lcbench(folder: Path, task: str, rows: int = 1024) -> Table:
    """Configs of one task of LCBench by YAHPO Gym's surrogate of it (Apache-2.0): `lcbench/` of slds-lmu/yahpo_data.

    Needs onnxruntime. A report every third epoch, which counts as one here; it costs the same whatever the config.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    code = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][task]
    described = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
    numeric = [each for each in described if each["name"] not in ("OpenML_task_id", "epoch")]
    space: dict[str, BaseDistribution] = {}
    for each in numeric:
        kind = IntDistribution if each["type"] == "uniform_int" else FloatDistribution
        space[each["name"]] = kind(each["lower"], each["upper"], log=each["log"])
    from scipy.stats import qmc

    epochs = np.arange(3, LCBENCH_EPOCHS + 1, 3)
    made = []
    for point in qmc.Sobol(len(numeric), scramble=True, rng=int(task)).random(rows):
        params = {}
        for part, (name, kind) in zip(point, space.items(), strict=True):
            low, high = (math.log(kind.low), math.log(kind.high)) if kind.log else (kind.low, kind.high)
            value = low + part * (high - low)
            value = math.exp(value) if kind.log else value
            params[name] = round(value) if isinstance(kind, IntDistribution) else value
        continuous = np.array([[params.get(name, 0) for name in _LCBENCH_INPUTS]] * len(epochs), dtype=np.float32)
        continuous[:, 0] = epochs
        codes = np.full((len(epochs), 1), code, dtype=np.int32)
        (answer,) = session.run(None, {"x_cat": codes, "x_cont": continuous})
        made.append((params, answer[:, _LCBENCH_CROSS_ENTROPY].astype(float)))
    start = float(np.median([losses[0] for _, losses in made])) * 1.5
    steps = tuple(int(epoch) * _LCBENCH_UNIT for epoch in epochs)
    table = tuple(Row(params, steps, steps, tuple(losses.tolist())) for params, losses in made)
    every = int(epochs[0])
    return Table(f"lcbench-{task}", space, table, every * _LCBENCH_UNIT, start, reports_per_epoch=1, epochs=len(epochs))


class Snapped(optuna.samplers.BaseSampler):
    """Another sampler's draw, moved to the nearest row that nobody has taken: then every policy is told the truth.

    Where the table knows the curve of any config, the draw stays where it is.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, rows: Rows) -> None:
        self.sampler, self.rows = sampler, rows

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self.rows.table.distributions

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Params:
        self.sampler.before_trial(study, trial)
        knows_space = isinstance(self.sampler, CurveSampler)  # as `Draw` tells it
        relative = search_space if knows_space else self.sampler.infer_relative_search_space(study, trial)
        drawn = self.sampler.sample_relative(study, trial, relative)
        for name, distribution in search_space.items():
            if name not in drawn:
                drawn[name] = self.sampler.sample_independent(study, trial, name, distribution)
        return self.rows.take(trial.number, drawn)

    def sample_independent(self, *_: Any) -> Any:
        raise AssertionError("every parameter was drawn together")

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.sampler.after_trial(study, trial, state, values)


CLOSENESS = {"epochs": 4.0, "learning_rate_multiplier": 3.0, "learning_rate": 3.0, "batch_size": 2.0}
"""How much a parameter counts where the nearest row is looked for; 1 for the others."""


class Rows:
    """The rows of a table that one search has not taken yet."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.taken: dict[int, Row] = {}
        self._weights = np.array([CLOSENESS.get(name, 1.0) for name in table.distributions])
        self._points = np.array([self._point(row.params) for row in table.rows])
        self._free = np.ones(len(table.rows), dtype=bool)

    def _point(self, params: Params) -> NDArray[np.float64]:
        places = [place(distribution, params[name]) for name, distribution in self.table.distributions.items()]
        return self._weights * np.array(places)

    def take(self, number: int, params: Params) -> Params:
        if self.table.curve is not None:
            self.taken[number] = self.table.curve(params)
            return params
        distance = np.square(self._points - self._point(params)).sum(axis=1)
        row = int(np.argmin(np.where(self._free, distance, np.inf)))
        self._free[row] = False
        self.taken[number] = self.table.rows[row]
        return self.table.rows[row].params

    @property
    def any_free(self) -> bool:
        return bool(self._free.any())


class Policy(Protocol):
    """What is compared."""

    def ask(self) -> tuple[int, Row, int]:
        """The next trial's number, its row, and how many of its reports were made before."""

    def report(self, number: int, exposure: int, loss: float, is_last: bool) -> bool:
        """Whether the trial is stopped."""

    def complete(self, number: int) -> None: ...

    def fail(self, number: int) -> None: ...


@dataclass
class Outcome:
    """What a search found, and when."""

    tokens: list[float] = field(default_factory=list)
    """Spent by all workers when the best loss fell."""
    best: list[float] = field(default_factory=list)
    """Of any report so far."""
    complete: float = math.inf
    """The best loss among trials that ran to their end."""
    spent: float = 0.0
    """By all workers, until the last report."""
    started: int = 0
    completed: int = 0

    def at(self, tokens: float) -> float:
        """The best loss seen by then; infinite before the first report."""
        index = np.searchsorted(self.tokens, tokens, side="right") - 1
        return math.inf if index < 0 else self.best[index]

    def reaches(self, loss: float) -> float:
        """The tokens until the loss was this low; infinite when it never was."""
        return next((spent for spent, best in zip(self.tokens, self.best, strict=True) if best <= loss), math.inf)


def replay(table: Table, policy: Policy, workers: int, budget: float) -> Outcome:
    """One search. It ends when all workers together have spent the budget."""
    outcome, order = Outcome(), itertools.count()
    waiting: list[tuple[float, int, int, Row, int]] = []  # time of the next report, order, number, row, report

    def start(now: float) -> None:
        try:
            number, row, index = policy.ask()
        except StopIteration:
            return
        outcome.started += 1
        cost = row.tokens[index] - (row.tokens[index - 1] if index else 0)
        heapq.heappush(waiting, (now + cost, next(order), number, row, index))

    for _ in range(workers):
        start(0.0)
    best = math.inf
    while waiting:
        now, _, number, row, index = heapq.heappop(waiting)
        if now * workers > budget:
            break
        outcome.spent += row.tokens[index] - (row.tokens[index - 1] if index else 0)
        if row.losses[index] < best:
            best = row.losses[index]
            outcome.tokens.append(now * workers)
            outcome.best.append(best)
        is_last = index + 1 == len(row.losses)
        stopped = policy.report(number, row.exposures[index], row.losses[index], is_last and not row.failed)
        if not is_last and not stopped:
            heapq.heappush(
                waiting, (now + row.tokens[index + 1] - row.tokens[index], next(order), number, row, index + 1)
            )
            continue
        if is_last and row.failed and not stopped:
            policy.fail(number)
        elif is_last and not stopped:
            outcome.complete = min(outcome.complete, *row.losses)
            outcome.completed += 1
            policy.complete(number)
        start(now)
    return outcome


class Searched:
    """A policy made of an Optuna sampler and pruner, asked as `hpsearch.search.Search` asks them."""

    def __init__(
        self,
        table: Table,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        pruner: optuna.pruners.BasePruner,
        name: str,
        first: Params | None = None,
    ) -> None:
        self.table, self.sampler, self.first = table, sampler, first
        self.rows = Rows(table)
        self.study = optuna.create_study(
            study_name=name, pruner=pruner
        )  # Hyperband shares out its brackets by the name
        self.live: dict[int, optuna.Trial] = {}
        self.losses: dict[int, list[float]] = {}

    def ask(self) -> tuple[int, Row, int]:
        if not self.rows.any_free:
            raise StopIteration
        number = len(self.study.get_trials(deepcopy=False))
        draws = self.sampler(number)
        if self.first is not None and number == 0:
            draws = optuna.samplers.PartialFixedSampler(self.first, optuna.samplers.RandomSampler(seed=0))
        self.study.sampler = Snapped(draws, self.rows)
        trial = self.study.ask(fixed_distributions=self.table.distributions)
        self.live[trial.number], self.losses[trial.number] = trial, []
        epochs = trial.params.get("epochs", self.table.epochs)
        trial.set_user_attr("config", {"hyperparameters": {"epochs": epochs}})
        trial.set_user_attr("curve", [{"exposure": 0, "epoch": 0.0}])
        trial.report(self.table.baseline, 0)
        return trial.number, self.rows.taken[trial.number], 0

    def report(self, number: int, exposure: int, loss: float, is_last: bool) -> bool:
        trial = self.live[number]
        curve = [*trial.user_attrs["curve"], {"exposure": exposure, "epoch": exposure / self.table.examples}]
        trial.set_user_attr("curve", curve)
        trial.report(loss, exposure)
        self.losses[number].append(loss)
        poor = trial.should_prune()
        if is_last or not poor:
            return False
        self.study.tell(self.live.pop(number), state=optuna.trial.TrialState.PRUNED)
        return True

    def complete(self, number: int) -> None:
        self.study.tell(self.live.pop(number), min(self.losses[number]))

    def fail(self, number: int) -> None:
        trial = self.live.pop(number)
        trial.set_user_attr("failure", "diverged")
        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)


class Thawing(Searched):
    """The same, but a stopped trial is taken up again where it promises more for each token than a new one.

    What it promises is its expected improvement by the model of curves, as a new trial's is; it pays for the rest of
    its curve only. It goes on as the service lets people continue a pruned trial.
    """

    def ask(self) -> tuple[int, Row, int]:
        parked = self._parked()
        if not parked:
            return super().ask()
        curves, baseline = _known(self.study)
        evidence = Evidence(curves, self.table.distributions, baseline)
        _, fitted = _fitted(self.study, evidence.points.x.shape[1])
        model = _with_ends_of_running(Curves(evidence.points, evidence.y, fitted), evidence, curves)
        epochs = np.array([self._epochs(trial.params) for trial in parked])
        known = [trained(t.params, own, {}) for t, own in zip(parked, epochs, strict=True)]
        ends = evidence.at(known, epochs, [t.number for t in parked])
        left = epochs * [1 - len(self.losses[t.number]) / len(self.rows.taken[t.number].losses) for t in parked]
        worth = improvement(*model.predict(ends), evidence.target) / left
        points = np.random.default_rng(len(curves)).random((512, len(evidence.distributions)))
        fresh = Candidates.at(points, evidence, None).promises(model, evidence)
        best = int(fresh.argmax())
        if worth.max() <= fresh[best] / self._epochs(params_at(evidence.distributions, points[best])):
            return super().ask()
        return self._take_up(parked[int(worth.argmax())])

    def _epochs(self, params: Params) -> float:
        return float(params.get("epochs", self.table.epochs))

    def _parked(self) -> list[optuna.trial.FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        gone_on = {trial.user_attrs.get(CONTINUES) for trial in trials}
        return [t for t in trials if t.state == optuna.trial.TrialState.PRUNED and t.number not in gone_on]

    def _take_up(self, parked: optuna.trial.FrozenTrial) -> tuple[int, Row, int]:
        row = self.rows.taken[parked.number]
        kept = {name: value for name, value in parked.user_attrs.items() if name in ("config", "curve")}
        self.study.enqueue_trial(parked.params, user_attrs={CONTINUES: parked.number, **kept})
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)
        trial = self.study.ask(fixed_distributions=self.table.distributions)
        for step, loss in parked.intermediate_values.items():
            trial.report(loss, step)
        self.live[trial.number], self.rows.taken[trial.number] = trial, row
        self.losses[trial.number] = list(self.losses[parked.number])
        return trial.number, row, len(self.losses[trial.number])


class Stock:
    """Ray Tune's own OptunaSearch and ASHAScheduler, asked as Tune asks them."""

    def __init__(self, table: Table, seed: int, grace_period: int) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        self.rows = Rows(table)
        sampler = Snapped(optuna.samplers.TPESampler(seed=seed), self.rows)
        self.searcher = OptunaSearch(space=table.distributions, metric="loss", mode="min", sampler=sampler)
        longest = max(len(row.losses) for row in table.rows)
        self.scheduler = ASHAScheduler(metric="loss", mode="min", max_t=longest, grace_period=grace_period)
        self.trials: dict[int, _StockTrial] = {}

    def ask(self) -> tuple[int, Row, int]:
        if not self.rows.any_free:
            raise StopIteration
        number = len(self.trials)
        trial = self.trials[number] = _StockTrial(str(number))
        self.searcher.suggest(trial.trial_id)
        self.scheduler.on_trial_add(None, trial)
        return number, self.rows.taken[number], 0

    def report(self, number: int, exposure: int, loss: float, is_last: bool) -> bool:
        trial = self.trials[number]
        trial.result = {"loss": loss, "training_iteration": trial.result.get("training_iteration", 0) + 1}
        if is_last:
            return False
        self.searcher.on_trial_result(trial.trial_id, trial.result)
        if self.scheduler.on_trial_result(None, trial, trial.result) == self.scheduler.CONTINUE:
            return False
        self._end(trial)
        return True

    def complete(self, number: int) -> None:
        trial = self.trials[number]
        self.scheduler.on_trial_complete(None, trial, trial.result)
        self._end(trial)

    def fail(self, number: int) -> None:
        self.searcher.on_trial_complete(self.trials[number].trial_id, error=True)

    def _end(self, trial: _StockTrial) -> None:
        # As Tune does: an early-stopped trial is told like one that ran to its end, with its last value.
        self.searcher.on_trial_complete(trial.trial_id, trial.result)


@dataclasses.dataclass
class _StockTrial:
    trial_id: str
    result: dict[str, Any] = field(default_factory=dict)
