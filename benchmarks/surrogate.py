"""Any config's curve, by a surrogate fitted to recorded ones: a search is then not tied to a few hundred rows.

    python benchmarks/surrogate.py      # its error on rows that it was not fitted to, for every recorded table

An ensemble of small neural networks, as YAHPO Gym's: params and progress in, the logarithm of the validation loss out;
its mean is the curve. No contender knows anything of it, and it is of another family than our policy's own model. A
config's own luck is smoothed away. Tokens are not predicted but known: all configs of a table read the same examples in
the same order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from replay import Params, Row, Table, place, recorded
from scipy.stats import qmc, spearmanr

from hpsearch.search.evidence import values_at

CURVES = Path(__file__).resolve().parent / "curves"
MEMBERS, WIDTH, STEPS = 5, 64, 1500
SAMPLE = 4096
"""Configs among which the best and the median one are looked for."""

Array = NDArray[np.float64]


class Surrogate:
    """Fitted to the rows of a table.

    Args:
        table: Whose space, examples and baseline count.
        rows: What it is fitted to.
    """

    def __init__(self, table: Table, rows: Sequence[Row]) -> None:
        self._table = table
        inputs = np.vstack([self._inputs(row.params, row.exposures) for row in rows])
        losses = np.log(np.concatenate([np.minimum(row.losses, table.baseline * 1.5) for row in rows]))
        self._middle, self._scale = float(losses.mean()), float(losses.std())
        weight = np.concatenate([np.full(len(row.losses), 1 / len(row.losses)) for row in rows])
        self._members = [
            _network(inputs, (losses - self._middle) / self._scale, weight, seed) for seed in range(MEMBERS)
        ]

    def losses(self, params: Params, exposures: Sequence[int]) -> tuple[float, ...]:
        """At each exposure."""
        inputs = self._inputs(params, exposures)
        mean = np.mean([member(inputs) for member in self._members], axis=0)
        return tuple(np.exp(self._middle + self._scale * mean).tolist())

    def _inputs(self, params: Params, exposures: Sequence[int]) -> Array:
        """[reports, parameters + 2]: the params, how far, and which part of the trial's own schedule."""
        own = [2 * place(distribution, params[name]) - 1 for name, distribution in self._table.distributions.items()]
        epochs = np.array(exposures) / self._table.examples
        return np.column_stack([np.tile(own, (len(epochs), 1)), np.log2(epochs) / 2, 2 * epochs / params["epochs"] - 1])


def _network(inputs: Array, losses: Array, weight: Array, seed: int):
    """One member of the ensemble, as a function on arrays."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTH, 1),
    )
    x, y, w = (torch.tensor(each, dtype=torch.float32) for each in (inputs, losses, weight / weight.mean()))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (w * torch.nn.functional.huber_loss(net(x)[:, 0], y, delta=0.5, reduction="none")).mean().backward()
        optimizer.step()
        schedule.step()
    weights = [parameter.detach().double().numpy() for parameter in net.parameters()]

    def answer(asked: Array) -> Array:
        for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            asked = np.tanh(asked @ matrix.T + bias)
        return (asked @ weights[-2].T + weights[-1])[:, 0]

    return answer


def continuous(path: Path) -> Table:
    """A recorded table in which any config can be drawn."""
    table = recorded(path)
    model = Surrogate(table, table.rows)
    longest = {row.params["batch_size"]: row for row in sorted(table.rows, key=lambda row: len(row.tokens))}

    @functools.cache
    def known(*values: float) -> Row:
        params = dict(zip(table.distributions, values, strict=True))
        alike = longest[params["batch_size"]]
        reports = round(params["epochs"] * table.reports_per_epoch)
        exposures = alike.exposures[:reports]
        return Row(params, exposures, alike.tokens[:reports], model.losses(params, exposures))

    def curve(params: Params) -> Row:
        return known(*(params[name] for name in table.distributions))

    rows = [curve(_params(table, point)) for point in qmc.Sobol(len(table.distributions), rng=0).random(SAMPLE)]
    dice = np.random.default_rng(0)
    for spread in (0.2, 0.1, 0.05, 0.02):  # the best there is: no search does so much
        best = sorted(rows, key=lambda row: min(row.losses))[:8]
        near = np.repeat([_point(table, row.params) for row in best], 64, axis=0)
        near = np.clip(near + spread * dice.standard_normal(near.shape), 0, 1)
        rows += sorted((curve(_params(table, point)) for point in near), key=lambda row: min(row.losses))[:1]
    name = f"{table.name}-continuous"
    return dataclasses.replace(table, name=name, rows=tuple(rows), curve=curve)


def _point(table: Table, params: Params) -> Array:
    return np.array([place(distribution, params[name]) for name, distribution in table.distributions.items()])


def _params(table: Table, point: Array) -> Params:
    return {
        name: values_at(distribution, np.array([part]))[0]
        for part, (name, distribution) in zip(point, table.distributions.items(), strict=True)
    }


def check(path: Path, folds: int = 5) -> str:
    """A line of a table: how well curves are predicted that the surrogate was not fitted to."""
    table = recorded(path)
    order = np.random.default_rng(0).permutation(len(table.rows))
    told, guessed, ends, guessed_ends = [], [], [], []
    for fold in range(folds):
        kept = [table.rows[row] for place, row in enumerate(order) if place % folds != fold]
        model = Surrogate(table, kept)
        for row in (table.rows[row] for row in order[fold::folds]):
            losses = model.losses(row.params, row.exposures)
            told += row.losses
            guessed += losses
            ends.append(min(row.losses))
            guessed_ends.append(min(losses))
    logs, guessed_logs = np.log(np.minimum(told, 1.5 * table.baseline)), np.log(guessed)
    explained = 1 - np.square(logs - guessed_logs).mean() / logs.var()
    good = np.array(ends) <= np.quantile(ends, 0.25)
    errors = np.abs(np.log(ends) - np.log(guessed_ends))
    ranks = [spearmanr(np.array(ends)[part], np.array(guessed_ends)[part]).statistic for part in (..., good)]
    return (
        f"| {table.name} | {len(table.rows)} | {explained:.3f} | {ranks[0]:.2f} | {ranks[1]:.2f} | "
        f"{np.median(errors):.1%} | {np.median(errors[good]):.1%} |"
    )


def main() -> None:
    print(
        "| table | rows | variance explained, all reports | rank correlation of the rows' best | of the best quarter's "
        "| error of the best loss, median | of the best quarter's |"
    )
    print("|---|---|---|---|---|---|---|")
    for path in sorted(CURVES.glob("*.json.gz")):
        print(check(path), flush=True)


if __name__ == "__main__":
    main()
