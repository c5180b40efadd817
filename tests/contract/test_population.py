"""Population based training, without Ray: who is replaced by whom, the same whatever happens on the way."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Failure, Trial, TrialState, rank
from hpsearch.search import Asked, Decision, Lineage, history
from hpsearch.search.importance import importance
from hpsearch.search.memory import BORROWED
from hpsearch.search.population import EXCHANGES
from hpsearch.search.record import Loss
from hpsearch.spec import StudySpec
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.storage import optuna_storage
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, Storage, a_report, spec_of

SPACE: dict[str, Any] = {
    "epochs": 4,
    "batch_size": {"choices": [1, 2, 4]},
    "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
    "dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
    "weight_decay": {"choices": [0.0, 0.01, 0.1]},
}
POPULATION = 8
AT = (100, 200, 300)
"""Exposures of the exchanges: the ends of all epochs but the last."""


def pbt_spec(**changes: Any) -> StudySpec:
    pruner = {"type": "pbt", "population": POPULATION, **changes.pop("pruner", {})}
    return spec_of(20, **{"search_space": SPACE, "sampler": {"type": "auto"}, **changes, "pruner": pruner})


@pytest.fixture
def storage() -> Storage:
    """Many studies are searched here; that nothing is left in a process shows in those that are on SQLite."""
    return optuna.storages.InMemoryStorage()


class Trained:
    """A study and what its devices keep: a "weight" for each trial, which every report moves as the params say.

    Args:
        storage: Of the study.
        spec: Of the study.
        slots: Trials at once.
    """

    def __init__(self, storage: Storage, spec: StudySpec, slots: int = 3, **options: Any) -> None:
        self.storage, self.spec, self.slots, self.options = storage, spec, slots, options
        self.weights = Path(__file__).parent  # of every trial: a folder that is there
        self.kept: dict[int, tuple[int, float]] = {}
        self.handed_over: dict[tuple[int, int], float] = {}
        self.running: dict[int, Asked] = {}
        self.fails: dict[int, Failure] = {}
        """Trials that fail at their next report."""
        self.restart()

    def restart(self) -> None:
        """Another process takes the study over; what ran is found waiting."""
        self.driven = Driven(self.storage, self.spec, **self.options)
        self.search, self.running = self.driven.search, {}

    def fill(self) -> bool:
        """Ask for as many trials as may run; whether any does."""
        while len(self.running) < self.slots:
            room = self.search.room()
            asked = self.driven.ask()
            if asked is None:
                break
            assert room > 0 or self.search._limit(self.driven.trials()), "room said that there was none"
            self.begin(asked)
        return bool(self.running)

    def begin(self, asked: Asked) -> None:
        if asked.number not in self.kept:
            start = (0, 0.0) if asked.inherits is None else (asked.inherits[1], self.handed_over[asked.inherits])
            self.kept[asked.number] = start
        self.running[asked.number] = asked
        if self.kept[asked.number][0] == 0:
            assert self.search.report(asked.number, a_report(0, 3.0), CONTRACT) is Decision.GO_ON

    def step(self, number: int) -> Decision:
        """To the next report of a trial that runs, and what follows from it."""
        asked, (exposure, weight) = self.running[number], self.kept[number]
        if number in self.fails:
            del self.running[number]
            self.search.fail(number, self.fails.pop(number), "it was to fail")
            return Decision.ENDED
        exposure += EXAMPLES // 2
        weight += gain(asked.params)
        self.kept[number] = exposure, weight
        if asked.hands_over_at is not None and exposure >= asked.hands_over_at:
            self.handed_over[number, exposure] = weight
        report = a_report(exposure, loss(weight))
        decision = self.search.report(number, report, CONTRACT)
        self.follow(number, decision)
        return decision

    def follow(self, number: int, decision: Decision) -> None:
        last = self.kept[number][0] == 4 * EXAMPLES or decision is Decision.FINISH
        if decision is Decision.PAUSE:
            self.search.pause(number)
        elif decision is Decision.PRUNE:
            self.search.prune(number)
        elif last:
            best = min(self.driven.trial(number).reports[1:], key=lambda report: report.validation_loss)
            self.search.complete(number, best, CONTRACT, str(self.weights))
        if decision is not Decision.GO_ON or last:
            del self.running[number]

    def run(self) -> None:
        while self.fill():
            for number in list(self.running):
                self.step(number)

    def trials(self) -> list[Trial]:
        return self.driven.trials()

    def exchanges(self) -> list[dict[str, Any]]:
        study = history.load(self.storage, self.spec.name)
        assert study is not None
        return list(study.user_attrs.get(EXCHANGES, []))


def gain(params: dict[str, Any]) -> float:
    """What one report's training brings: the best multiplier is 1."""
    return 0.2 - 0.05 * abs(math.log10(params["learning_rate_multiplier"])) - 0.1 * params["dropout"]


