"""The model of learning curves beside a Gaussian process written out, and what is decided by it on made-up curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.special import ndtri

from hpsearch.search import Decision, curve_policy
from hpsearch.search import evidence as evidence_module
from hpsearch.search.curve_policy import FITTED, GROWN
from hpsearch.search.curves import Curves, Points, fit, prior
from hpsearch.search.evidence import Evidence
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, spec_of

SPACE: dict[str, Any] = {
    "epochs": {"low": 1, "high": 8},
    "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
}


def some_points(count: int, seed: int, trials: int) -> Points:
    dice = np.random.default_rng(seed)
    places = dice.random((trials, 3))
    trial = np.arange(count) % trials
    return Points(places[trial], dice.random((count, 3)), trial)


def covariance(one: Points, two: Points, theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """The module's formula, a pair at a time."""
    lengths, (a, b, c, own, _) = np.exp(theta[:6]), np.exp(theta[6:])
    rows = []
    for i in range(len(one.x)):
        row = []
        for j in range(len(two.x)):
            r = math.sqrt(5 * sum(((one.x[i] - two.x[j]) / lengths[:3]) ** 2))
            x = (1 + r + r * r / 3) * math.exp(-r)
            t = math.exp(-0.5 * sum(((one.t[i] - two.t[j]) / lengths[3:]) ** 2))
            row.append(a * t + x * (b + c * t) + own * (one.trial[i] == two.trial[j] >= 0))
        rows.append(row)
    return np.array(rows)


class TestTheModel:
    def test_it_predicts_as_a_gaussian_process_written_out_does(self) -> None:
        known, asked, theta = some_points(14, 0, 5), some_points(7, 1, 5), prior(3) + 0.1
        y = np.random.default_rng(2).standard_normal(14)
        mean, spread = Curves(known, y, theta).predict(asked)
        inverse = np.linalg.inv(covariance(known, known, theta) + (math.exp(theta[-1]) + 1e-8) * np.eye(14))
        across = covariance(known, asked, theta)
        assert mean == pytest.approx(across.T @ inverse @ y, abs=1e-9)
        variance = np.diag(covariance(asked, asked, theta) - across.T @ inverse @ across)
        assert spread**2 == pytest.approx(variance, abs=1e-9)

    def test_it_is_fitted_to_the_top_of_its_posterior(self) -> None:
        known = some_points(10, 3, 4)
        y = np.sin(5 * known.x[:, 0]) + known.t[:, 1]
        y = (y - y.mean()) / y.std()
        spreads = np.array([0.8] * 6 + [1.0] * 5)

        def unlikeliness(theta: NDArray[np.float64]) -> float:
            k = covariance(known, known, theta) + (math.exp(theta[-1]) + 1e-8) * np.eye(10)
            gap = (theta - prior(3)) / spreads
            return float(0.5 * y @ np.linalg.solve(k, y) + 0.5 * np.linalg.slogdet(k)[1] + 0.5 * gap @ gap)

        fitted = fit(known, y, iterations=200)
        assert unlikeliness(fitted) < unlikeliness(prior(3)) - 1
        assert np.abs(approx_fprime(fitted, unlikeliness, 1e-6)).max() < 0.02


def loss_of(params: dict[str, Any], epoch: float) -> float:
    """Longer is better; a part of the loss goes only when the learning rate falls, at the end of a trial's schedule."""
    rate, epochs = float(params["learning_rate_multiplier"]), int(params["epochs"])
    floor = 1.0 + 0.5 * math.log10(rate) ** 2 - 0.05 * epochs
    return floor + 0.6 * math.exp(-epoch) + 0.8 * (1 - epoch / epochs)


PAST = [
    {"epochs": epochs, "learning_rate_multiplier": rate}
    for epochs, rate in ((1, 0.05), (2, 0.2), (2, 3), (1, 4), (2, 0.7), (4, 2.5), (1, 0.3), (2, 1.2), (2, 6), (4, 0.4))
]
"""Enough to know what falls at the end of a schedule."""


