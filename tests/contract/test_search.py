"""Which trial next: ask and tell without Ray, the same promises on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import TrialState as OptunaState

from hpsearch.errors import LeaseLost, TrialNotFound
from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Failure, Trial, TrialState
from hpsearch.results.budget import SAME_FAILURES, counts
from hpsearch.search import Asked, Decision, Search, history
from hpsearch.search.losses import PATIENCE, RETRIES, Loss
from hpsearch.search.taught import lesson
from hpsearch.search.told import Happening
from hpsearch.spec import StudySpec
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.storage import optuna_storage
from tests.builders import SPACE, a_report, a_spec

EXAMPLES = 100
CONTRACT = "contract"
Storage = optuna.storages.BaseStorage

SAMPLERS = ["curves", "tpe", "random", "qmc", "gp", "cmaes"]
PRUNERS: list[dict[str, Any]] = [
    {"type": "curves"},
    {"type": "none"},
    {"type": "successive_halving"},
    {"type": "hyperband"},
    {"type": "percentile", "startup_trials": 2},
    {"type": "wilcoxon", "p": 0.3},
]


@pytest.fixture
def storage(migrated_url: str) -> Iterator[Storage]:
    opened = optuna_storage(migrated_url)
    yield opened
    opened.remove_session()
    opened.engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture
def sqlite(tmp_path: Path, sqlite_template: Path) -> Storage:
    """Where the database makes no difference, the faster one."""
    shutil.copy(sqlite_template, tmp_path / "search.db")
    return optuna_storage(f"sqlite:///{tmp_path / 'search.db'}")


class Driven:
    """A search, and twenty lines that do what Ray does: ask, train a made-up loss, report, complete."""

    def __init__(
        self, storage: Storage, spec: StudySpec, events: list[Happening] | None = None, **changes: Any
    ) -> None:
        self.spec, self.storage = spec, storage
        self.events: list[Happening] = [] if events is None else events
        self.search = Search(
            spec,
            storage,
            examples=EXAMPLES,
            default_params=default_params(spec, EXAMPLES),
            event=lambda kind, details: self.events.append((kind, details)),
            **changes,
        )

    def ask(self, *, alone: bool = True) -> Asked | None:
        asked = self.search.ask(alone=alone)
        if asked is not None:
            config = asked.config or resolve(self.spec, asked.params, EXAMPLES, "llama", 1_000_000)
            self.search.start(asked.number, config)
        return asked

    def must_ask(self) -> Asked:
        return self.ask() or pytest.fail("the search had no trial")

    def run(self, asked: Asked, start: int = 0) -> Decision:
        """Train one trial to its end, or until it is pruned."""
        reports = [a_report(exposure, loss_of(asked.params, exposure)) for exposure in exposures_of(asked.params)]
        for report in reports:
            if report.exposure >= start and self.search.report(asked.number, report, CONTRACT) == Decision.PRUNE:
                self.search.prune(asked.number)
                return Decision.PRUNE
        best = min(reports[1:], key=lambda report: report.validation_loss)
        self.search.complete(asked.number, best, CONTRACT, f"artifacts/{asked.number}")
        return Decision.GO_ON

    def run_all(self) -> None:
        while (asked := self.ask()) is not None:
            self.run(asked)

    def finish(self) -> None:
        self.search.end()

    def trials(self) -> list[Trial]:
        return history.trials(history.load(self.storage, self.spec.name))

    def trial(self, number: int) -> Trial:
        return history.trial(history.load(self.storage, self.spec.name), number)

    def states(self) -> Counter[str]:
        return Counter(str(trial.state) for trial in self.trials())


def exposures_of(params: dict[str, Any]) -> range:
    """Of the reports of an undisturbed trial."""
    return range(0, int(params.get("epochs", 1)) * EXAMPLES + 1, EXAMPLES // 2)


def loss_of(params: dict[str, Any], exposure: int) -> float:
    rate = float(params.get("learning_rate_multiplier", 1.0))
    return 2.0 + 0.3 * abs(math.log10(rate)) - 0.5 * min(exposure / 400, 1.0) + 0.01 * int(params.get("epochs", 1))


def points(trials: list[Trial]) -> list[str]:
    return [json.dumps(trial.params, sort_keys=True) for trial in trials]


def spec_of(trials: int = 6, **changes: Any) -> StudySpec:
    fields: dict[str, Any] = {"sampler": {"type": "random"}, "pruner": {"type": "none"}, "budget": {"trials": trials}}
    return a_spec(**{**fields, **changes})


class TestTheWholeLoop:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_every_sampler_uses_the_budget_and_repeats_nothing(self, storage: Storage, sampler: str) -> None:
        driven = Driven(storage, spec_of(6, sampler={"type": sampler} | _startup(sampler)))
        driven.run_all()
        driven.finish()
        assert driven.states() == {"COMPLETE": 6}
        assert len(set(points(driven.trials()))) == 6
        for trial in driven.trials():
            assert list(driven.spec.search_space.faults(trial.params)) == []
            assert set(trial.params) == set(SPACE)

    @pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner["type"])
    def test_every_pruner_ends_every_trial(self, storage: Storage, pruner: dict[str, Any]) -> None:
        trials = 24 if pruner["type"] == "hyperband" else 8  # its brackets share them
        driven = Driven(storage, spec_of(trials, pruner=pruner))
        driven.run_all()
        driven.finish()
        states = driven.states()
        assert sum(states.values()) == trials
        assert set(states) <= {"COMPLETE", "PRUNED"}
        assert states["COMPLETE"] >= 1
        assert (states["PRUNED"] > 0) is (pruner["type"] != "none")

    @pytest.mark.parametrize(
        "pruner",
        [
            {"type": "hyperband", "min_reports": 1000},
            {"type": "hyperband", "min_reports": 8},
            {"type": "successive_halving", "min_reports": 1000},
            {"type": "percentile", "min_reports": 1000, "startup_trials": 1},
            {"type": "wilcoxon", "min_reports": 1000},
        ],
        ids=lambda pruner: f"{pruner['type']}-{pruner['min_reports']}",
    )
    def test_a_pruner_that_never_gets_its_turn_does_no_harm(self, sqlite: Storage, pruner: dict[str, Any]) -> None:
        driven = Driven(sqlite, spec_of(4, pruner=pruner))
        driven.run_all()
        driven.finish()
        assert driven.states() == {"COMPLETE": 4}

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_trials_that_start_together_repeat_nothing(self, sqlite: Storage, sampler: str) -> None:
        driven = Driven(sqlite, spec_of(8, sampler={"type": sampler} | _startup(sampler)))
        together = [driven.must_ask() for _ in range(8)]
        assert driven.ask() is None
        for asked in together:
            driven.run(asked)
        assert len(set(points(driven.trials()))) == 8

    def test_the_same_study_draws_the_same_params_again(self, tmp_path: Path) -> None:
        drawn = []
        for place in ("one", "two"):
            driven = Driven(optuna_storage(f"sqlite:///{tmp_path / place}.db"), spec_of(6, sampler={"type": "tpe"}))
            driven.run_all()
            drawn.append(points(driven.trials()))
        assert drawn[0] == drawn[1]

    def test_another_seed_draws_other_params(self, sqlite: Storage) -> None:
        runs = []
        for seed in (1, 2):
            driven = Driven(sqlite, spec_of(4, name=f"seed-{seed}", seed=seed))
            driven.run_all()
            runs.append(set(points(driven.trials()[1:])))
        assert not runs[0] & runs[1]

    def test_accuracy_is_maximised(self, sqlite: Storage) -> None:
        spec = spec_of(2, objective={"metric": "validation_token_accuracy"})
        driven = Driven(sqlite, spec)
        driven.run_all()
        study = history.load(sqlite, "tickets")
        assert study is not None
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        for trial in driven.trials():
            assert trial.value == max(report.validation_token_accuracy for report in trial.reports if report.exposure)

    def test_events_tell_what_happened_in_order(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(1, search_space={"epochs": {"low": 1, "high": 1}}))
        driven.run_all()
        kinds = [kind for kind, _ in driven.events]
        assert kinds == ["trial.started", "study.baseline", *["trial.reported"] * 3, "trial.completed"]
        assert all(json.dumps(details) for _, details in driven.events)


def _startup(sampler: str) -> dict[str, int]:
    return {"startup_trials": 3} if sampler in ("tpe", "gp", "cmaes") else {}


class TestTheFirstTrials:
    def test_the_defaults_come_first_then_the_ones_that_a_person_named(self, storage: Storage) -> None:
        firsts = [
            {"epochs": 1, "learning_rate_multiplier": 0.5, "batch_size": 4},
            {"epochs": 2, "learning_rate_multiplier": 5.0, "batch_size": 2},
        ]
        driven = Driven(storage, spec_of(4, first_trials=firsts))
        asked = [driven.must_ask() for _ in range(4)]
        assert [one.origin for one in asked] == ["defaults", "first_trials", "first_trials", "search"]
        assert asked[0].params == default_params(driven.spec, EXAMPLES)
        assert [asked[1].params, asked[2].params] == firsts

    def test_what_a_first_trial_leaves_out_is_drawn_anew_for_each(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(5, first_trials=[{"epochs": 1}, {"epochs": 2}, {"epochs": 3}]))
        asked = [driven.must_ask() for _ in range(5)]
        assert [one.params["epochs"] for one in asked[1:4]] == [1, 2, 3]
        assert len({one.params["learning_rate_multiplier"] for one in asked}) == 5

    def test_a_first_trial_that_is_the_defaults_is_tried_once(self, sqlite: Storage) -> None:
        defaults = default_params(spec_of(), EXAMPLES)
        driven = Driven(sqlite, spec_of(2, first_trials=[defaults]))
        assert [driven.must_ask().origin for _ in range(2)] == ["defaults", "search"]

    def test_first_trials_beyond_the_budget_are_not_tried_and_do_not_wait_for_ever(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(2, first_trials=[{"epochs": n} for n in (1, 2, 3, 4)]))
        driven.run_all()
        driven.finish()
        assert driven.states() == {"COMPLETE": 2, "FAIL": 3}
        assert {trial.failure for trial in driven.trials()[2:]} == {"cancelled"}

    def test_nothing_varies_and_one_trial_says_it_all(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(1, search_space={}))
        driven.run_all()
        assert driven.states() == {"COMPLETE": 1}

    def test_a_search_that_died_while_it_began_begins_again(self, sqlite: Storage) -> None:
        spec = spec_of(6, first_trials=[{"epochs": 1}, {"epochs": 2}])
        study = optuna.create_study(study_name=spec.name, storage=sqlite, direction="minimize")
        study.enqueue_trial(default_params(spec, EXAMPLES), user_attrs={"origin": "defaults"})
        driven = Driven(sqlite, spec)
        assert [driven.must_ask().origin for _ in range(4)] == ["defaults", "first_trials", "first_trials", "search"]


class TestReporting:
    def test_the_value_is_the_best_reports_and_no_report_is_lost(self, storage: Storage) -> None:
        driven = Driven(storage, spec_of(1))
        asked = driven.must_ask()
        reports = [a_report(0, 3.0), a_report(50, 1.5), a_report(100, 1.0), a_report(400, 2.0)]
        for report in reports:
            assert driven.search.report(asked.number, report, CONTRACT) == Decision.GO_ON
        driven.search.complete(asked.number, reports[2], CONTRACT, "artifacts/0")
        trial = driven.trial(0)
        assert (trial.state, trial.value, trial.best_epoch) == (TrialState.COMPLETE, 1.0, 1.0)
        assert trial.reports == tuple(reports)
        assert (trial.adapter, trial.evaluation_contract) == ("artifacts/0", CONTRACT)
        assert trial.config is not None
        assert trial.config["hyperparameters"]["epochs"] == asked.params["epochs"]

    def test_a_pruned_trial_keeps_its_last_report_and_has_no_value(self, storage: Storage) -> None:
        driven = Driven(storage, spec_of(1))
        asked = driven.must_ask()
        driven.search.report(asked.number, a_report(50, 0.001), CONTRACT)
        driven.search.prune(asked.number)
        trial = driven.trial(0)
        assert (trial.state, trial.value) == (TrialState.PRUNED, None)
        assert trial.reports == (a_report(50, 0.001),)
        assert driven.events[-1] == ("trial.pruned", {"number": 0, "exposure": 50})

    @pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
    def test_a_loss_that_is_not_finite_is_no_report(self, sqlite: Storage, loss: float) -> None:
        driven = Driven(sqlite, spec_of(1))
        asked = driven.must_ask()
        with pytest.raises(ValueError, match="diverged"):
            driven.search.report(asked.number, a_report(50, loss), CONTRACT)
        driven.search.fail(asked.number, Failure.DIVERGED, "the loss is nan")
        trial = driven.trial(0)
        assert (trial.state, trial.failure, trial.failure_text) == (TrialState.FAIL, "diverged", "the loss is nan")
        assert trial.reports == ()

    def test_a_diverged_trial_counts_and_is_not_repeated(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(2))
        for _ in range(2):
            driven.search.fail(driven.must_ask().number, Failure.DIVERGED, "nan")
        assert driven.ask() is None
        assert driven.states() == {"FAIL": 2}
        assert driven.search.ending() == (False, "no trial completed: all 2 trials of the budget were used")

    def test_the_baseline_is_kept_once_from_the_first_report_at_exposure_zero(self, storage: Storage) -> None:
        driven = Driven(storage, spec_of(2))
        first, second = driven.must_ask(), driven.must_ask()
        assert history.baseline(history.load(storage, "tickets")) is None
        driven.search.report(second.number, a_report(0, 3.0), CONTRACT)
        driven.search.report(first.number, a_report(0, 9.0), "other")
        baseline = history.baseline(history.load(storage, "tickets"))
        assert baseline is not None
        assert (baseline["validation_loss"], baseline["evaluation_contract"]) == (3.0, CONTRACT)
        assert [kind for kind, _ in driven.events].count("study.baseline") == 1

    def test_warnings_about_the_data_are_told_once_a_study(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(2))
        for trial in (driven.must_ask(), driven.must_ask()):
            driven.search.report(trial.number, a_report(0, 3.0), CONTRACT, ("7 of 400 examples were cut",))
        told = [details for kind, details in driven.events if kind == "study.warning"]
        assert told == [{"text": "7 of 400 examples were cut"}]


class TestPruning:
    @pytest.fixture
    def judged(self, sqlite: Storage) -> Callable[..., Driven]:
        """A search whose pruner stops whatever is worse than the good trials that completed before."""

        def build(**space: Any) -> Driven:
            pruner = {"type": "percentile", "percentile": 1, "startup_trials": 1, "min_reports": 1}
            search_space = {"epochs": {"low": 2, "high": 2}, "learning_rate_multiplier": {"low": 0.1, "high": 9}}
            driven = Driven(sqlite, spec_of(9, pruner=pruner, search_space={**search_space, **space}))
            asked = driven.must_ask()
            for exposure in range(0, 201, 10):
                driven.search.report(asked.number, a_report(exposure, 0.5), CONTRACT)
            driven.search.complete(asked.number, a_report(200, 0.5), CONTRACT, "artifacts/0")
            return driven

        return build

    def decisions(self, driven: Driven, exposures: list[int]) -> list[Decision]:
        asked = driven.must_ask()
        return [driven.search.report(asked.number, a_report(exposure, 9.0), CONTRACT) for exposure in exposures]

    def test_a_trial_that_is_not_promising_is_stopped(self, judged: Callable[..., Driven]) -> None:
        assert self.decisions(judged(), [100]) == [Decision.PRUNE]

    def test_nothing_is_stopped_at_the_baseline(self, judged: Callable[..., Driven]) -> None:
        assert self.decisions(judged(), [0]) == [Decision.GO_ON]

    def test_nothing_is_stopped_inside_its_warm_up(self, judged: Callable[..., Driven]) -> None:
        decisions = self.decisions(judged(warmup_fraction=0.6), [60, 110, 120, 130])
        assert decisions == [Decision.GO_ON, Decision.GO_ON, Decision.GO_ON, Decision.PRUNE]

    def test_nothing_is_stopped_at_its_last_report(self, judged: Callable[..., Driven]) -> None:
        assert self.decisions(judged(), [200]) == [Decision.GO_ON]

    def test_halving_compares_a_long_warm_up_at_the_exposure_where_it_stood(self, sqlite: Storage) -> None:
        space = {"epochs": 4, "warmup_fraction": {"choices": [0.6, 0.0]}}
        firsts = [{"warmup_fraction": 0.6}, {"warmup_fraction": 0.0}]
        pruner = {"type": "successive_halving", "min_reports": 2, "reduction_factor": 2}
        driven = Driven(sqlite, spec_of(4, pruner=pruner, search_space=space, first_trials=firsts))
        by_warmup = {asked.params["warmup_fraction"]: asked.number for asked in (driven.must_ask(), driven.must_ask())}
        for exposure, loss in ((50, 3.0), (100, 2.5), (200, 2.2), (250, 2.0)):
            assert driven.search.report(by_warmup[0.6], a_report(exposure, loss), CONTRACT) is Decision.GO_ON
        for exposure, loss in ((50, 2.9), (100, 2.4)):  # better at every exposure than the other was there
            assert driven.search.report(by_warmup[0.0], a_report(exposure, loss), CONTRACT) is Decision.GO_ON

    def test_a_budget_that_is_spent_stops_a_trial_inside_its_warm_up(self, sqlite: Storage) -> None:
        now = 0.0
        space = {"epochs": 4, "warmup_fraction": 0.9, "batch_size": {"choices": [4, 8]}}
        driven = Driven(sqlite, spec_of(9, budget={"wall_clock": "1m"}, search_space=space), elapsed=lambda: now)
        asked = driven.must_ask()
        now = 60.0
        assert driven.search.report(asked.number, a_report(50), CONTRACT) is Decision.FINISH

    def test_stopping_in_order_costs_a_trial_nothing_however_often(self, sqlite: Storage) -> None:
        spec = spec_of(2)
        for attempt in range(1, 7):
            driven = Driven(sqlite, spec)
            asked = driven.must_ask()
            assert (asked.number, asked.attempt) == (0, attempt)
            driven.search.release("the runner was stopped")
            assert driven.states() == {"WAITING": 1}
        assert Driven(sqlite, spec).must_ask().number == 0

    @pytest.mark.parametrize(
        ("exposure", "decision"),
        [(0, Decision.GO_ON), (100, Decision.FINISH), (400, Decision.GO_ON)],
        ids=["baseline", "midway", "last"],
    )
    def test_a_budget_that_is_spent_stops_running_trials_too(
        self, sqlite: Storage, exposure: int, decision: Decision
    ) -> None:
        now = 0.0
        driven = Driven(sqlite, spec_of(9, budget={"wall_clock": "1m"}), elapsed=lambda: now)
        asked = driven.must_ask()
        if exposure:
            assert driven.search.report(asked.number, a_report(50), CONTRACT) == Decision.GO_ON
        now = 60.0
        assert driven.search.report(asked.number, a_report(exposure), CONTRACT) == decision
        assert driven.ask() is None

    def test_a_spent_budget_leaves_something_in_hand_and_prunes_what_is_not_needed_for_that(
        self, sqlite: Storage
    ) -> None:
        now = 0.0
        driven = Driven(sqlite, spec_of(9, budget={"wall_clock": "1m"}), elapsed=lambda: now)
        one, two, three = driven.must_ask(), driven.must_ask(), driven.must_ask()
        now = 60.0
        for asked in (one, two):  # nobody has come to an end
            assert driven.search.report(asked.number, a_report(50, 2.0), CONTRACT) is Decision.FINISH
            driven.search.complete(asked.number, a_report(50, 2.0), CONTRACT, "folder")
        trials = driven.search.trials()
        assert [(trial.state, trial.cut_short) for trial in trials[:2]] == [(TrialState.COMPLETE, True)] * 2
        driven.search.report(three.number, a_report(400, 1.0), CONTRACT)
        driven.search.complete(three.number, a_report(400, 1.0), CONTRACT, "folder")
        assert not driven.search.trials()[2].cut_short
        assert driven.search.ending() == (True, "the wall-clock budget of 60 s was used")

    def test_a_trial_that_was_to_end_with_what_it_has_gets_to_even_when_it_is_interrupted(
        self, sqlite: Storage
    ) -> None:
        now = 0.0
        spec = spec_of(9, budget={"wall_clock": "1m"}, first_trials=[{"epochs": 3}, {"epochs": 4}])
        driven = Driven(sqlite, spec, elapsed=lambda: now)
        other, asked = driven.must_ask(), driven.must_ask()
        driven.search.report(asked.number, a_report(50, 2.0), CONTRACT)
        now = 60.0
        assert driven.search.report(asked.number, a_report(100, 1.5), CONTRACT) is Decision.FINISH
        for number in (other.number, asked.number):
            driven.search.interrupt(number, "the device's process died")
        again = driven.must_ask()
        assert (again.number, again.reported) == (asked.number, 100)
        assert driven.ask() is None, "the other one had nothing in hand"
        assert driven.search.report(asked.number, a_report(100, 1.5), CONTRACT) is Decision.FINISH
        driven.search.complete(asked.number, a_report(100, 1.5), CONTRACT, "folder")
        assert driven.trial(asked.number).cut_short
        assert driven.trial(asked.number).value == 1.5

    def test_a_trial_that_goes_on_after_all_was_not_cut_short(self, sqlite: Storage) -> None:
        now = 0.0
        driven = Driven(sqlite, spec_of(9, budget={"wall_clock": "1m"}), elapsed=lambda: now)
        asked = driven.must_ask()
        now = 60.0
        assert driven.search.report(asked.number, a_report(50, 2.0), CONTRACT) is Decision.FINISH
        extended = Driven(sqlite, spec_of(9, budget={"wall_clock": "1h"}), elapsed=lambda: now)
        again = extended.must_ask()
        assert again.number == asked.number
        for exposure in (50, 100, 400):
            assert extended.search.report(again.number, a_report(exposure, 2.0), CONTRACT) is Decision.GO_ON
        extended.search.complete(again.number, a_report(50, 2.0), CONTRACT, "folder")
        assert not extended.trial(again.number).cut_short


class TestEnding:
    def test_nothing_stays_running_or_waiting(self, storage: Storage) -> None:
        driven = Driven(storage, spec_of(6, first_trials=[{"epochs": 1}, {"epochs": 2}]))
        for _ in range(2):
            driven.ask()
        driven.search.close(Failure.CANCELLED, "the study was cancelled")
        driven.search.close_waiting("the study was cancelled")
        assert driven.states() == {"FAIL": 3}
        assert {(t.failure, t.failure_text) for t in driven.trials()} == {("cancelled", "the study was cancelled")}

    def test_the_same_failure_again_and_again_ends_the_study(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(50))
        while (asked := driven.ask()) is not None:
            driven.search.fail(asked.number, Failure.ERROR, "no space left on device")
        ended_well, why = driven.search.ending()
        assert not ended_well
        assert "no space left on device" in why
        assert len(driven.trials()) == SAME_FAILURES

    def test_the_verdict_names_the_limit(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(2))
        driven.run_all()
        ended_well, why = driven.search.ending()
        assert ended_well
        assert "2 trials" in why

    def test_a_number_that_no_trial_has_is_not_found(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(2))
        with pytest.raises(TrialNotFound):
            driven.trial(99)
        assert history.trials(history.load(sqlite, "missing")) == []
        history.delete(sqlite, "missing")
        history.delete(sqlite, "tickets")
        assert history.load(sqlite, "tickets") is None


class TestAfterACrash:
    """A crash is a search that is dropped: the next one knows only what lies in SQL."""

    @pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
    def test_interrupted_trials_go_on_first_under_their_numbers(self, storage: Storage, sampler: str) -> None:
        spec = spec_of(8, sampler={"type": sampler} | _startup(sampler))
        before = Driven(storage, spec)
        before.run(before.must_ask())
        running = [before.must_ask() for _ in range(2)]
        before.search.report(running[0].number, a_report(0, 3.0), CONTRACT)
        before.search.report(running[0].number, a_report(50, loss_of(running[0].params, 50)), CONTRACT)
        after = Driven(storage, spec)
        assert after.states() == {"COMPLETE": 1, "WAITING": 2}
        again = [after.must_ask() for _ in range(2)]
        assert [(one.number, one.params) for one in again] == [(one.number, one.params) for one in running]
        assert [(one.attempt, one.reported) for one in again] == [(2, 50), (2, None)]
        assert [one.config for one in again] == [
            resolve(spec, one.params, EXAMPLES, "llama", 1_000_000) for one in again
        ]
        for one in again:
            after.run(one, start=one.reported or 0)
        after.run_all()
        after.finish()
        assert after.states() == {"COMPLETE": 8}
        assert len(set(points(after.trials()))) == 8
        study = history.load(storage, spec.name)
        assert study is not None
        for trial, frozen in zip(after.trials(), study.get_trials(), strict=True):
            exposures = [report.exposure for report in trial.reports]
            assert exposures == list(range(0, int(trial.params["epochs"]) * EXAMPLES + 1, EXAMPLES // 2))
            assert list(frozen.intermediate_values) == exposures

    def test_what_is_repeated_differently_is_no_continuation(self, sqlite: Storage) -> None:
        before = Driven(sqlite, spec_of(3))
        asked = before.must_ask()
        for exposure, loss in ((0, 3.0), (50, 2.0), (100, 1.5)):
            before.search.report(asked.number, a_report(exposure, loss), CONTRACT)
        after = Driven(sqlite, spec_of(3))
        again = after.must_ask()
        assert after.search.report(again.number, a_report(0, 3.0), CONTRACT) == Decision.GO_ON
        assert after.search.report(again.number, a_report(50, 2.00001), CONTRACT) == Decision.GO_ON
        assert after.search.report(again.number, a_report(100, 1.6), CONTRACT) == Decision.ENDED
        assert [report.validation_loss for report in after.trial(0).reports] == [3.0, 2.0, 1.5]
        assert after.trial(0).failure == "worker_lost"
        retry = after.must_ask()
        assert (retry.number, retry.params, retry.reported) == (1, asked.params, None)
        assert after.trial(1).retry_of == 0

    @pytest.mark.parametrize(("device", "goes_on"), [("host/1a2b3c4d/cpu0", False), ("host/1a2b3c4d/gpu0", True)])
    def test_on_a_gpu_a_continuation_may_differ_by_more_since_sums_are_bfloat16(
        self, sqlite: Storage, device: str, goes_on: bool
    ) -> None:
        before = Driven(sqlite, spec_of(3))
        asked = before.must_ask()
        for exposure, loss in ((0, 3.0), (50, 2.0)):
            before.search.report(asked.number, a_report(exposure, loss), CONTRACT)
        after = Driven(sqlite, spec_of(3))
        again = after.must_ask()
        after.search.trained_on(again.number, device)
        after.search.replayed(again.number, 8, 2, 0.002)
        said = [details["text"] for kind, details in after.events if kind == "study.warning"]
        assert any("trains differently in company" in text for text in said) is not goes_on
        repeated = after.search.report(again.number, a_report(50, 2.02), CONTRACT)
        assert repeated == (Decision.GO_ON if goes_on else Decision.ENDED)
        if goes_on:
            assert after.search.report(again.number, a_report(50, 2.2), CONTRACT) == Decision.ENDED

    def test_after_an_upgrade_what_can_not_be_gone_on_with_is_trained_anew_and_that_counts_nowhere(
        self, sqlite: Storage
    ) -> None:
        """However often: it is neither a lost worker nor a failure of the study."""
        driven = Driven(sqlite, spec_of(1))
        asked = driven.must_ask()
        for upgrade in range(RETRIES + 2):
            driven.search.report(asked.number, a_report(50, 2.0), CONTRACT)
            driven.search.fail(asked.number, Failure.OUTDATED_CHECKPOINT, "of another version of hpsearch")
            again = driven.must_ask()
            assert (again.params, again.reported) == (asked.params, None)
            assert driven.trial(again.number).retry_of == asked.number == upgrade
            assert driven.trial(again.number).lost == 0
            asked = again
        driven.run(asked)
        assert driven.ask() is None
        assert driven.search.ending()[0]

    def test_a_trial_that_was_to_be_pruned_when_the_process_died_is_pruned(self, sqlite: Storage) -> None:
        spec = spec_of(4, pruner={"type": "successive_halving"}, search_space={**SPACE, "epochs": 4})
        before = Driven(sqlite, spec)
        before.run(before.must_ask())
        asked = before.must_ask()
        before.search.report(asked.number, a_report(0, 3.0), CONTRACT)
        exposure, decision = 0, Decision.GO_ON
        while decision is Decision.GO_ON:
            exposure += 50
            decision = before.search.report(asked.number, a_report(exposure, 9.0), CONTRACT)
        assert exposure < 400
        after = Driven(sqlite, spec)
        assert after.trial(asked.number).state == TrialState.PRUNED
        assert after.must_ask().number == 2

    def test_a_crash_between_the_curve_and_optuna_s_record_of_it_is_mended(self, sqlite: Storage) -> None:
        before = Driven(sqlite, spec_of(2))
        asked = before.must_ask()
        before.search.report(asked.number, a_report(0, 3.0), CONTRACT)
        study = history.load(sqlite, "tickets")
        assert study is not None
        curve = [a_report(0, 3.0).as_json(), a_report(50, 2.0).as_json()]
        sqlite.set_trial_user_attr(study.get_trials()[0]._trial_id, "curve", curve)
        Driven(sqlite, spec_of(2)).must_ask()
        assert study.get_trials()[0].intermediate_values == {0: 3.0, 50: 2.0}

    def test_one_crash_is_not_hopeless_however_many_trials_it_interrupts(self, sqlite: Storage) -> None:
        spec = spec_of(4 * SAME_FAILURES)
        before = Driven(sqlite, spec)
        running = [before.must_ask() for _ in range(2 * SAME_FAILURES)]
        after = Driven(sqlite, spec)
        assert [after.must_ask().params for _ in running] == [asked.params for asked in running]
        assert after.must_ask().origin == "search"

    def test_a_trial_that_kills_its_workers_is_handed_out_finitely_often(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(8))
        handed = []
        for _ in range(RETRIES + 1):
            handed.append(driven.must_ask())
            driven.search.interrupt(handed[-1].number, "the device's process died")
        assert [asked.params for asked in handed] == [handed[0].params] * (RETRIES + 1)
        assert [asked.number for asked in handed] == [0] * RETRIES + [1]
        assert driven.must_ask().params != handed[0].params
        assert [trial.failure for trial in driven.trials()[:2]] == ["worker_lost"] * 2
        assert [trial.retry_of for trial in driven.trials()[:2]] == [None, 0]

    def test_the_deaths_of_its_drivers_are_not_a_trial_s_fault_but_not_without_end(self, sqlite: Storage) -> None:
        spec = spec_of(8)
        handed = [Driven(sqlite, spec).must_ask() for _ in range(PATIENCE + RETRIES + 1)]
        assert [asked.params for asked in handed] == [handed[0].params] * len(handed)
        assert [asked.number for asked in handed] == [0] * (PATIENCE + RETRIES) + [1]
        assert Driven(sqlite, spec).must_ask().params != handed[0].params

    def test_who_is_to_blame_for_the_death_of_a_shared_device_is_found_out_one_by_one(self, sqlite: Storage) -> None:
        """Four trials, of which the first kills whatever it is on: suspects go on before anything new is tried."""
        driven = Driven(sqlite, spec_of(8))
        poison, *others = [driven.must_ask() for _ in range(4)]
        for asked in (poison, *others):
            driven.search.report(asked.number, a_report(0), CONTRACT)
            driven.search.interrupt(asked.number, "the device's process died", Loss.DEVICE)
        assert {(trial.lost, trial.alone_until) for trial in driven.trials()} == {(0, 0)}
        driven = Driven(sqlite, spec_of(8))  # as the next runner finds it
        for died in range(RETRIES):
            assert driven.must_ask().number == poison.number
            assert driven.ask(alone=False) is not None, "others train beside it, on other devices"
            driven.search.interrupt(poison.number, "the device's process died", Loss.DEVICE)
            for number in [asked.number for asked in others] if died == 0 else []:
                asked = driven.must_ask()
                assert (asked.number, asked.alone_until) == (number, 0)
                driven.search.report(number, a_report(50), CONTRACT)
                assert driven.trial(number).alone_until is None
        assert [driven.trial(number).failure for number in range(4)] == ["worker_lost", None, None, None]
        (retry,) = [trial for trial in driven.trials() if trial.retry_of == poison.number]
        again = driven.must_ask()
        assert (again.number, again.alone_until) == (retry.number, 0), "it is no less suspect under another number"
        assert [kind for kind, details in driven.events if details.get("alone")].count("trial.continued") == 6

    def test_a_cleared_trial_is_no_more_to_blame_for_the_next_death_than_others(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(8))
        for exposure in (0, 50, 100, 150):
            number = driven.must_ask().number
            driven.search.report(number, a_report(exposure), CONTRACT)
            driven.search.interrupt(number, "the device's process died", Loss.DEVICE)
            trial = driven.trial(number)
            assert (number, trial.lost, trial.alone_until) == (0, 0, exposure)

    def test_what_happens_outside_of_a_suspect_neither_clears_nor_accuses_it(self, sqlite: Storage) -> None:
        spec = spec_of(8)
        driven = Driven(sqlite, spec)
        driven.search.interrupt(driven.must_ask().number, "the device's process died", Loss.DEVICE)
        driven.must_ask()
        driven.search.release("the study was paused")
        driven.must_ask()
        driven = Driven(sqlite, spec)  # its runner died
        trial = driven.trial(0)
        assert (trial.lost, trial.orphaned, trial.alone_until) == (0, 1, 0)

    @pytest.mark.parametrize("trials", [3, 4])
    def test_no_trial_beyond_the_budget_fills_the_place_of_those_that_wait_for_a_device_of_their_own(
        self, sqlite: Storage, trials: int
    ) -> None:
        driven = Driven(sqlite, spec_of(trials))
        for asked in [driven.must_ask() for _ in range(3)]:
            driven.search.interrupt(asked.number, "the device's process died", Loss.DEVICE)
        assert driven.must_ask().alone_until == 0
        for number in range(3, trials):
            assert driven.search.ask(alone=False) is not None
            assert number in [trial.number for trial in driven.trials()]
        assert driven.search.ask(alone=False) is None
        assert len(driven.trials()) == trials

    def test_being_released_neither_counts_nor_forgives(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(8))
        for _ in range(RETRIES - 1):
            driven.search.interrupt(driven.must_ask().number, "the device's process died")
            for _ in range(2 * RETRIES):
                assert driven.must_ask().number == 0
                driven.search.release("the study was paused")
        driven.search.interrupt(driven.must_ask().number, "the device's process died")
        assert driven.trial(0).failure == "worker_lost"

    def test_a_trial_that_gets_further_each_time_is_handed_out_as_often_as_it_takes(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(8))
        for exposure in range(0, 500, 50):
            assert driven.must_ask().number == 0
            driven.search.report(0, a_report(exposure), CONTRACT)
            driven.search.interrupt(0, "the device's process died")
        # Not so from its start again: the retry has to get further than the trial that it retries.
        for _ in range(RETRIES - 1):
            assert driven.must_ask().number == 0
            driven.search.interrupt(0, "the device's process died")
        assert driven.must_ask().number == 1
        driven.search.report(1, a_report(0), CONTRACT)
        driven.search.report(1, a_report(450), CONTRACT)
        driven.search.interrupt(1, "the device's process died")
        assert driven.trial(1).failure == "worker_lost"
        assert driven.must_ask().number == 2

    @pytest.mark.parametrize("seed", range(3))
    def test_many_crashes_repeat_no_point_and_keep_to_the_budget(self, sqlite: Storage, seed: int) -> None:
        dice = random.Random(seed)
        spec = spec_of(10, name=f"crashes-{seed}", sampler={"type": "tpe", "startup_trials": 3})
        for _ in range(6):
            driven = Driven(sqlite, spec)
            running = [asked for asked in (driven.ask() for _ in range(3)) if asked]
            for asked in running[: dice.randint(0, 3)]:
                driven.run(asked)
        driven = Driven(sqlite, spec)
        driven.run_all()
        driven.finish()
        trials = driven.trials()
        counted = [trial for trial in trials if counts(trial)]
        assert len(counted) == 10
        assert len(set(points(counted))) == 10
        assert set(driven.states()) <= {"COMPLETE", "FAIL"}

    def test_a_finished_study_stays_as_it_is(self, sqlite: Storage) -> None:
        driven = Driven(sqlite, spec_of(3))
        driven.run_all()
        before = driven.trials()
        again = Driven(sqlite, spec_of(3))
        assert again.ask() is None
        assert again.trials() == before

    def test_a_crash_in_the_midst_of_asking_loses_no_first_trial(self, sqlite: Storage) -> None:
        spec = spec_of(4, first_trials=[{"epochs": 1, "learning_rate_multiplier": 0.5, "batch_size": 4}])
        driven = Driven(sqlite, spec)
        waiting = history.load(sqlite, "tickets")
        assert waiting is not None
        # What Optuna's `ask` does first: the trial is RUNNING, its params are not drawn yet.
        first = waiting.get_trials()[0]
        assert sqlite.set_trial_state_values(first._trial_id, optuna.trial.TrialState.RUNNING)
        after = Driven(sqlite, spec)
        asked = [after.must_ask() for _ in range(3)]
        assert default_params(spec, EXAMPLES) in [one.params for one in asked]
        assert driven.spec.first_trials[0] in [one.params for one in asked]


class TestTheFence:
    def test_who_has_lost_the_lease_writes_nothing(self, storage: Storage) -> None:
        lost = False

        def fence() -> None:
            if lost:
                raise LeaseLost

        driven = Driven(storage, spec_of(6, first_trials=[{"epochs": 1}]), fence=fence)
        one, two, three = (driven.must_ask() for _ in range(3))
        driven.search.report(one.number, a_report(50), CONTRACT)
        before, events = driven.trials(), list(driven.events)
        lost = True
        config = resolve(driven.spec, two.params, EXAMPLES, "llama", 1)
        for write in (
            driven.search.ask,
            lambda: driven.search.start(two.number, config),
            lambda: driven.search.report(one.number, a_report(100), CONTRACT),
            lambda: driven.search.report(two.number, a_report(0), CONTRACT),
            lambda: driven.search.complete(one.number, a_report(50), CONTRACT, "a"),
            lambda: driven.search.prune(two.number),
            lambda: driven.search.fail(three.number, Failure.ERROR, "x"),
            lambda: driven.search.fail(three.number, Failure.WORKER_LOST, "x"),
            lambda: driven.search.close(Failure.CANCELLED, "x"),
            lambda: driven.search.close_waiting("x") or driven.search.ask(),
            lambda: Driven(storage, driven.spec, fence=fence),
        ):
            with pytest.raises(LeaseLost):
                write()
        assert driven.trials() == before
        assert driven.events == events
        assert history.baseline(history.load(storage, "tickets")) is None


class InMemory(optuna.storages.InMemoryStorage):
    """Optuna's own takes for granted that no trial waits again; those in SQL, on which we run, look."""

    def set_trial_state_values(self, trial_id: int, *args: Any, **changes: Any) -> bool:
        self._prev_waiting_trial_number.update(dict.fromkeys(self._studies, 0))
        return super().set_trial_state_values(trial_id, *args, **changes)