def loss(weight: float) -> float:
    return 3.0 - weight


def outcome(trials: list[Trial]) -> list[Trial]:
    """All but when it was, and in how many attempts."""
    return [
        dataclasses.replace(trial, started_at=None, finished_at=None, attempts=1, orphaned=0, lost=0, reached=0)
        for trial in trials
    ]


def check(trained: Trained, size: int = 2) -> None:
    """What must hold of a study that is over, in which nothing failed."""
    trials, population = trained.trials(), trained.spec.pruner.population  # type: ignore[union-attr]
    states = Counter(str(trial.state) for trial in trials)
    done = trained.exchanges()
    assert states == Counter(COMPLETE=population, PRUNED=size * len(done))
    space = trained.spec.search_space.varying()
    for exchange in done:
        ranked = [number for number, _ in exchange["ranked"]]
        losses = [value for _, value in exchange["ranked"]]
        assert len(ranked) == population
        assert losses == sorted(losses)
        assert [heir["replaces"] for heir in exchange["heirs"]] == ranked[-size:]
        for heir in exchange["heirs"]:
            (trial,) = [trial for trial in trials if trial.replaces == heir["replaces"]]
            parent, ended = trials[heir["parent"]], trials[heir["replaces"]]
            assert parent.number in ranked[:size]
            assert (trial.parent, trial.inherited_at, trial.origin) == (parent.number, exchange["exposure"], "pbt")
            assert (ended.state, ended.reports[-1].exposure) == (TrialState.PRUNED, exchange["exposure"])
            assert "population based training: rank" in str(ended.pruned_because)
            assert trial.reports[: trial.carried] == parent.reports[: trial.carried]
            assert trial.reports[trial.carried - 1].exposure == exchange["exposure"]
            assert trial.params != parent.params
            assert trial.params["batch_size"] == parent.params["batch_size"]
            assert all(space[name].contains(value) for name, value in trial.params.items())
            lineage(trial, trials)


def lineage(trial: Trial, trials: list[Trial]) -> None:
    """Its config says, part by part, what those that it goes on from were trained with."""
    assert trial.config is not None
    config = FinetuneConfig.model_validate(trial.config)
    own = config.hyperparameters.model_dump()
    assert all(own[name] == value for name, value in trial.params.items())
    assert config.learning_rate == config.base_learning_rate * config.hyperparameters.learning_rate_multiplier
    if trial.parent is None or trial.inherited_at is None:
        assert config.earlier == ()
        return
    parents = FinetuneConfig.model_validate(trials[trial.parent].config)
    assert config.at(trial.inherited_at - 1) == parents.at(trial.inherited_at - 1)
    assert [part["until"] for part in trial.schedule] == [*(phase.until for phase in config.earlier), None]


@pytest.mark.parametrize("slots", [1, 3, 8, 12])
def test_the_outcome_does_not_depend_on_how_many_train_at_once(slots: int) -> None:
    found = []
    for at_once in (2, slots):
        trained = Trained(optuna.storages.InMemoryStorage(), pbt_spec(), at_once)
        trained.run()
        check(trained)
        found.append(trained)
    one, other = found
    assert [exchange["exposure"] for exchange in one.exchanges()] == list(AT)
    assert one.exchanges() == other.exchanges()
    assert outcome(one.trials()) == outcome(other.trials())
    assert one.search.ending() == (True, "the population came to its end")


