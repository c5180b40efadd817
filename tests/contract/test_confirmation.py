"""The best trials again under fresh seeds: each once, whatever happens, and nothing of it in the ranking."""

from __future__ import annotations

from collections import Counter
from typing import Any

import optuna
import pytest

from hpsearch.api.verdict_views import VerdictView
from hpsearch.results import Failure, TrialState, rank
from hpsearch.results.attributes import CONFIRMS, TRAINS
from hpsearch.results.sealed import SealedScore
from hpsearch.search import Asked, Confirmation, Decision, history
from hpsearch.search.confirmation import candidates, fresh_seeds
from hpsearch.search.told import Told
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.defaults import default_params
from hpsearch.storage import optuna_storage
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, InMemory, spec_of

TOP, SEEDS = 2, 3
BEFORE = a_report(0, 3.0)


@pytest.fixture
def storage() -> optuna.storages.BaseStorage:
    return InMemory()


def searched(storage: optuna.storages.BaseStorage, trials: int = 6, **changes: Any) -> Driven:
    driven = Driven(storage, spec_of(trials, **{"confirm": {"top": TOP, "seeds": SEEDS}, **changes}))
    driven.run_all()
    return driven


class Again:
    """A confirmation, and what Ray does with it."""

    def __init__(self, driven: Driven, told: Told | None = None) -> None:
        self.driven = driven
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.search = Confirmation(
            driven.search,
            driven.storage,
            examples=EXAMPLES,
            default_params=default_params(driven.spec, EXAMPLES),
            fence=lambda: None,
            event=lambda kind, details: self.events.append((kind, details)),
            told=told,
        )

    def ask(self) -> Asked | None:
        asked = self.search.ask()
        if asked is not None:
            assert asked.config is not None
            self.search.start(asked.number, asked.config)
        return asked

    def must_ask(self) -> Asked:
        return self.ask() or pytest.fail("nothing was lined up")

    def begin(self) -> Asked:
        """One that stays on its way."""
        asked = self.must_ask()
        self.search.report(asked.number, BEFORE, CONTRACT)
        return asked

    def run(self, asked: Asked, loss: float, sealed: SealedScore | None = None) -> None:
        reports = [BEFORE, a_report(EXAMPLES // 2, loss + 0.5), a_report(EXAMPLES, loss)]
        for report in reports:
            decision = self.search.report(asked.number, report, CONTRACT)
            assert decision is Decision.GO_ON
        self.search.complete(asked.number, reports[-1], CONTRACT, f"artifacts/{asked.number}", sealed)

    def run_all(self, losses: dict[int, float] | None = None) -> None:
        """Losses by trial; a seed adds the same to all, and a little to each."""
        while (asked := self.ask()) is not None:
            number, seed = self.place(asked)
            self.run(asked, (losses or {}).get(number, 2.0) + seed % 7 / 10 + (number * seed) % 5 / 1000)

    def place(self, asked: Asked) -> tuple[int, int]:
        """The searched trial that is trained again, and the seed."""
        attributes = self.search.frozen()[asked.number].user_attrs
        config = asked.config or pytest.fail("it has no config")
        assert attributes[TRAINS]["seed"] == config.seed
        return attributes[CONFIRMS], config.seed

    def trained(self) -> Counter[tuple[int, int]]:
        """How often each trial came to its end under each seed."""
        return Counter(
            (frozen.user_attrs[CONFIRMS], frozen.user_attrs["config"]["seed"])
            for frozen in self.search.frozen()
            if frozen.state == optuna.trial.TrialState.COMPLETE
        )


def test_the_best_and_the_defaults_are_trained_again_under_the_same_fresh_seeds(
    storage: optuna.storages.BaseStorage,
) -> None:
    driven = searched(storage)
    before = [(trial.number, trial.state, trial.value) for trial in driven.trials()]
    again = Again(driven)
    again.run_all()
    ranked = rank("tickets", "", driven.spec.objective, None, driven.trials()).trials
    expected = {0, *[trial.number for trial in ranked if trial.number != 0][:TOP]}
    seeds = fresh_seeds(driven.spec.seed, SEEDS)
    assert again.trained() == {(number, seed): 1 for number in expected for seed in seeds}
    assert driven.spec.seed not in seeds
    for frozen in again.search.frozen():
        original = driven.trial(frozen.user_attrs[CONFIRMS])
        assert {**frozen.user_attrs["config"], "seed": driven.spec.seed} == original.config
        assert frozen.params == original.params
    assert [(trial.number, trial.state, trial.value) for trial in driven.trials()] == before
    assert again.search.ending()[0]


def test_only_what_confirms_is_tested_and_the_verdict_tells_of_whom_it_recommends(
    storage: optuna.storages.BaseStorage,
) -> None:
    files = {"train": "/data/train.jsonl", "validation": "/data/validation.jsonl"}
    driven = searched(storage, data={**files, "test": "/data/test.jsonl"})
    again = Again(driven)
    best = candidates(driven.search, TOP)[0].number
    assert all("test" not in (trial.config or {})["data"] for trial in driven.trials())
    while (asked := again.ask()) is not None:
        number, seed = again.place(asked)
        assert asked.config is not None
        assert asked.config.data.test == "/data/test.jsonl"
        loss = 1.0 if number == best else 2.0
        sealed = SealedScore("these", 50, (loss, loss + seed % 3 / 100), (1.0, 1.0))
        again.run(asked, loss + seed % 7 / 10, sealed)
    verdict = again.search.verdict()
    assert (verdict.outcome, verdict.recommended) == ("better", best)
    assert verdict.test is not None
    assert verdict.test.examples == 50
    assert verdict.test.gain == pytest.approx(1.0)
    assert "On 50 sealed test examples it is better by 1 " in verdict.text
    assert VerdictView(**verdict.as_json(), outdated=False).test is not None


def test_what_is_told_names_the_searched_trial_and_the_seed(storage: optuna.storages.BaseStorage) -> None:
    again = Again(searched(storage))
    again.run_all()
    first, *rest = again.events
    assert first[0] == "study.confirming"
    assert first[1]["trainings"] == len(again.search.frozen())
    assert {kind for kind, _ in rest} == {"confirmation.started", "confirmation.completed"}
    told = {(details["number"], details["seed"]) for kind, details in rest if kind == "confirmation.completed"}
    assert told == set(again.trained())


def test_a_process_that_dies_in_the_middle_is_followed_by_one_that_trains_nothing_twice(
    storage: optuna.storages.BaseStorage,
) -> None:
    driven = searched(storage)
    for ended in (0, 2, 1):
        again = Again(driven)
        for _ in range(ended):
            again.run(again.ask() or pytest.fail("nothing was lined up"), 2.0)
        again.begin()  # and it dies
    last = Again(driven)
    last.run_all()
    assert set(last.trained().values()) == {1}
    assert len(last.trained()) == len(candidates(driven.search, TOP)) * SEEDS
    assert all(frozen.state.is_finished() for frozen in last.search.frozen())


def test_a_lost_workers_training_is_tried_again_under_its_seed(storage: optuna.storages.BaseStorage) -> None:
    again = Again(searched(storage))
    lost = again.begin()
    again.search.fail(lost.number, Failure.OUTDATED_CHECKPOINT, "of another version")
    again.run_all()
    assert set(again.trained().values()) == {1}
    assert again.place(lost) in again.trained()
    assert len(again.search.frozen()) == len(again.trained()) + 1


def test_a_new_best_trial_is_all_that_is_trained_after_an_extension(storage: optuna.storages.BaseStorage) -> None:
    driven = searched(storage, trials=3)
    Again(driven).run_all()
    was = {trial.number for trial in candidates(driven.search, TOP)}
    longer = searched(storage, trials=12)
    now = {trial.number for trial in candidates(longer.search, TOP)}
    assert now - was
    again = Again(longer)
    assert again.events[0][1]["trainings"] == len(now - was) * SEEDS
    again.run_all()
    assert set(again.trained().values()) == {1}
    Again(longer).run_all()
    assert len(again.search.frozen()) == len(was | now) * SEEDS


def test_what_waits_and_is_not_asked_for_any_more_is_not_trained(storage: optuna.storages.BaseStorage) -> None:
    again = Again(searched(storage))
    again.run(again.must_ask(), 1.0)
    again.begin()
    again.search.release("the study was paused")
    less = Again(searched(storage, confirm={"top": 1, "seeds": SEEDS - 1}))
    less.run_all()
    wanted = {trial.number for trial in candidates(less.driven.search, 1)}
    seeds = fresh_seeds(less.driven.spec.seed, SEEDS - 1)
    assert less.trained() == {(number, seed): 1 for number in wanted for seed in seeds}
    more = Again(searched(storage))
    more.run_all()
    assert more.search.verdict().seeds == SEEDS, "what was taken back is trained when it is asked for again"


def test_what_is_told_to_be_trained_is_trained(storage: optuna.storages.BaseStorage) -> None:
    again = Again(searched(storage, trials=3))
    again.run(again.must_ask(), 1.0)
    again.search.release("the study was paused")
    longer = Again(searched(storage, trials=12))
    (told,) = [details for kind, details in longer.events if kind == "study.confirming"]
    before = again.trained().total()
    longer.run_all()
    assert told["trainings"] == longer.trained().total() - before


def test_where_the_defaults_are_best_the_best_of_the_others_is_trained_beside_them(
    storage: optuna.storages.BaseStorage,
) -> None:
    """Alone, they could not be compared with anything, however many seeds they are given."""
    spec = searched(InMemory(), trials=1).spec.model_copy(update={"budget": BudgetSpec(trials=3)})
    driven = Driven(storage, spec)
    for loss in (1.0, 2.0, 3.0):
        asked = driven.must_ask()
        for report in (BEFORE, a_report(EXAMPLES, loss)):
            driven.search.report(asked.number, report, CONTRACT)
        driven.search.complete(asked.number, a_report(EXAMPLES, loss), CONTRACT, "artifacts/x")
    assert [[trial.number for trial in candidates(driven.search, top)] for top in (1, 2, 3)] == [
        [1, 0],
        [1, 2, 0],
        [1, 2, 0],
    ]


def test_trials_of_one_config_are_one_candidate(storage: optuna.storages.BaseStorage) -> None:
    """Where the defaults are best they are compared with others, not with themselves."""
    driven = Driven(storage, spec_of(1, search_space={"epochs": {"low": 1, "high": 4}}))
    driven.run_all()
    assert [trial.number for trial in candidates(driven.search, 3)] == [0]


def test_a_better_trial_is_told_from_a_lucky_one(storage: optuna.storages.BaseStorage) -> None:
    driven = searched(storage)
    best, second, *_ = (trial.number for trial in candidates(driven.search, TOP))
    better = Again(driven)
    better.run_all({best: 1.5})
    found = better.search.verdict().as_json()
    assert (found["outcome"], found["recommended"]) == ("better", best)
    assert {each["number"] for each in found["candidates"]} == {best, second, 0}
    lucky = searched(InMemory())
    again = Again(lucky)
    again.run_all()
    assert again.search.verdict().outcome != "better"


def test_a_training_that_fails_under_a_fresh_seed_counts_against_its_trial(
    storage: optuna.storages.BaseStorage,
) -> None:
    driven = searched(storage)
    best = candidates(driven.search, TOP)[0].number
    again = Again(driven)
    failed = 0
    while (asked := again.ask()) is not None:
        if again.place(asked)[0] == best and not failed:
            again.search.report(asked.number, BEFORE, CONTRACT)
            again.search.fail(asked.number, Failure.DIVERGED, "not finite")
            failed += 1
        else:
            again.run(asked, 2.0)
    assert failed
    assert again.search.verdict().recommended != best
    assert ("confirmation.failed", "diverged") in [(kind, details.get("failure")) for kind, details in again.events]


@pytest.mark.parametrize("failure", [Failure.ERROR, Failure.WORKER_LOST, Failure.CANCELLED])
def test_what_ends_by_no_fault_of_its_params_is_trained_when_it_is_asked_for_again(
    storage: optuna.storages.BaseStorage, failure: Failure
) -> None:
    """A driver or a device that broke does not make a trial an unstable one."""
    driven = searched(storage)
    again = Again(driven)
    for _ in range(4):
        again.begin()
    again.search.close(failure, "something broke")
    again.search.close_waiting("the confirmation is over")
    found, everyone = again.search.verdict(), len(candidates(driven.search, TOP)) * SEEDS
    assert found.outcome == "incomplete"
    said = f" 4 trainings broke off and {everyone - 4} trainings did not begin ({failure}: something broke): mend that"
    assert failure == Failure.CANCELLED or said in found.text
    assert "confirm with more seeds" not in found.text
    assert again.ask() is None
    last = Again(driven)
    last.run_all()
    assert set(last.trained().values()) == {1}
    assert len(last.trained()) == everyone
    assert last.search.verdict().outcome not in ("incomplete", "unstable")
    assert "broke off" not in last.search.verdict().text


def test_what_was_not_begun_because_all_fail_alike_is_told_with_that(storage: optuna.storages.BaseStorage) -> None:
    driven = searched(storage)
    again = Again(driven)
    for _ in range(5):
        asked = again.begin()
        again.search.fail(asked.number, Failure.OUT_OF_MEMORY, "it needs 90 GiB")
    again.search.close_waiting("the confirmation is over")
    text = again.search.verdict().text
    unbegun = len(candidates(driven.search, TOP)) * SEEDS - 5
    assert f" {unbegun} trainings did not begin (" in text
    assert "out_of_memory" in text
    assert "cancelled" not in text


def test_the_verdict_stands_in_the_ranking_until_another_trial_is_best(storage: optuna.storages.BaseStorage) -> None:
    driven = searched(storage, trials=3)
    again = Again(driven)
    again.run_all()
    judged = again.search.verdict().as_json()
    driven.search.judged(judged)
    driven.search.judged(judged)
    assert [kind for kind, _ in driven.events].count("study.verdict") == 1
    assert history.verdict(history.load(storage, "tickets")) == judged

    def ranking(of: Driven) -> dict[str, Any]:
        ranked = rank("tickets", "finished", of.spec.objective, None, of.trials())
        told: dict[str, Any] = ranked.judged(history.verdict(history.load(storage, "tickets"))).as_json()["verdict"]
        return told

    assert ranking(driven) == {**judged, "outdated": False}
    longer = searched(storage, trials=12)
    assert ranking(longer)["outdated"]


def test_a_verdict_that_was_kept_and_not_told_is_told_by_the_next_process(
    storage: optuna.storages.BaseStorage,
) -> None:
    driven = searched(storage, trials=3)
    again = Again(driven)
    again.run_all()
    judged = again.search.verdict().as_json()
    dying, following = (Driven(storage, driven.spec) for _ in range(2))
    dying.events = Dying()
    with pytest.raises(KeyboardInterrupt):
        dying.search.judged(judged)
    for _ in range(2):
        following.search.judged(judged)
    assert [kind for kind, _ in following.events].count("study.verdict") == 1


def test_the_end_of_a_training_that_was_not_told_is_told_by_the_next_process(
    storage: optuna.storages.BaseStorage,
) -> None:
    driven = searched(storage)
    again = Again(driven)
    for number in range(2):  # of one place, one after the other: the second is tried again
        again.search.fail(again.begin().number, Failure.DIVERGED if number else Failure.WORKER_LOST, "it had to come")
    again.run_all()
    ends = [each for each in again.events if each[0] in {"confirmation.completed", "confirmation.failed"}]
    assert len(ends) == len(again.search.frozen())
    for place in range(len(ends)):
        told = [*driven.events, *ends[:place], *ends[place + 1 :]]
        assert Again(driven, lambda kinds, told=told: [each for each in told if each[0] in kinds]).events == [
            ends[place]
        ]
    assert Again(driven, lambda _: ends).events == []
    assert Again(driven, lambda _: []).events == ends


class Dying(list[Any]):
    """Nothing is told any more."""

    def append(self, _: Any) -> None:
        raise KeyboardInterrupt


def test_it_is_closed_and_forgotten_with_its_study(migrated_url: str) -> None:
    storage = optuna_storage(migrated_url)
    again = Again(searched(storage))
    again.begin()
    history.interrupt_running(storage, "tickets")
    assert {frozen.state for frozen in again.search.frozen()} == {optuna.trial.TrialState.WAITING}
    assert history.close_open(storage, "tickets", "cancelled") == []
    confirmation = history.load(storage, history.confirmation_of("tickets"))
    assert {trial.state for trial in history.trials(confirmation)} == {TrialState.FAIL}
    history.delete(storage, "tickets")
    assert optuna.get_all_study_names(storage) == []
    storage.remove_session()
    storage.engine.dispose()