class Interleavings(RuleBasedStateMachine):
    """Anything may happen in any order: asks, reports, endings of every kind, crashes."""

    BUDGET = 5

    def __init__(self) -> None:
        super().__init__()
        self.storage = InMemory()
        self.ended: dict[int, Trial] = {}
        self.running: dict[int, Asked] = {}

    @initialize(sampler=st.sampled_from(["random", "tpe"]), firsts=st.integers(0, 2))
    def begin(self, sampler: str, firsts: int) -> None:
        first_trials = [{"epochs": 1 + place} for place in range(firsts)]
        self.spec = spec_of(self.BUDGET, sampler={"type": sampler}, first_trials=first_trials)
        self.driven = Driven(self.storage, self.spec)

    @rule(alone=st.booleans())
    def ask(self, alone: bool) -> None:
        asked = self.driven.ask(alone=alone)
        if asked is not None:
            self.running[asked.number] = asked

    def pick(self, drawn: st.DataObject) -> int:
        return drawn.draw(st.sampled_from(sorted(self.running)))

    @precondition(lambda self: self.running)
    @rule(drawn=st.data())
    def report(self, drawn: st.DataObject) -> None:
        number = self.pick(drawn)
        seen = self.driven.trial(number).reports
        exposure = seen[-1].exposure + 50 if seen else 0
        self.driven.search.report(number, a_report(exposure), CONTRACT)
        assert self.driven.trial(number).reports == (*seen, a_report(exposure))

    @precondition(lambda self: self.running)
    @rule(drawn=st.data())
    def complete(self, drawn: st.DataObject) -> None:
        number = self.pick(drawn)
        self.driven.search.complete(number, a_report(100), CONTRACT, "artifacts")
        del self.running[number]
        assert self.driven.trial(number).state == TrialState.COMPLETE

    @precondition(lambda self: self.running)
    @rule(drawn=st.data())
    def prune(self, drawn: st.DataObject) -> None:
        number = self.pick(drawn)
        self.driven.search.prune(number)
        del self.running[number]
        assert self.driven.trial(number).state == TrialState.PRUNED

    @precondition(lambda self: self.running)
    @rule(drawn=st.data(), failure=st.sampled_from(list(Failure)))
    def fail(self, drawn: st.DataObject, failure: Failure) -> None:
        number = self.pick(drawn)
        self.driven.search.fail(number, failure, "text")
        del self.running[number]
        assert self.driven.trial(number).failure == failure

    @rule()
    def crash(self) -> None:
        self.driven = Driven(self.storage, self.spec)
        self.running.clear()

    @rule()
    def hand_over(self) -> None:
        self.driven.search.release("the runner was stopped")
        self.crash()

    @precondition(lambda self: self.running)
    @rule(drawn=st.data(), loss=st.sampled_from(Loss))
    def lose(self, drawn: st.DataObject, loss: Loss) -> None:
        number = self.pick(drawn)
        self.driven.search.interrupt(number, "the worker died", loss)
        del self.running[number]
        assert self.driven.trial(number).state in (TrialState.WAITING, TrialState.FAIL)

    @invariant()
    def the_budget_is_kept(self) -> None:
        assert sum(map(counts, self.driven.trials())) <= self.BUDGET

    @invariant()
    def who_is_running_is_known_to_the_search(self) -> None:
        running = {trial.number for trial in self.driven.trials() if trial.state == TrialState.RUNNING}
        assert running == set(self.running)
        assert all(self.driven.search.is_running(number) for number in running)

    @invariant()
    def what_has_ended_never_changes(self) -> None:
        ended = {trial.number: trial for trial in self.driven.trials() if trial.state.is_finished}
        assert {number: ended[number] for number in self.ended} == self.ended
        self.ended = ended

    @invariant()
    def params_are_retried_finitely_often_and_otherwise_once(self) -> None:
        tried = Counter(points([trial for trial in self.driven.trials() if len(trial.params) == len(SPACE)]))
        assert not tried or max(tried.values()) <= RETRIES + 1
        fresh = [trial for trial in self.driven.trials() if trial.retry_of is None and len(trial.params) == len(SPACE)]
        assert len(set(points(fresh))) == len(fresh)

    def teardown(self) -> None:
        self.driven.finish()
        assert not {"RUNNING", "WAITING"} & set(self.driven.states())