def test_where_more_is_better_the_same_are_replaced_as_where_less_is() -> None:
    replaced = []
    for metric in ("validation_loss", "validation_token_accuracy"):  # of a made-up report, one falls as the other rises
        trained = Trained(optuna.storages.InMemoryStorage(), pbt_spec(objective={"metric": metric}))
        trained.run()
        replaced.append([exchange["heirs"] for exchange in trained.exchanges()])
    assert replaced[0] == replaced[1]


def test_a_process_that_is_replaced_at_every_step_decides_the_same(tmp_path: Path, sqlite_template: Path) -> None:
    found = []
    for name in ("undisturbed", "disturbed"):
        shutil.copy(sqlite_template, tmp_path / f"{name}.db")
        spec = pbt_spec(pruner={"population": 4})
        trained = Trained(optuna_storage(f"sqlite:///{tmp_path}/{name}.db"), spec)
        while trained.fill():
            for number in list(trained.running):
                if number in trained.running:
                    trained.step(number)
                if name == "disturbed":
                    trained.restart()
                    break
        found.append(trained)
    check(found[1], size=1)
    assert found[0].exchanges() == found[1].exchanges()
    assert outcome(found[0].trials()) == outcome(found[1].trials())
    assert sum(trial.attempts for trial in found[1].trials()) > sum(trial.attempts for trial in found[0].trials())


def test_those_that_are_furthest_behind_train_first_and_nobody_passes_an_exchange_alone(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(), slots=3)
    while trained.fill():
        for number in list(trained.running):
            trained.step(number)
        open_ = [trial for trial in trained.trials() if not trial.state.is_finished]
        reached = [trial.reports[-1].exposure if trial.reports else 0 for trial in open_]
        assert max(reached, default=0) - min(reached, default=0) <= EXAMPLES


@settings(max_examples=15)
@given(data=st.data())
def test_whatever_fails_or_dies_nothing_stays_open_and_every_heir_goes_on_from_one_of_the_best(
    data: st.DataObject,
) -> None:
    population, quantile = data.draw(st.integers(2, 9)), data.draw(st.sampled_from([0.1, 0.25, 0.5]))
    pruner = {"population": population, "quantile": quantile, "interval": data.draw(st.sampled_from([1, 2, 3]))}
    trained = Trained(optuna.storages.InMemoryStorage(), pbt_spec(pruner=pruner, seed=data.draw(st.integers(0, 99))))
    trained.slots = data.draw(st.integers(1, 4))
    failures = [Failure.DIVERGED, Failure.ERROR, Failure.WORKER_LOST, Failure.OUT_OF_MEMORY]
    for _ in range(2000):
        if not trained.fill():
            break
        number = data.draw(st.sampled_from(sorted(trained.running)))
        act = data.draw(st.sampled_from(["step"] * 12 + ["restart", "fail"]))
        if act == "restart":
            trained.restart()
            continue
        if act == "fail" and len(trained.trials()) < 3 * population:
            trained.fails[number] = data.draw(st.sampled_from(failures))
        trained.step(number)
    trials = trained.trials()
    if not trained.search.ending()[0]:  # five in a row failed
        return
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert len([trial for trial in trials if trial.parent is None and trial.retry_of is None]) == population
    replaced = Counter(trial.replaces for trial in trials if trial.replaces is not None and trial.retry_of is None)
    assert set(replaced.values()) <= {1}
    for exchange in trained.exchanges():
        ranked = [number for number, _ in exchange["ranked"]]
        losers = [heir["replaces"] for heir in exchange["heirs"]]
        parents = {heir["parent"] for heir in exchange["heirs"]}
        assert not parents & set(losers)
        assert all(ranked.index(parent) < math.ceil(population * quantile) for parent in parents)
        assert all(trials[number].state in (TrialState.PRUNED, TrialState.FAIL) for number in losers)
    for trial in trials:
        if trial.config is not None:
            lineage(trial, trials)
            weight = 0.0
            for part, report in zip(_parts(trial), trial.reports[1:], strict=True):
                weight += gain(part)
                assert report.validation_loss == pytest.approx(loss(weight))
    assert trained.search.needed_from() == math.inf


