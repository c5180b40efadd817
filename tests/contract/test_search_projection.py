"""What would be trained of a point, and that searches of conditional spaces go by it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import optuna
import pytest

from hpsearch.search import projection as projection_module
from hpsearch.search.candidates import Candidates, params_at
from hpsearch.search.curve_policy import CurveSampler, _known
from hpsearch.search.curves import Curves, prior
from hpsearch.search.distributions import distributions
from hpsearch.search.draw import Points
from hpsearch.search.evidence import MUCH, Evidence, curve_of, trained
from hpsearch.search.memory import BORROWED, lessons
from hpsearch.search.projection import Trained, projection
from hpsearch.spec.defaults import default_params, hyperparameters, resolve
from hpsearch.spec.finetune import Hyperparameters
from hpsearch.spec.points import active
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, spec_of

RATE: dict[str, Any] = {"low": 0.1, "high": 5.0, "log": True}
WARMUP: dict[str, Any] = {"low": 0.0, "high": 0.2}
BRANCHES: dict[str, Any] = {
    "lr_schedule": {"choices": ["linear", "cosine"]},
    "warmup_fraction": {**WARMUP, "when": "lr_schedule == 'cosine'"},
    "weight_decay": {"low": 0.0, "high": 0.3, "when": "lr_schedule == 'cosine'"},
    "dropout": {"low": 0.0, "high": 0.3, "when": "lr_schedule == 'cosine'"},
    "learning_rate_multiplier": RATE,
}
ANY_SCHEDULE: dict[str, Any] = {"choices": ["constant", "linear", "cosine"]}
EPOCHS: dict[str, Any] = {"low": 1, "high": 6}

PARTLY_TRAINED: dict[str, dict[str, Any]] = {
    "branches": {"search_space": BRANCHES},
    "by numbers": {
        "search_space": {
            "epochs": EPOCHS,
            "batch_size": {"choices": [1, 4, 32], "when": "learning_rate_multiplier > 0.7"},
            "dropout": {"low": 0.0, "high": 0.3, "when": "epochs > 2"},
            "learning_rate_multiplier": RATE,
        }
    },
    "by steps": {
        "search_space": {
            "epochs": EPOCHS,
            "batch_size": {"choices": [1, 4, 32]},
            "dropout": {"low": 0.0, "high": 0.3, "when": "epochs * steps > 150"},
        }
    },
    "free epochs": {"search_space": {"epochs": EPOCHS, "lr_schedule": ANY_SCHEDULE, "warmup_fraction": WARMUP}},
    "always free epochs": {"search_space": {"epochs": EPOCHS, "lr_schedule": "constant", "dropout": WARMUP}},
    "as many epochs as allowed": {
        "search_space": {"epochs": EPOCHS, "lr_schedule": ANY_SCHEDULE, "batch_size": {"choices": [1, 4, 32]}},
        "require": ["epochs * steps <= 300"],
    },
    "epochs of their own condition": {
        "search_space": {
            "epochs": {**EPOCHS, "when": "dropout > 0.1"},
            "lr_schedule": ANY_SCHEDULE,
            "dropout": {"low": 0.0, "high": 0.3},
        }
    },
}
BATCHES: dict[str, Any] = {"choices": [1, 4, 32, 64, 128]}
"""The `auto` multiplier of the last two is another."""
WORKS: dict[str, dict[str, Any]] = {
    "the multiplier is auto": {"batch_size": BATCHES, "epochs": EPOCHS},
    "the multiplier has a condition": {
        "batch_size": BATCHES,
        "learning_rate_multiplier": {**RATE, "when": "epochs > 3"},
        "epochs": EPOCHS,
    },
    "the batch size has a condition": {
        "batch_size": {**BATCHES, "when": "dropout > 0.1"},
        "dropout": {"low": 0.0, "high": 0.2},
        "learning_rate_multiplier": RATE,
        "epochs": EPOCHS,
    },
    "the batch size has a condition, and the multiplier is auto": {
        "batch_size": {**BATCHES, "when": "dropout > 0.1"},
        "dropout": {"low": 0.0, "high": 0.2},
    },
}
TRAINED_AS_DRAWN: dict[str, dict[str, Any]] = {
    "numbers": {"epochs": EPOCHS, "learning_rate_multiplier": RATE},
    "decaying schedules": {"epochs": EPOCHS, "lr_schedule": {"choices": ["linear", "cosine"]}},
    "always a warm-up": {"epochs": EPOCHS, "lr_schedule": "constant", "warmup_fraction": {"low": 0.1, "high": 0.2}},
    "one batch size": {"epochs": EPOCHS, "batch_size": 32, "learning_rate_multiplier": "auto"},
    "one multiplier": {"batch_size": BATCHES, "learning_rate_multiplier": 0.3},
    "fixed epochs": {"epochs": 3, "lr_schedule": ANY_SCHEDULE, "warmup_fraction": WARMUP},
}


class TestTheProjection:
    @pytest.mark.parametrize("fields", PARTLY_TRAINED.values(), ids=list(PARTLY_TRAINED))
    def test_it_is_what_the_spec_says_of_each_point(self, fields: dict[str, Any]) -> None:
        spec = spec_of(**fields)
        project = projection(spec, EXAMPLES)
        assert project is not None
        space, dice = distributions(spec.search_space), np.random.default_rng(0)
        left_out = Counter[str]()
        for point in dice.random((400, len(space))):
            point[dice.random(len(space)) < 0.2] = 0.0  # the least of a range, such as no warm-up
            drawn = params_at(space, point)
            chosen = active(spec, drawn, EXAMPLES)
            resolved = hyperparameters(spec, chosen, EXAMPLES)
            rest = resolved.epochs, resolved.learning_rate_multiplier, resolved.batch_size
            assert project(drawn) == Trained(chosen, *rest)
            assert project(chosen) == Trained(chosen, *rest)
            left_out.update(drawn.keys() - chosen.keys())
        assert left_out

    @pytest.mark.parametrize("space", TRAINED_AS_DRAWN.values(), ids=list(TRAINED_AS_DRAWN))
    def test_there_is_none_where_all_that_is_drawn_is_trained(self, space: dict[str, Any]) -> None:
        assert projection(spec_of(search_space=space), EXAMPLES) is None

    def test_nothing_is_resolved_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        project = projection(spec_of(search_space=BRANCHES), EXAMPLES)
        assert project is not None
        asked = []

        def noted(spec: StudySpec, params: Params, examples: int) -> Params:
            asked.append(params)
            return active(spec, params, examples)

        monkeypatch.setattr(projection_module, "active", noted)
        space = distributions(spec_of(search_space=BRANCHES).search_space)
        for point in np.random.default_rng(0).random((100, len(space))):
            project(params_at(space, point))
        assert len(asked) <= 4  # either schedule, with a warm-up and without


class TestWork:
    """The model's third axis of time, epochs times multiplier over the root of the batch size, is what was trained."""

    @pytest.mark.parametrize("space", WORKS.values(), ids=list(WORKS))
    def test_of_trials_and_of_candidates(self, space: dict[str, Any]) -> None:
        driven = Driven(optuna.storages.InMemoryStorage(), spec_of(16, search_space=space, seed=3))
        configs = {}
        while (asked := driven.ask()) is not None:
            configs[asked.number] = resolve(driven.spec, asked.params, EXAMPLES, "llama", 1_000_000).hyperparameters
            driven.search.report(asked.number, a_report(0, 5.0), CONTRACT)
            driven.search.report(asked.number, a_report(50, 2.0 + 0.1 * asked.number), CONTRACT)
            driven.search.complete(asked.number, a_report(50, 2.0 + 0.1 * asked.number), CONTRACT, "artifacts")
        curves, baseline = _known(driven.search._study)
        evidence = Evidence(curves, driven.search._points.distributions, baseline)
        trained = [(configs[number], 0.5) for number in evidence.points.trial]
        assert len({(one.learning_rate_multiplier, one.batch_size) for one, _ in trained}) > 2
        shift = evidence.points.t[:, 2] - [self.work_of(*one) for one in trained]
        assert shift == pytest.approx(shift[0], abs=1e-9)
        points = np.random.default_rng(0).random((64, len(evidence.distributions)))
        candidates = Candidates.at(points, evidence, driven.search._points.projection)
        ends = evidence.at(candidates.trained, [one.epochs for one in candidates.trained], [-1] * len(points))
        for one, work in zip(candidates.trained, ends.t[:, 2], strict=True):
            resolved = hyperparameters(driven.spec, one.params, EXAMPLES)
            assert work - self.work_of(resolved, resolved.epochs) == pytest.approx(shift[0], abs=1e-9)

    @staticmethod
    def work_of(trained: Hyperparameters, epochs: float) -> float:
        rate = trained.learning_rate_multiplier / math.sqrt(trained.batch_size)
        return math.log(epochs * rate) / math.log(MUCH)

    @pytest.mark.parametrize("space", WORKS.values(), ids=list(WORKS))
    def test_of_what_another_study_lent(self, space: dict[str, Any]) -> None:
        """Its own: it lies in the space because its ten parameters are what its params come to here."""
        spec = spec_of(search_space=space)
        points = Points(spec, EXAMPLES, default_params(spec, EXAMPLES))
        study = optuna.create_study()
        dice = np.random.default_rng(1)
        lent = [points.active(params_at(points.distributions, p)) for p in dice.random((8, len(points.distributions)))]
        own = [hyperparameters(spec, params, EXAMPLES) for params in lent]
        told = {"value": 1.0, "evaluation_contract": CONTRACT, "curve": [[100, 1.0, 1.0]]}
        records = [{"params": params, "epochs": one.epochs, **told} for params, one in zip(lent, own, strict=True)]
        study.set_user_attr(BORROWED, records)
        curves = [curve_of(lesson, maximise=False) for lesson in lessons(study, points)]
        assert [curve.trained for curve in curves if curve] == [
            Trained(params, one.epochs, one.learning_rate_multiplier, one.batch_size)
            for params, one in zip(lent, own, strict=True)
        ]


