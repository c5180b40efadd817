"""The belief that the best params lie near the `auto` defaults: its density, its fading, what it does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import norm, qmc, truncnorm

from hpsearch.search.belief import OTHER_WORD, SPREAD, Belief
from hpsearch.search.curve_policy import CurveSampler
from hpsearch.search.evidence import number, values_at
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, Driven, spec_of

SPACE: dict[str, BaseDistribution] = {
    "batch_size": CategoricalDistribution((16, 4, 8)),
    "dropout": FloatDistribution(0.0, 0.4),
    "epochs": IntDistribution(1, 9),
    "learning_rate_multiplier": FloatDistribution(0.01, 100.0, log=True),
    "lr_schedule": CategoricalDistribution(("constant", "linear", "cosine")),
}
DEFAULTS = {"batch_size": 8, "dropout": 0.0, "epochs": 3, "learning_rate_multiplier": 1.0, "lr_schedule": "linear"}
CENTERS = {"batch_size": 0.5, "dropout": 0.0, "epochs": 0.25, "learning_rate_multiplier": 0.5}
EVENLY = qmc.Sobol(len(SPACE), rng=0).random(2048)
BELIEF = Belief(SPACE, DEFAULTS, 10.0)
DENSITIES = BELIEF.log_density(EVENLY)


class TestTheDensity:
    def test_points_near_the_defaults_come_from_a_gaussian_that_ends_with_the_range(self) -> None:
        near = BELIEF.near(EVENLY)
        for place, (name, center) in enumerate(CENTERS.items()):
            ends = (0 - center) / SPREAD, (1 - center) / SPREAD
            expected = truncnorm.ppf(EVENLY[:, place], *ends, loc=center, scale=SPREAD)
            assert near[:, place] == pytest.approx(expected, abs=1e-9), name

    def test_a_word_is_drawn_as_often_as_it_is_dense(self) -> None:
        drawn = values_at(SPACE["lr_schedule"], BELIEF.near(EVENLY)[:, 4])
        for word in ("constant", "linear", "cosine"):
            expected = (1.0 if word == "linear" else OTHER_WORD) / (1 + 2 * OTHER_WORD)
            assert drawn.count(word) / len(drawn) == pytest.approx(expected, abs=0.01)

    def test_it_is_the_product_of_what_each_parameter_says(self) -> None:
        expected = np.ones(len(EVENLY))
        for place, center in enumerate(CENTERS.values()):
            expected *= norm.pdf((EVENLY[:, place] - center) / SPREAD) / norm.pdf(0)
        is_other = np.array([word != "linear" for word in values_at(SPACE["lr_schedule"], EVENLY[:, 4])])
        assert np.exp(BELIEF.log_density(EVENLY)) == pytest.approx(
            expected * np.where(is_other, OTHER_WORD, 1.0), rel=1e-9
        )

    def test_the_defaults_lie_at_its_top(self) -> None:
        top = BELIEF.log_density(np.array([[*CENTERS.values(), 0.5]]))[0]
        assert top == 0.0 > BELIEF.log_density(EVENLY).max()

    def test_a_parameter_that_a_trial_lacks_may_have_lain_anywhere(self) -> None:
        """So a branch of few parameters is believed in no more than one of many."""
        many = qmc.Sobol(1, rng=0).random(4096)[:, 0]
        for place in range(len(SPACE)):
            points = np.tile([*CENTERS.values(), 0.5], (len(many), 1))
            matters = np.ones((1, len(SPACE)), dtype=bool)
            matters[:, place] = False
            lacking = BELIEF.log_density(points[:1], matters)
            points[:, place] = many
            assert np.exp(lacking) == pytest.approx(np.exp(BELIEF.log_density(points)).mean(), rel=1e-3)


class TestTheFading:
    def test_it_weighs_less_with_every_trial(self) -> None:
        promises = np.ones(len(EVENLY))
        assert [BELIEF.power(place, DENSITIES, promises) for place in (1, 10, 100)] == pytest.approx([10, 1, 0.1])

    def test_it_weighs_less_where_the_model_expects_nothing_near_the_defaults(self) -> None:
        density = np.exp(DENSITIES)
        assert BELIEF.power(10, DENSITIES, density) == pytest.approx(1.0)  # agreed
        elsewhere = np.where(density > np.median(density), 0.5, 1.0)
        agreement = np.average(elsewhere, weights=density) / elsewhere.mean()
        assert BELIEF.power(10, DENSITIES, elsewhere) == pytest.approx(agreement**4)
        assert agreement < 0.8
        assert BELIEF.power(10, DENSITIES, (density < np.median(density)).astype(float)) < 0.1


def loss_of(params: dict[str, Any], best_rate: float) -> float:
    away = math.log10(float(params["learning_rate_multiplier"]) / best_rate)
    return 1 + 0.5 * away**2 + 0.05 * (int(params["epochs"]) - 3) ** 2


def searched(best_rate: float, prior: float, seed: int, trials: int) -> Driven:
    """A search whose defaults (epochs 4, multiplier 1) are the best, or, by the best rate, far from it."""
    space = {"epochs": {"low": 1, "high": 8}, "learning_rate_multiplier": {"low": 0.001, "high": 1000, "log": True}}
    spec = spec_of(trials, search_space=space, sampler={"type": "curves", "prior": prior}, seed=seed)
    driven = Driven(optuna.storages.InMemoryStorage(), spec)
    while (asked := driven.ask()) is not None:
        driven.search.report(asked.number, a_report(0, 6.0), CONTRACT)
        end = a_report(int(asked.params["epochs"]) * 100, loss_of(asked.params, best_rate))
        driven.search.report(asked.number, end, CONTRACT)
        driven.search.complete(asked.number, end, CONTRACT, "artifacts")
    return driven


def told(loss: Callable[[dict[str, Any]], float], **believed: Any) -> list[dict[str, Any]]:
    """The params of ten trials; the model draws from the fifth on."""
    study = optuna.create_study()
    for place in range(10):
        study.sampler = CurveSampler(4, 0, place, **believed)
        trial = study.ask(fixed_distributions=SPACE)
        trial.set_user_attr("config", {"hyperparameters": {"epochs": trial.params["epochs"]}})
        trial.set_user_attr("curve", [{"exposure": 0, "epoch": 0.0}, {"exposure": 100, "epoch": 1.0}])
        trial.report(6.0, 0)
        trial.report(loss(trial.params), 100)
        study.tell(trial, loss(trial.params))
    return [trial.params for trial in study.trials]


def regret(driven: Driven) -> float:
    return min(trial.value for trial in driven.trials() if trial.value is not None) - 1


class TestTheSearch:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_second_trial_lies_nearer_to_the_defaults_than_without(self, seed: int) -> None:
        away = [
            abs(math.log10(float(searched(1.0, prior, seed, 2).trials()[1].params["learning_rate_multiplier"])))
            for prior in (10.0, 0.0)
        ]
        assert away[0] < away[1]

    def test_while_the_model_knows_little_it_draws_near_the_defaults(self) -> None:
        away = {}
        for strength in (10.0, 0.0):
            drawn = told(lambda _params: 1.0, defaults=DEFAULTS, strength=strength)[4:]
            away[strength] = np.mean(
                [
                    abs(number(SPACE[name], params[name]) - center)
                    for params in drawn
                    for name, center in CENTERS.items()
                ]
            )
        assert away[10.0] < 0.7 * away[0.0]

    def test_even_a_strong_belief_in_wrong_defaults_gives_in_to_the_trials(self) -> None:
        misled = [regret(searched(300.0, 300.0, seed, 20)) for seed in range(3)]
        assert max(misled) < 0.1  # a fifth and more where it fades by the trials' number alone

    def test_the_strongest_belief_draws_what_lies_nearest_to_the_defaults(self) -> None:
        for params in told(lambda _params: 1.0, defaults=DEFAULTS, strength=1000.0)[4:]:
            assert params["lr_schedule"] == "linear"
            assert max(abs(number(SPACE[name], params[name]) - center) for name, center in CENTERS.items()) <= 0.5

    def test_without_a_belief_every_draw_is_what_it_is_without_defaults(self) -> None:
        by_rate = functools.partial(loss_of, best_rate=1.0)
        assert told(by_rate, defaults=DEFAULTS, strength=0.0) == told(by_rate)
        assert told(by_rate, defaults=DEFAULTS, strength=10.0) != told(by_rate)
