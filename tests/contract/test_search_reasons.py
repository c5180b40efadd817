"""A pruned trial says why, and what it says is what the curves say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Trial, TrialState
from hpsearch.search import Decision
from tests.builders import SPACE
from tests.contract.test_search import PRUNERS, Driven, Storage, spec_of, sqlite  # noqa: F401

RULES: list[dict[str, Any]] = [
    *(rule for rule in PRUNERS if rule["type"] != "none"),
    {"type": "median", "startup_trials": 2},
    {"type": "threshold", "worst": 1.9},
    {"type": "patient", "patience": 1, "min_delta": 0.2, "pruner": {"type": "percentile", "startup_trials": 2}},
]


def pruned(driven: Driven) -> list[Trial]:
    return [trial for trial in driven.trials() if trial.state == TrialState.PRUNED]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["type"])
def test_a_rule_says_what_it_saw(sqlite: Storage, rule: dict[str, Any]) -> None:  # noqa: F811
    driven = Driven(sqlite, spec_of(24, pruner=rule))
    driven.run_all()
    assert pruned(driven)
    for trial in pruned(driven):
        said, last = str(trial.pruned_because), trial.reports[-1]
        assert said.startswith(f"pruner {rule['type']}: ")
        before = [other for other in driven.trials() if other.number < trial.number]
        if rule["type"] == "threshold":
            assert said.endswith(f"its last report, {last.validation_loss:.4f}, is worse than pruner.worst (1.9)")
            assert last.validation_loss > 1.9
        elif rule["type"] == "curves":
            best, chance, needed = re.findall(r"[\d.]+", said.removeprefix("pruner curves: "))
            losses = [min(report.validation_loss for report in other.reports[1:]) for other in before if other.value]
            assert float(best) == pytest.approx(min(losses), abs=1e-4)
            assert float(chance) <= float(needed) <= 10
        elif rule["type"] == "wilcoxon":
            number, behind, common = map(int, re.findall(r"\d+", said))
            best_one = min((other for other in before if other.value is not None), key=lambda other: other.value or 0.0)
            assert number == best_one.number
            assert 2 <= behind <= common == min(len(trial.reports), len(best_one.reports)) - 1
        else:
            stood, better, others = re.findall(r"[\d.]+", said.split("it stood at")[1])
            there = [
                report.validation_loss
                for other in before
                for report in other.reports
                if report.exposure == last.exposure
            ]
            assert float(stood) == pytest.approx(last.validation_loss, abs=1e-4)
            assert int(others) == len(there)
            assert int(better) == sum(loss < last.validation_loss for loss in there) > 0
            assert ("no longer got better" in said) is (rule["type"] == "patient")


def test_it_is_told_with_the_event_and_is_nothing_of_trials_that_ended_well(sqlite: Storage) -> None:  # noqa: F811
    driven = Driven(sqlite, spec_of(12, pruner={"type": "median", "startup_trials": 2}))
    driven.run_all()
    told = {details["number"]: details["text"] for kind, details in driven.events if kind == "trial.pruned"}
    assert told == {trial.number: trial.pruned_because for trial in pruned(driven)}
    assert {trial.pruned_because for trial in driven.trials() if trial.state == TrialState.COMPLETE} == {None}


def test_a_budget_that_is_spent_is_the_reason(sqlite: Storage) -> None:  # noqa: F811
    space = {**SPACE, "epochs": 2}
    driven = Driven(sqlite, spec_of(9, budget={"wall_clock": 60}, search_space=space), elapsed=lambda: elapsed)
    elapsed = 0.0
    driven.run(driven.must_ask())
    second = driven.must_ask()
    elapsed = 61.0
    assert driven.run(second) == Decision.PRUNE
    (cut,) = pruned(driven)
    assert cut.pruned_because == "the wall-clock budget of 60 s was used"


def test_so_is_a_person(sqlite: Storage) -> None:  # noqa: F811
    wishes: list[Wish] = []
    spec = spec_of(9, search_space={**SPACE, "epochs": 2})
    orders = lambda: Orders(version=len(wishes), spec=spec, requested=None, wishes=tuple(wishes))  # noqa: E731
    driven = Driven(sqlite, spec, orders=orders)
    first = driven.must_ask()
    wishes.append(Wish(1, WishKind.STOP, "ann", number=first.number))
    assert driven.run(first) == Decision.PRUNE
    (stopped,) = pruned(driven)
    assert (stopped.pruned_because, stopped.stopped_by) == ("stopped by ann", "ann")
