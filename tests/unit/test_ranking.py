"""Where losses become a rank."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.results import Ranking, Trial, TrialState, rank
from hpsearch.spec.objective import ObjectiveSpec
from tests.builders import a_trial

BASELINE = {"validation_loss": 3.0, "evaluation_contract": "contract"}


def ranked(*trials: Trial, baseline: dict[str, Any] | None = BASELINE, metric: str = "validation_loss") -> Ranking:
    return rank("tickets", "finished", ObjectiveSpec(metric=metric), baseline, trials)  # type: ignore[arg-type]


def numbers(ranking: Ranking) -> list[int]:
    return [trial.number for trial in ranking.trials]


def test_the_smallest_loss_is_first() -> None:
    assert numbers(ranked(a_trial(0, 2.0), a_trial(1, 1.0), a_trial(2, 3.0))) == [1, 0, 2]


@pytest.mark.parametrize("metric", ["validation_loss", "validation_bits_per_byte"])
def test_what_is_a_loss_is_minimised(metric: str) -> None:
    assert numbers(ranked(a_trial(0, 2.0), a_trial(1, 1.0), metric=metric)) == [1, 0]


def test_accuracy_is_maximised() -> None:
    trials = a_trial(0, 0.2), a_trial(1, 0.9), a_trial(2, 0.0)
    assert numbers(ranked(*trials, metric="validation_token_accuracy")) == [1, 0, 2]


@pytest.mark.parametrize("state", [state for state in TrialState if state != TrialState.COMPLETE])
def test_only_a_completed_trial_is_ranked_however_good_its_value(state: TrialState) -> None:
    ranking = ranked(a_trial(0, 2.0), a_trial(1, 0.001, state=state))
    assert numbers(ranking) == [0]
    assert ranking.counts == {"COMPLETE": 1, str(state): 1}


def test_a_pruned_trial_is_never_ranked() -> None:
    assert numbers(ranked(a_trial(0, 0.1, state=TrialState.PRUNED))) == []


def test_a_completed_trial_without_a_value_is_not_ranked() -> None:
    assert numbers(ranked(a_trial(0, None))) == []


@given(st.permutations(range(6)))
def test_ties_go_by_number_in_whatever_order_the_trials_come(order: list[int]) -> None:
    assert numbers(ranked(*(a_trial(number, 2.0) for number in order))) == [0, 1, 2, 3, 4, 5]


def test_a_value_of_zero_is_a_value() -> None:
    assert numbers(ranked(a_trial(0, 0.5), a_trial(1, 0.0))) == [1, 0]


def test_values_of_another_evaluation_contract_are_never_ranked_together() -> None:
    trials = a_trial(0, 2.0), a_trial(1, 1.0, evaluation_contract="other"), a_trial(2, 3.0)
    assert numbers(ranked(*trials)) == [0, 2]


def test_without_a_baseline_the_first_completed_trial_says_what_is_comparable() -> None:
    trials = a_trial(0, 2.0, evaluation_contract="a"), a_trial(1, 1.0, evaluation_contract="b")
    assert numbers(ranked(*trials, baseline=None)) == [0]


def test_the_baseline_is_shown_without_its_contract() -> None:
    assert ranked(a_trial(0)).baseline == {"validation_loss": 3.0}
    assert ranked(a_trial(0), baseline=None).baseline is None


def test_a_ranking_of_nothing_is_empty() -> None:
    assert ranked(baseline=None).as_json()["ranking"] == []


def test_the_json_has_what_scripts_rely_on() -> None:
    ranking = ranked(a_trial(3, 1.5, config={"hyperparameters": {"epochs": 2}}), a_trial(4, 1.0, adapter=None))
    answer = json.loads(json.dumps(ranking.as_json()))
    assert answer["study"] == "tickets"
    assert answer["state"] == "finished"
    assert answer["objective"] == {"metric": "validation_loss", "direction": "minimize"}
    assert [(row["rank"], row["number"], row["value"], row["adapter"]) for row in answer["ranking"]] == [
        (1, 4, 1.0, False),
        (2, 3, 1.5, True),
    ]
    assert answer["ranking"][1] | {"hyperparameters": {"epochs": 2}, "best_epoch": 1.0} == answer["ranking"][1]


def test_ranking_does_not_change_what_it_is_given() -> None:
    trials = [a_trial(number, random.Random(number).random()) for number in range(5)]
    before = list(trials)
    baseline = dict(BASELINE)
    ranked(*trials, baseline=baseline)
    assert (trials, baseline) == (before, BASELINE)