def loss_of(params: Params) -> float:
    """Better by a tenth where the schedule is cosine."""
    away = 0.2 * math.log(float(params["learning_rate_multiplier"])) ** 2
    if params["lr_schedule"] == "linear":
        return 1.0 + away
    aside = (("warmup_fraction", 0.15, 5), ("weight_decay", 0.2, 2), ("dropout", 0.1, 2))
    return 0.9 + away + sum(scale * (float(params[name]) - best) ** 2 for name, best, scale in aside)


def searched(space: dict[str, Any], seed: int, trials: int, **changes: Any) -> Driven:
    spec = spec_of(trials, search_space=space, sampler={"type": "curves"}, seed=seed, **changes)
    driven = Driven(optuna.storages.InMemoryStorage(), spec)
    while (asked := driven.ask()) is not None:
        driven.search.report(asked.number, a_report(0, 5.0), CONTRACT)
        for epoch in (1, 2):
            loss = a_report(EXAMPLES * epoch, loss_of({**asked.params}) + 0.5 / epoch)
            driven.search.report(asked.number, loss, CONTRACT)
        driven.search.complete(asked.number, loss, CONTRACT, "artifacts")
    return driven


class TestTheSearch:
    def test_points_that_come_to_the_same_trial_promise_the_same(self) -> None:
        driven = searched({**BRANCHES, "epochs": 2}, seed=400, trials=6)
        project = projection(driven.spec, EXAMPLES)
        curves, baseline = _known(driven.search._study)
        evidence = Evidence(curves, distributions(driven.spec.search_space), baseline)
        names = list(evidence.distributions)
        points = np.tile(np.array([{"lr_schedule": 0.25}.get(name, 0.5) for name in names]), (5, 1))
        points[:, names.index("warmup_fraction")] = np.linspace(0, 1, 5)
        points[:, names.index("dropout")] = np.linspace(1, 0, 5)
        model = Curves(evidence.points, evidence.y, prior(evidence.points.x.shape[1]))
        promises = Candidates.at(points, evidence, project).promises(model, evidence)
        assert promises == pytest.approx(promises[0], rel=1e-6)
        points[:, names.index("lr_schedule")] = 0.75
        promises = Candidates.at(points, evidence, project).promises(model, evidence)
        assert promises.std() > 0.01 * promises.mean()

    def test_it_finds_the_better_branch_though_the_other_one_seems_full_of_what_was_never_tried(self) -> None:
        best, worse = [], 0
        for seed in range(400, 404):
            trials = searched({**BRANCHES, "epochs": 2}, seed, trials=20).trials()
            best.append(min(trial.value for trial in trials if trial.value is not None) - 0.25)
            worse += sum(trial.params["lr_schedule"] == "linear" for trial in trials[6:])
        assert np.mean(best) < 0.94  # 0.9 is the best of all, 1.0 that of the worse branch
        assert worse <= 4 * 7  # of 4 * 14

    def test_epochs_that_are_free_are_promised_at_the_most(self) -> None:
        """The end of a schedule is where its trial ends, whatever epochs were drawn for it."""
        spec = spec_of(search_space={"epochs": EPOCHS, "lr_schedule": ANY_SCHEDULE, "learning_rate_multiplier": RATE})
        project = projection(spec, EXAMPLES)
        assert project is not None
        drawn: Params = {"epochs": 2, "lr_schedule": "constant", "learning_rate_multiplier": 1.0}
        assert project(drawn)[:2] == ({"lr_schedule": "constant", "learning_rate_multiplier": 1.0}, 6.0)
        assert project({**drawn, "lr_schedule": "linear"}).epochs == 2.0

    def test_what_a_person_gave_decides_what_would_be_trained(self) -> None:
        """A first trial that says `cosine` and leaves the rest open is drawn for `cosine`."""
        driven = Driven(
            optuna.storages.InMemoryStorage(), spec_of(20, search_space=BRANCHES, sampler={"type": "curves"})
        )
        project = driven.search._points.projection
        assert project is not None
        asked: list[Params] = []

        def noted(params: Params) -> Trained:
            asked.append(params)
            return project(params)

        driven.search._points.projection = noted
        for _ in range(5):
            driven.run(driven.must_ask())
        asked.clear()
        driven.search._study.enqueue_trial({"lr_schedule": "cosine", "learning_rate_multiplier": 1.0})
        driven.must_ask()
        assert {(params["lr_schedule"], params["learning_rate_multiplier"]) for params in asked} == {("cosine", 1.0)}