def _parts(trial: Trial) -> list[dict[str, Any]]:
    """The hyperparameters before each of its reports."""
    config = FinetuneConfig.model_validate(trial.config)
    return [config.at(report.exposure - 1).hyperparameters.model_dump() for report in trial.reports[1:]]


def test_who_failed_is_replaced_before_anybody_that_trains(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(), slots=8)
    trained.fill()
    trained.fails[5] = Failure.DIVERGED
    trained.run()
    first, *_ = trained.exchanges()
    losers = [heir["replaces"] for heir in first["heirs"]]
    assert losers[0] == 5
    assert len(losers) == 2
    heir = next(trial for trial in trained.trials() if trial.replaces == 5)
    assert (heir.state, heir.inherited_at) == (TrialState.COMPLETE, 100)
    assert trained.driven.states()["COMPLETE"] == POPULATION


def test_an_heir_that_is_lost_begins_again_where_it_took_over(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(), slots=8)
    while not trained.exchanges():
        trained.fill()
        for number in list(trained.running):
            trained.step(number)
    trained.fill()
    (heir, *_) = [trial for trial in trained.trials() if trial.parent is not None]
    trained.fails[heir.number] = Failure.WORKER_LOST
    trained.run()
    (retry,) = [trial for trial in trained.trials() if trial.retry_of == heir.number]
    assert (retry.parent, retry.inherited_at, retry.replaces) == (heir.parent, heir.inherited_at, heir.replaces)
    assert retry.reports[: retry.carried] == heir.reports[: heir.carried]
    lineage(retry, trained.trials())
    assert [each["exposure"] for each in trained.exchanges()] == list(AT)
    assert trained.driven.states()["COMPLETE"] == POPULATION


def test_the_end_of_a_budget_while_all_wait_leaves_each_its_best_so_far(storage: Storage) -> None:
    seconds = iter([0.0] * 60)
    spec = pbt_spec(budget={"trials": 20, "wall_clock": 10})
    trained = Trained(storage, spec, slots=1, elapsed=lambda: next(seconds, 20.0))
    while trained.fill():
        for number in list(trained.running):
            trained.step(number)
    ended = [trial for trial in trained.trials() if trial.state == TrialState.COMPLETE]
    assert ended
    assert all(trial.cut_short for trial in ended)
    assert trained.search.ending()[0]


def test_a_person_may_stop_one_of_them_and_have_one_that_was_replaced_go_on(storage: Storage) -> None:
    wishes: list[Wish] = []
    trained = Trained(
        storage,
        pbt_spec(),
        slots=3,
        orders=lambda: Orders(version=len(wishes), spec=trained.spec, requested=None, wishes=tuple(wishes)),
    )
    while len(trained.exchanges()) < 2:
        trained.fill()
        for number in list(trained.running):
            trained.step(number)
    replaced = next(trial for trial in trained.trials() if trial.pruned_because)
    member = next(trial for trial in trained.trials() if trial.state == TrialState.WAITING)
    wishes += [
        Wish(1, WishKind.CONTINUE, "ann", number=replaced.number),
        Wish(2, WishKind.STOP, "ann", number=member.number),
    ]
    trained.kept[len(trained.trials())] = trained.kept[replaced.number]
    trained.run()
    (going_on,) = [trial for trial in trained.trials() if trial.continues == replaced.number]
    assert going_on.state == TrialState.COMPLETE
    assert [report.exposure for report in going_on.reports] == list(range(0, 401, 50))
    stopped = trained.trials()[member.number]
    assert (stopped.state, stopped.stopped_by) == (TrialState.PRUNED, "ann")
    assert len(trained.exchanges()) == len(AT)


