"""Which points a search tries: every sampler, restarts, grids, conditions, requirements, and what teaches."""

from __future__ import annotations

import itertools
import math
from typing import Any

import optuna
import pytest

from hpsearch.results import Failure
from hpsearch.search import Decision
from hpsearch.search.taught import lesson
from hpsearch.spec.defaults import default_params, resolve
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, InMemory, loss_of, points, spec_of

ALL_SAMPLERS = ["auto", "tpe", "gp", "cmaes", "qmc", "random", "grid"]
SPACE: dict[str, Any] = {
    "epochs": {"low": 1, "high": 4},
    "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
    "weight_decay": {"low": 0.0, "high": 0.3},
}


def memory() -> optuna.storages.BaseStorage:
    return InMemory()


def sampler(kind: str) -> dict[str, Any]:
    return {"type": kind} | ({"startup_trials": 3} if kind in ("tpe", "gp", "cmaes") else {})


class TestRestarts:
    @pytest.mark.parametrize("kind", ALL_SAMPLERS)
    def test_a_search_that_is_killed_five_times_tries_what_an_undisturbed_one_tries(self, kind: str) -> None:
        total, ends = (6, (0, 3, 0, 1, 0)) if kind == "gp" else (14, (0, 3, 2, 4, 1))  # a GP takes a second a draw
        spec = spec_of(total, sampler=sampler(kind), search_space=SPACE)
        undisturbed = Driven(memory(), spec)
        undisturbed.run_all()
        storage = memory()
        for ended in ends:  # then the next trial is killed
            driven = Driven(storage, spec)
            for _ in range(ended):
                driven.run(driven.must_ask())
            killed = driven.must_ask()
            driven.search.report(killed.number, a_report(0, loss_of(killed.params, 0)), CONTRACT)
        driven = Driven(storage, spec)
        driven.run_all()
        assert driven.states() == {"COMPLETE": total}
        assert len(set(points(driven.trials()))) == total
        assert points(driven.trials()) == points(undisturbed.trials())

    @pytest.mark.parametrize("kind", ["tpe", "cmaes", "qmc", "random"])
    def test_a_space_of_twelve_points_is_searched_whole_and_nothing_twice(self, kind: str) -> None:
        space = {"epochs": {"low": 1, "high": 4}, "batch_size": {"choices": [1, 2, 4]}}
        driven = Driven(memory(), spec_of(50, sampler=sampler(kind), search_space=space))
        driven.run_all()
        assert len(set(points(driven.trials()))) == len(driven.trials()) == 12
        assert driven.search.ending() == (True, "the search space is exhausted: every point was tried")


class TestGrids:
    def test_every_point_is_tried_once_then_the_space_is_exhausted(self) -> None:
        space = {
            "epochs": {"low": 1, "high": 3},
            "learning_rate_multiplier": {"low": 0.1, "high": 10, "log": True},
            "batch_size": {"choices": [2, 8]},
        }
        driven = Driven(memory(), spec_of(99, sampler={"type": "grid", "points": 3}, search_space=space))
        driven.run_all()
        tried = sorted(tuple(round(float(trial.params[name]), 9) for name in space) for trial in driven.trials())
        assert tried == list(itertools.product((1, 2, 3), (0.1, 1, 10), (2, 8)))
        assert driven.search.ending()[1] == "the search space is exhausted: every point was tried"

    def test_the_order_is_the_seeds(self) -> None:
        orders = []
        for seed in (1, 1, 2):
            space = {"epochs": SPACE["epochs"], "batch_size": {"choices": [1, 2, 4]}}
            driven = Driven(memory(), spec_of(20, seed=seed, sampler={"type": "grid"}, search_space=space))
            driven.run_all()
            orders.append(points(driven.trials()))
        assert orders[0] == orders[1] != orders[2]