CHOICES: dict[str, Any] = {
    "learning_rate_multiplier": {"choices": [0.05, 0.2, 1.0, 4.0, 10.0]},
    "batch_size": {"choices": [2, 4, 8, 16]},
    "lr_schedule": {"choices": ["linear", "cosine"]},
    "epochs": {"choices": [2, 3, 4]},
}


DEFAULTS: Params = {"learning_rate_multiplier": 1.0, "batch_size": 4, "lr_schedule": "linear", "epochs": 4}
DRAWN_BEFORE: list[tuple[Any, ...]] = [
    (0.2, 8, "cosine", 3),
    (4.0, 2, "linear", 2),
    (0.2, 4, "cosine", 4),
    (1.0, 16, "linear", 3),
    (1.0, 2, "linear", 4),
    (4.0, 4, "linear", 4),
    (4.0, 2, "linear", 4),
    (10.0, 4, "linear", 4),
    (1.0, 4, "linear", 4),
    (4.0, 8, "linear", 4),
    (4.0, 4, "cosine", 4),
    (4.0, 2, "cosine", 4),
]


def some_draws(**changes: Any) -> list[tuple[Any, ...]]:
    study = optuna.create_study()
    space = distributions(spec_of(search_space=CHOICES).search_space)
    for place in range(12):
        tried = [trial.params for trial in study.trials]
        believed = {"defaults": DEFAULTS, "strength": 10.0}
        study.sampler = CurveSampler(4, 400, place, is_new=lambda new: new not in tried, **believed, **changes)  # noqa: B023 - asked at once
        trial = study.ask(fixed_distributions=space)
        trial.set_user_attr("config", {"hyperparameters": {"epochs": trial.params["epochs"]}})
        trial.set_user_attr("curve", [{"exposure": 0, "epoch": 0.0}, {"exposure": 100, "epoch": 1.0}])
        trial.report(6.0, 0)
        loss = 1.0 + math.log(trial.params["learning_rate_multiplier"] / 3) ** 2 + 0.1 * trial.params["batch_size"]
        loss -= 0.05 * trial.params["epochs"] + 0.2 * (trial.params["lr_schedule"] == "cosine")
        trial.report(loss, 100)
        study.tell(trial, loss)
    return [tuple(trial.params[name] for name in CHOICES) for trial in study.trials]


def test_spaces_without_conditions_are_searched_as_they_were_before_there_was_a_projection() -> None:
    assert some_draws() == DRAWN_BEFORE
    assert some_draws(projection=lambda params: trained(params, float(params["epochs"]), {})) == DRAWN_BEFORE