def after_the_past(pruner: str, then: dict[str, Any], past: Sequence[dict[str, Any]] = PAST, **changes: Any) -> Driven:
    """A search whose next trial has the params `then`."""
    spec = spec_of(99, search_space=SPACE, pruner={"type": pruner}, first_trials=[*past, then], **changes)
    driven = Driven(optuna.storages.InMemoryStorage(), spec)
    for _ in range(1 + len(past)):  # and the defaults
        train(driven)
    return driven


def train(driven: Driven) -> float:
    """The next trial, a report for each half epoch; the epoch where it ended, 0 when there was none."""
    asked = driven.ask()
    if asked is None:
        return 0.0
    epochs = int(asked.params["epochs"])
    best = None
    for half in range(2 * epochs + 1):
        report = a_report(half * EXAMPLES // 2, 4.0 if half == 0 else loss_of(asked.params, half / 2))
        best = report if half and (best is None or report.validation_loss < best.validation_loss) else best
        if driven.search.report(asked.number, report, CONTRACT) == Decision.PRUNE:
            driven.search.prune(asked.number)
            return half / 2
    assert best is not None
    driven.search.complete(asked.number, best, CONTRACT, "artifacts")
    return float(epochs)


def best_of(driven: Driven) -> float:
    return min(trial.value for trial in driven.trials() if trial.value is not None)


class TestTheRule:
    def test_a_decaying_trial_is_not_judged_by_those_that_have_decayed(self) -> None:
        winner = {"epochs": 8, "learning_rate_multiplier": 1.1}
        assert loss_of(winner, 2) > max(loss_of(PAST[place], 2) for place in (2, 4, 7))  # far behind at epoch 2
        assert train(after_the_past("successive_halving", winner)) < 8
        assert train(after_the_past("curves", winner)) == 8

    def test_a_hopeless_trial_is_stopped_early_even_with_its_decay_to_come(self) -> None:
        assert train(after_the_past("curves", {"epochs": 8, "learning_rate_multiplier": 0.011})) <= 1

    @pytest.mark.parametrize("rate", [0.3, 1.1, 2.0])
    def test_a_second_trial_that_beats_the_first_goes_on_to_its_end(self, rate: float) -> None:
        winner = {"epochs": 8, "learning_rate_multiplier": rate}
        assert loss_of(winner, 8) < loss_of({"epochs": 4, "learning_rate_multiplier": 1}, 4)  # the defaults
        assert train(after_the_past("curves", winner, past=())) == 8

    @pytest.mark.parametrize("epochs", [2, 4, 8])
    def test_a_hopeless_second_trial_is_stopped_with_only_the_first_to_compare(self, epochs: int) -> None:
        assert train(after_the_past("curves", {"epochs": epochs, "learning_rate_multiplier": 0.03}, past=())) <= 1

    @pytest.mark.parametrize(("chance", "last"), [(0.2, 0), (0.09, 4), (0.06, 5), (0.04, 6), (0.02, 7)])
    def test_less_of_a_chance_is_enough_where_little_is_left(
        self, monkeypatch: pytest.MonkeyPatch, chance: float, last: int
    ) -> None:
        """A trial of eight epochs that has this chance is stopped up to the end of the last of these epochs."""
        study = optuna.create_study()
        for loss in (1.0, 2.0):
            trial = study.ask({"epochs": optuna.distributions.IntDistribution(8, 8)})
            trial.set_user_attr("curve", [{"exposure": epoch * EXAMPLES, "epoch": epoch} for epoch in range(9)])
            trial.report(9.0, 0)
            if loss == 1.0:
                trial.report(loss, 8 * EXAMPLES)
                study.tell(trial, loss)

        def model(_study: Any, _trial: Any, evidence: Evidence) -> Any:
            return SimpleNamespace(predict=lambda _asked: (np.array(evidence.target - ndtri(chance)), np.array(1.0)))

        monkeypatch.setattr(curve_policy, "_model", model)
        study.pruner = curve_policy.CurvePruner(chance=0.1, min_epochs=0.5)
        stops = []
        for epoch in range(1, 8):
            trial.report(2.0, epoch * EXAMPLES)
            stops.append(trial.should_prune())
        assert stops == [epoch <= last for epoch in range(1, 8)]

    def test_the_decisions_are_the_same_for_a_metric_that_is_maximised(self) -> None:
        accuracy = {"objective": {"metric": "validation_token_accuracy"}}
        assert train(after_the_past("curves", {"epochs": 8, "learning_rate_multiplier": 1.1}, **accuracy)) == 8
        assert train(after_the_past("curves", {"epochs": 8, "learning_rate_multiplier": 0.011}, **accuracy)) <= 2

    def test_a_trial_that_was_stopped_by_hand_is_not_to_be_beaten(self) -> None:
        driven = after_the_past("curves", {"epochs": 4, "learning_rate_multiplier": 1.3})
        star = driven.must_ask()
        for half, loss in enumerate((4.0, 1.0, 0.5, 0.3)):
            assert driven.search.report(star.number, a_report(half * EXAMPLES // 2, loss), CONTRACT) == Decision.GO_ON
        driven.search.prune(star.number)
        assert best_of(driven) > 0.5
        driven.search._study.enqueue_trial({"epochs": 4, "learning_rate_multiplier": 1.0})
        assert train(driven) == 4

    def test_beside_another_sampler_it_judges_by_a_model_of_this_study(self) -> None:
        spec = spec_of(10, search_space=SPACE, sampler={"type": "random"}, pruner={"type": "curves"})
        driven = Driven(optuna.storages.InMemoryStorage(), spec)
        while train(driven):
            pass
        kept = [trial.system_attrs.get(FITTED) for trial in driven.search.frozen()]
        fits = sorted(one[0] for one in kept if one)
        assert fits[-1] > 10
        assert all(later >= GROWN * earlier for earlier, later in itertools.pairwise(fits))  # not at every report

    def test_it_is_fitted_again_also_when_there_are_more_trials_than_it_is_fitted_to(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = spec_of(40, search_space=SPACE, sampler={"type": "random"}, pruner={"type": "curves"})
        fits = {}
        for most in (100, 10):
            monkeypatch.setattr(evidence_module, "MOST_TRIALS", most)
            driven = Driven(optuna.storages.InMemoryStorage(), spec)
            while train(driven):
                pass
            kept = [(trial.number, trial.system_attrs.get(FITTED)) for trial in driven.search.frozen()]
            fits[most] = [(number, one[0]) for number, one in kept if one]
        assert fits[10][-1][0] >= 30
        small = [fit for fit in fits[100] if fit[0] < 10]
        assert fits[10][: len(small)] == small  # counted alike, so that a fit that is kept counts for ever


class TestTheSearch:
    def test_among_choices_it_draws_the_good_ones_and_none_twice(self) -> None:
        space = {"epochs": {"choices": [1, 2, 4]}, "batch_size": {"choices": [1, 2, 4, 8, 16]}}
        space["learning_rate_multiplier"] = {"choices": [0.01, 0.1, 0.4, 1.0, 3.0, 10.0]}
        found = []
        for seed in range(2):
            spec = spec_of(30, search_space=space, sampler={"type": "auto"}, seed=seed)
            driven = Driven(optuna.storages.InMemoryStorage(), spec)
            while train(driven):
                pass
            found += [trial.value for trial in driven.trials() if trial.value is not None]
        assert len(found) == 60
        good = sorted(loss_of({"epochs": e, "learning_rate_multiplier": r}, e) for e in (2, 4) for r in (0.4, 1.0))[-1]
        assert sum(value <= good + 1e-9 for value in found) >= 30  # 20 of the 90 points are; chance finds 13

    def test_it_finds_more_for_the_same_tokens_than_chance_and_halving(self) -> None:
        found: dict[str, list[float]] = {"auto": [], "random": []}
        for seed in range(4):
            for sampler, pruner in (("auto", "auto"), ("random", "successive_halving")):
                rules = {"sampler": {"type": sampler}, "pruner": {"type": pruner}, "budget": {"tokens": 30_000}}
                spec = spec_of(99, search_space=SPACE, seed=seed, **rules)
                driven = Driven(optuna.storages.InMemoryStorage(), spec)
                while train(driven):
                    pass
                found[sampler].append(best_of(driven))
        assert sum(found["auto"]) < sum(found["random"]) - 0.1