class TestConditions:
    SPACE: dict[str, Any] = {
        "lr_schedule": {"choices": ["linear", "cosine"]},
        "warmup_fraction": {"low": 0.0, "high": 0.5, "when": "lr_schedule == 'cosine'"},
        "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
        "weight_decay": {"low": 0.0, "high": 0.3, "when": "learning_rate_multiplier < 1"},
    }

    @pytest.mark.parametrize("kind", ["auto", "tpe", "cmaes", "qmc", "random"])
    def test_a_parameter_is_drawn_exactly_where_its_condition_holds(self, kind: str) -> None:
        driven = Driven(memory(), spec_of(14, sampler=sampler(kind), search_space=self.SPACE))
        driven.run_all()
        for trial in driven.trials():
            assert ("warmup_fraction" in trial.params) is (trial.params["lr_schedule"] == "cosine")
            assert ("weight_decay" in trial.params) is (trial.params["learning_rate_multiplier"] < 1)
            chosen = resolve(driven.spec, trial.params, EXAMPLES, "llama", 1_000_000).hyperparameters
            assert chosen.warmup_fraction == trial.params.get("warmup_fraction", 0.0)
        assert {len(trial.params) for trial in driven.trials()} >= {3}

    @pytest.mark.parametrize("kind", ["auto", "random"])
    def test_what_a_first_trial_asks_for_is_drawn_where_it_matters(self, kind: str) -> None:
        asked = [{"warmup_fraction": 0.1 * place} for place in range(1, 5)]
        driven = Driven(memory(), spec_of(8, sampler=sampler(kind), search_space=self.SPACE, first_trials=asked))
        driven.run_all()
        wanted = [trial.params for trial in driven.trials() if trial.origin == "first_trials"]
        assert [params["warmup_fraction"] for params in wanted] == [one["warmup_fraction"] for one in asked]
        assert {params["lr_schedule"] for params in wanted} == {"cosine"}

    def test_a_range_of_one_value_is_one_value(self) -> None:
        space = {"epochs": {"choices": [1, 2]}, "dropout": {"low": 0.1, "high": 0.1}}
        driven = Driven(memory(), spec_of(8, search_space=space))
        driven.run_all()
        assert sorted(trial.params["epochs"] for trial in driven.trials()) == [1, 2]
        assert driven.search.ending() == (True, "the search space is exhausted: every point was tried")

    def test_a_grid_counts_a_point_once_whatever_does_not_matter_there(self) -> None:
        space = {
            "lr_schedule": {"choices": ["linear", "cosine"]},
            "warmup_fraction": {"choices": [0.1, 0.2], "when": "lr_schedule == 'cosine'"},
        }
        driven = Driven(memory(), spec_of(99, sampler={"type": "grid"}, search_space=space))
        driven.run_all()
        assert sorted(points(driven.trials())) == sorted(
            [
                '{"lr_schedule": "cosine", "warmup_fraction": 0.1}',
                '{"lr_schedule": "cosine", "warmup_fraction": 0.2}',
                '{"lr_schedule": "linear"}',
            ]
        )

    def test_a_lost_trial_with_conditional_params_is_tried_again_as_it_was(self) -> None:
        storage, spec = memory(), spec_of(20, search_space=self.SPACE)
        driven = Driven(storage, spec)
        asked = [driven.must_ask() for _ in range(8)]
        after = Driven(storage, spec)
        assert [after.must_ask().params for _ in asked] == [one.params for one in asked]