Interleavings.TestCase.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestInterleavings = Interleavings.TestCase


class TestContinuing:
    """A person wants to see the end of a trial that was pruned."""

    def pruned(self, storage: Storage, **changes: Any) -> tuple[Driven, Trial]:
        """A study whose rule stops every trial at its first report, and its first trial."""
        spec = a_spec(pruner={"type": "threshold", "worst": 0.1, "min_reports": 1}, budget={"trials": 1}, **changes)
        driven = Driven(storage, spec)
        assert driven.run(driven.must_ask()) == Decision.PRUNE
        return driven, driven.trial(0)

    def going_on(self, driven: Driven, *, budget: dict[str, Any], number: int = 0, wish: int = 1) -> Driven:
        spec = driven.spec.model_copy(update={"budget": BudgetSpec.model_validate(budget)})
        orders = Orders(wish, None, spec, (Wish(wish, WishKind.CONTINUE, "alice", number=number),))
        return Driven(driven.storage, driven.spec, orders=lambda: orders)

    def test_it_goes_on_where_it_stood_under_a_new_number_and_no_rule_stops_it(self, storage: Storage) -> None:
        driven, before = self.pruned(storage)
        again = self.going_on(driven, budget={"trials": 2})
        asked = again.must_ask()
        assert (asked.params, asked.reported, asked.attempt, asked.snapshots) == (before.params, 50, 2, 0)
        assert asked.config == resolve(driven.spec, before.params, EXAMPLES, "llama", 1_000_000)
        assert again.run(asked, start=50) == Decision.GO_ON
        after = again.trial(1)
        assert (after.state, after.origin, after.continues) == (TrialState.COMPLETE, "continued", 0)
        assert [report.exposure for report in after.reports] == list(exposures_of(before.params))
        assert after.reports[:2] == before.reports
        assert again.trial(0) == before
        assert again.ask() is None

    def test_without_a_snapshot_it_begins_anew_under_the_same_number(self, storage: Storage) -> None:
        driven, before = self.pruned(storage)
        again = self.going_on(driven, budget={"trials": 2})
        for _ in range(2):  # also when it is interrupted before its first report
            asked = again.search.ask(kept=lambda _: False) or pytest.fail("the search had no trial")
            assert (asked.number, asked.params, asked.reported, asked.snapshots) == (1, before.params, None, 0)
            again.search.start(asked.number, resolve(driven.spec, asked.params, EXAMPLES, "llama", 1_000_000))
            assert again.trial(1).reports == ()
            again.search.interrupt(1, "paused", Loss.NONE)
        assert again.run(again.must_ask()) == Decision.GO_ON
        after = again.trial(1)
        assert (after.state, after.origin, after.continues) == (TrialState.COMPLETE, "continued", 0)
        assert after.tokens == after.reports[-1].tokens, "all of it is trained anew"
        assert [details["exposure"] for kind, details in again.events if kind == "trial.continued"] == [0, 0, 0]
        assert again.ask() is None
        assert len(again.trials()) == 2

    def test_what_it_has_trained_under_its_own_number_is_never_forgotten(self, storage: Storage) -> None:
        driven, before = self.pruned(storage)
        again = self.going_on(driven, budget={"trials": 2})
        asked = again.must_ask()
        again.search.report(asked.number, a_report(100, 1.0), CONTRACT)
        again.search.interrupt(1, "paused", Loss.NONE)
        asked = again.search.ask(kept=lambda _: False) or pytest.fail("the search had no trial")
        assert (asked.number, asked.reported) == (1, 100)
        assert again.trial(1).reports[:2] == before.reports

    def test_whoever_dies_with_the_wish_unfulfilled_continues_it_once(self, sqlite: Storage) -> None:
        driven, _ = self.pruned(sqlite)
        self.going_on(driven, budget={"trials": 2}).must_ask()
        again = self.going_on(driven, budget={"trials": 2})
        assert again.must_ask().number == 1
        assert len(again.trials()) == 2

    def test_only_what_is_trained_anew_is_paid_for(self, sqlite: Storage) -> None:
        driven, before = self.pruned(sqlite)
        again = self.going_on(driven, budget={"trials": 9, "tokens": before.tokens + 1})
        asked = again.must_ask()
        reports = [a_report(exposure, 1.0) for exposure in exposures_of(asked.params)]
        assert before.tokens == before.reports[-1].tokens > 0
        assert again.trial(1).tokens == 0
        again.search.report(asked.number, before.reports[-1], CONTRACT)
        assert again.trial(1).tokens == 0
        assert again.search.report(asked.number, reports[2], CONTRACT) == Decision.FINISH
        assert again.trial(1).tokens == reports[2].tokens - before.tokens

    def test_its_curve_teaches_once(self, sqlite: Storage) -> None:
        driven, before = self.pruned(sqlite)
        again = self.going_on(driven, budget={"trials": 3})
        again.run(again.must_ask(), start=50)
        shown, place = lesson(again.search.frozen(), current=1, direction="minimize")
        assert (shown, place) == ([], 0)
        again.must_ask()
        shown, place = lesson(again.search.frozen(), current=2, direction="minimize")
        assert [(trial.number, trial.state, trial.params) for trial in shown] == [
            (0, OptunaState.COMPLETE, before.params)
        ]
        assert place == 1

    def test_its_curve_teaches_once_after_it_was_tried_again_from_its_start_too(self, sqlite: Storage) -> None:
        driven, before = self.pruned(sqlite)
        again = self.going_on(driven, budget={"trials": 3})
        again.search.fail(again.must_ask().number, Failure.WORKER_LOST, "there is no checkpoint")
        again.run(again.must_ask())
        again.must_ask()
        shown, _ = lesson(again.search.frozen(), current=3, direction="minimize")
        assert [(trial.number, trial.state, trial.params) for trial in shown] == [
            (0, OptunaState.COMPLETE, before.params)
        ]

    def test_snapshots_are_kept_of_what_runs_and_of_the_best_that_were_pruned(self, sqlite: Storage) -> None:
        spec = a_spec(
            pruner={"type": "threshold", "worst": 0.1, "min_reports": 1},
            budget={"trials": 4},
            sampler={"type": "random"},
        )
        driven = Driven(sqlite, spec)
        for _ in range(3):
            driven.run(driven.must_ask())
        driven.must_ask()
        best = min(driven.trials()[:3], key=lambda trial: trial.reports[-1].validation_loss).number
        assert driven.search.idle_snapshots(parked=1) == {0, 1, 2} - {best}
        assert driven.search.idle_snapshots(parked=0) == {0, 1, 2}
        again = self.going_on(driven, budget={"trials": 5}, number=best)
        again.must_ask()
        again.must_ask()
        assert again.search.idle_snapshots(parked=0) == set(range(5)) - {best, 3}

    def test_what_can_not_go_on_is_tried_from_its_start_and_spared(self, sqlite: Storage) -> None:
        driven, before = self.pruned(sqlite)
        again = self.going_on(driven, budget={"trials": 2})
        again.search.fail(again.must_ask().number, Failure.WORKER_LOST, "there is no checkpoint")
        retry = again.must_ask()
        assert (retry.params, retry.reported, retry.snapshots) == (before.params, None, 2)
        assert again.run(retry) == Decision.GO_ON