def test_an_heir_teaches_nobody_and_the_ranking_shows_its_schedule(storage: Storage) -> None:
    from hpsearch.results.insight import insight
    from hpsearch.search.taught import lesson

    trained = Trained(storage, pbt_spec(), slots=8)
    trained.run()
    study = history.load(storage, trained.spec.name)
    assert study is not None
    taught, _ = lesson(study.get_trials(), len(trained.trials()) - 1, "minimize")
    heirs = {trial.number for trial in trained.trials() if trial.parent is not None}
    assert heirs
    assert len(taught) == len(trained.trials()) - len(heirs)
    trials = trained.trials()
    ranking = rank("tickets", "finished", trained.spec.objective, history.baseline(study), trials)
    for entry in ranking.as_json()["ranking"]:
        assert bool(entry["schedule"]) == (entry["number"] in heirs)
    assert insight(trained.spec.search_space, ranking.trials, {}).trials == POPULATION - len(
        [trial for trial in ranking.trials if trial.parent is not None]
    )
    assert any(trial.number in heirs for trial in ranking.trials)


def test_a_population_takes_nothing_over_from_earlier_studies_and_lends_only_what_has_one_config(
    storage: Storage,
) -> None:
    lineage = Lineage("llama", "lora", "train", "validation")
    first = Trained(storage, pbt_spec(name="first"), slots=8, lineage=lineage)
    first.run()
    again = Trained(storage, pbt_spec(name="again"), slots=8, lineage=lineage)  # asserts that it trains every trial
    again.run()
    check(again)
    assert outcome(again.trials()) == outcome(first.trials())

    warm = spec_of(3, name="warm", search_space=SPACE, warm_start={"studies": ["first"], "first_trials": 0})
    Driven(storage, warm, lineage=lineage)
    taught = history.load(storage, "warm")
    assert taught is not None
    lent = {record["number"] for record in taught.user_attrs[BORROWED]}
    whole = [trial for trial in first.trials() if trial.state == TrialState.COMPLETE]
    assert lent == {trial.number for trial in whole if trial.parent is None}
    assert len(lent) < len(whole)
    plain = Trained(storage, spec_of(POPULATION, name="plain", search_space=SPACE), lineage=lineage)
    asked = plain.driven.must_ask()
    decision = plain.search.report(asked.number, a_report(0, 3.0), CONTRACT)
    assert decision is Decision.REUSE, "the defaults, which were trained to their end with one config"


def test_what_heirs_come_to_says_nothing_of_importance() -> None:
    space = {name: FloatDistribution(0, 1) for name in ("x", "y")}
    founders = [
        optuna.trial.create_trial(params={"x": n / 20, "y": (n * 7 % 20) / 20}, distributions=space, value=n / 20)
        for n in range(20)
    ]
    heirs = [
        optuna.trial.create_trial(
            params={"x": 0.9, "y": n / 200}, distributions=space, value=-1 + n / 200, user_attrs={"parent": 0}
        )
        for n in range(20)
    ]
    studies = []
    for trials in (founders, [*founders, *heirs]):
        studies.append(optuna.create_study())
        studies[-1].add_trials(trials)
    alone, with_heirs = map(importance, studies)
    assert alone["x"] > 0.5
    assert with_heirs == alone


def test_each_training_is_paid_for_once(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(budget={"trials": POPULATION}), slots=8)
    trained.run()
    check(trained)
    assert sum(trial.tokens for trial in trained.trials()) == POPULATION * 4 * EXAMPLES * 10


def test_what_was_handed_over_is_kept_as_long_as_anybody_may_begin_there(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(), slots=1)
    needed = set()
    while trained.fill():
        for number in list(trained.running):
            trained.step(number)
        needed.add(trained.search.needed_from())
        for trial in trained.trials():
            if trial.inherited_at is not None and not trial.state.is_finished:
                assert trial.inherited_at >= trained.search.needed_from() or len(trial.reports) > trial.carried
    assert needed == {0, *AT, math.inf}


def test_losses_of_its_worker_count_as_for_any_trial(storage: Storage) -> None:
    trained = Trained(storage, pbt_spec(), slots=1)
    trained.fill()
    (number,) = trained.running
    trained.search.interrupt(number, "its process died", Loss.WORKER)
    assert trained.trials()[number].lost == 1
    trained.running = {}
    while trained.trials()[number].reports[-1].exposure < AT[0]:
        trained.fill()
        for each in list(trained.running):
            trained.step(each)
    trial = trained.trials()[number]
    assert (trial.state, trial.attempts) == (TrialState.WAITING, 2)