class TestRequirements:
    REQUIRE = ["epochs * steps <= 100", "learning_rate_multiplier * batch_size < 4"]

    @pytest.mark.parametrize("kind", ["tpe", "cmaes", "random"])
    def test_no_trial_breaks_one_and_none_costs_budget(self, kind: str) -> None:
        space = {**SPACE, "batch_size": {"choices": [1, 2, 4, 8]}}
        driven = Driven(memory(), spec_of(12, sampler=sampler(kind), search_space=space, require=self.REQUIRE))
        driven.run_all()
        ended = [trial for trial in driven.trials() if trial.value is not None]
        assert len(ended) == 12
        for trial in ended:
            epochs, size, rate = (trial.params[n] for n in ("epochs", "batch_size", "learning_rate_multiplier"))
            assert epochs * math.ceil(EXAMPLES / size) <= 100
            assert rate * size < 4

    def test_a_persons_own_trial_that_breaks_one_is_never_trained_and_costs_nothing(self) -> None:
        firsts = [{"epochs": 3, "batch_size": 1}, {"epochs": 1, "batch_size": 1}]
        space = {"epochs": {"low": 1, "high": 4}, "batch_size": {"choices": [1, 2, 4]}}
        driven = Driven(
            memory(), spec_of(3, first_trials=firsts, search_space=space, require=["epochs * steps <= 200"])
        )
        driven.run_all()
        refused = [trial for trial in driven.trials() if trial.failure == "infeasible"]
        assert [(trial.origin, trial.params, trial.reports) for trial in refused] == [
            ("defaults", default_params(driven.spec, EXAMPLES), ()),
            ("first_trials", firsts[0], ()),
        ]
        assert "does not meet 'epochs * steps <= 200'" in (refused[0].failure_text or "")
        assert driven.states() == {"COMPLETE": 3, "FAIL": 2}

    @pytest.mark.parametrize("space", [SPACE, {"epochs": {"low": 1, "high": 3}}], ids=["endless", "listed"])
    def test_requirements_that_nothing_meets_end_the_search(self, space: dict[str, Any]) -> None:
        driven = Driven(memory(), spec_of(9, search_space=space, require=["epochs > 99"]))
        assert driven.ask() is None
        ended_well, why = driven.search.ending()
        assert not ended_well
        assert why == "no trial completed" or "epochs > 99" in why


class TestWhatTeaches:
    @pytest.mark.parametrize(("kind", "trials"), [("tpe", 30), ("gp", 14)])
    def test_a_region_that_diverges_is_left_alone(self, kind: str, trials: int) -> None:
        driven = Driven(memory(), spec_of(60, search_space=SPACE, sampler=sampler(kind) | {"startup_trials": 8}))
        diverged = []
        for _ in range(trials):
            asked = driven.must_ask()
            rate = float(asked.params["learning_rate_multiplier"])
            diverged.append(rate > 0.3)
            driven.search.report(asked.number, a_report(50, 2 + abs(math.log10(rate / 0.1))), CONTRACT)
            if diverged[-1]:
                driven.search.fail(asked.number, Failure.DIVERGED, "too high")
            else:
                driven.search.complete(asked.number, a_report(50, 2 + abs(math.log10(rate / 0.1))), CONTRACT, "a")
        late = diverged[trials // 3 :]
        assert sum(late) <= len(late) / 4, diverged  # chance alone makes it half of them; untaught it is most

    def test_only_ends_that_the_params_are_to_blame_for_teach(self) -> None:
        storage, spec = memory(), spec_of(60, search_space=SPACE, sampler=sampler("random"))
        driven = Driven(storage, spec)
        ended = [driven.must_ask() for _ in range(len(Failure) + 1)]
        for asked, failure in zip(ended, Failure, strict=False):
            driven.search.fail(asked.number, failure, "")
        driven.run(ended[-1])
        while (asked := driven.must_ask()).origin != "search":
            driven.run(asked)
        study = optuna.load_study(study_name=spec.name, storage=storage)
        taught, _ = lesson(study.get_trials(), asked.number, "minimize")
        worst = max(trial.value for trial in driven.trials() if trial.value is not None)
        shown = {failure: [] for failure in Failure} | {None: []}
        for trial in taught:
            shown[trial.user_attrs.get("failure")].append((trial.state.name, trial.value))
        to_blame = {Failure.DIVERGED, Failure.OUT_OF_MEMORY, Failure.INFEASIBLE}
        for failure in Failure:
            assert shown[failure] == ([("COMPLETE", worst)] if failure in to_blame else []), failure
        for trial in study.get_trials():
            blamed = trial.user_attrs.get("failure") in to_blame
            assert trial.system_attrs.get("constraints") == ([1.0] if blamed else None)  # what the dashboard reads
            assert trial.constraints == ({"0": 1.0} if blamed else {})  # what Optuna reads


class TestEpochsNearlyFree:
    def test_one_long_trial_answers_for_its_shorter_epoch_counts(self) -> None:
        space = {**SPACE, "lr_schedule": {"choices": ["constant", "linear"]}}
        firsts = [{"lr_schedule": "constant", "epochs": 1}]
        driven = Driven(memory(), spec_of(12, search_space=space, first_trials=firsts))
        asked = []
        while (one := driven.ask()) is not None:
            asked.append(one)
            driven.search.fail(one.number, Failure.DIVERGED, "")
        for one in asked:
            chosen = resolve(driven.spec, one.params, EXAMPLES, "llama", 1_000_000).hyperparameters
            assert ("epochs" in one.params) is (chosen.lr_schedule == "linear")
            assert chosen.epochs == one.params.get("epochs", 4)
        assert {one.params["lr_schedule"] for one in asked} == {"constant", "linear"}

    def test_epochs_that_a_condition_depends_on_are_drawn(self) -> None:
        space = {**SPACE, "lr_schedule": "constant", "dropout": {"low": 0.1, "high": 0.5, "when": "epochs > 2"}}
        driven = Driven(memory(), spec_of(12, search_space=space))
        asked = [driven.must_ask().params for _ in range(12)]
        assert [int(params["epochs"]) > 2 for params in asked] == ["dropout" in params for params in asked]
        assert len({params["epochs"] for params in asked}) > 1

    def test_the_most_epochs_are_the_most_that_the_requirements_allow(self) -> None:
        space = {**SPACE, "lr_schedule": "constant", "batch_size": {"choices": [1, 4]}}
        driven = Driven(memory(), spec_of(6, search_space=space, require=["epochs * steps <= 200"]))
        for _ in range(6):
            one = driven.must_ask()
            chosen = resolve(driven.spec, one.params, EXAMPLES, "llama", 1_000_000).hyperparameters
            assert (chosen.batch_size, chosen.epochs) in ((1, 2), (4, 4))

    def test_a_trial_whose_curve_has_turned_is_not_pruned_at_its_last_report(self) -> None:
        pruner = {"type": "threshold", "worst": 1.0, "min_reports": 1}
        space = {"epochs": 4, "learning_rate_multiplier": {"low": 0.1, "high": 9}}
        spec = spec_of(2, pruner=pruner, search_space=space, objective={"patience": 2})
        driven = Driven(memory(), spec)
        number = driven.must_ask().number
        told = [
            driven.search.report(number, a_report(at, loss), CONTRACT) for at, loss in ((0, 9), (50, 0.5), (100, 0.6))
        ]
        assert told == [Decision.GO_ON] * 3
        assert driven.search.report(number, a_report(150, 2.0), CONTRACT) is Decision.GO_ON
        driven.search.complete(number, a_report(50, 0.5), CONTRACT, "a")
        assert (driven.trial(number).value, driven.trial(number).best_epoch) == (0.5, 0.5)


class TestBudgets:
    @pytest.mark.parametrize(
        ("budget", "limit"),
        [({"tokens": 36_500}, 36_500), ({"gpu_hours": 365 / 3600}, 36_500), ({"wall_clock": 365.0}, 36_500)],
        ids=["tokens", "gpu-hours", "wall-clock"],
    )
    def test_three_trials_at_once_overspend_by_less_than_a_report_interval_each(
        self, budget: dict[str, Any], limit: int
    ) -> None:
        used = 0
        spec = spec_of(search_space={**SPACE, "epochs": 8}, budget={"trials": None, **budget})
        driven = Driven(memory(), spec, elapsed=lambda: used / 100)
        running: dict[int, int] = {}
        while True:
            while len(running) < 3 and (asked := driven.ask()) is not None:
                driven.search.report(asked.number, a_report(0, 3.0), CONTRACT)
                running[asked.number] = 0
            if not running:
                break
            for number in list(running):
                running[number] += 50
                used += 500
                report = a_report(running[number], 2.0, tokens=running[number] * 10, seconds=running[number] / 10)
                if driven.search.report(number, report, CONTRACT) is Decision.PRUNE:
                    driven.search.prune(number)
                elif running[number] == 8 * EXAMPLES:
                    driven.search.complete(number, report, CONTRACT, "a")
                else:
                    continue
                del running[number]
        assert limit <= used <= limit + 3 * 500
        ended_well, why = driven.search.ending()
        assert ended_well
        assert next(iter(budget)).split("_")[0] in why.replace("device hours", "gpu").replace("wall-clock", "wall")
