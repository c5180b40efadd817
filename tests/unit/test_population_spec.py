"""What a study with population based training may ask for, and how what came out of it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hpsearch.cli.progress import SENTENCES
from hpsearch.cli.tables import schedules
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import _most
from hpsearch.results import TrialState
from hpsearch.results.budget import left, limit_reached
from hpsearch.results.schedule import schedule_of, told
from hpsearch.spec import StudySpec
from hpsearch.spec.auto import resolved_sampler
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.population import exchanges
from hpsearch.spec.pruner import PopulationSpec
from tests.builders import a_spec, a_trial

RATE = {"low": 0.01, "high": 10, "log": True}
SPACE: dict[str, Any] = {"epochs": 4, "learning_rate_multiplier": RATE}


def pbt(space: dict[str, Any] = SPACE, population: int = 8, **changes: Any) -> StudySpec:
    rule = {"type": "pbt", "population": population, **changes.pop("rule", {})}
    return a_spec(**{"search_space": space, **changes, "pruner": rule})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"space": {"epochs": {"low": 1, "high": 4}, "learning_rate_multiplier": RATE}},
            "search_space.epochs must be one number",
            id="epochs-vary",
        ),
        pytest.param(
            {"space": {"epochs": 4, "batch_size": {"choices": [1, 2]}}},
            "nothing in search_space varies that can change in the middle of a training .learning_rate_multiplier",
            id="nothing-may-change",
        ),
        pytest.param(
            {"space": {**SPACE, "warmup_fraction": {"low": 0.0, "high": 0.1, "when": "learning_rate_multiplier > 1"}}},
            "search_space.warmup_fraction.when depends on learning_rate_multiplier",
            id="a-condition-on-what-changes",
        ),
        pytest.param({"sampler": {"type": "grid"}}, "sampler.type grid", id="grid"),
        pytest.param(
            {"budget": {"trials": 7}}, r"budget.trials \(7\) is less than pruner.population \(8\)", id="few-trials"
        ),
        pytest.param({"population": 24}, r"budget.trials \(20\) is less than", id="default-budget"),
        pytest.param({"budget": {"until": {"no_improvement_in": 5}}}, "budget.until", id="until"),
        pytest.param(
            {"space": {**SPACE, "epochs": 1}}, "a trial has 2 reports, and exchanges are every 2", id="one-epoch"
        ),
        pytest.param(
            {"space": {**SPACE, "epochs": 600}, "rule": {"interval": 1}},
            "at most 1,000 exchanges: a trial has 1200 reports",
            id="more-exchanges-than-a-config-has-parts",
        ),
        pytest.param({"rule": {"interval": 8}}, "lower pruner.interval", id="long-interval"),
        pytest.param(
            {"space": {**SPACE, "warmup_fraction": {"low": 0.1, "high": 0.8}}}, "nothing would ever", id="warm-up"
        ),
        pytest.param(
            {"population": 2, "first_trials": [{"learning_rate_multiplier": 1}, {"learning_rate_multiplier": 2}]},
            "2 first_trials and the defaults are more than a population of 2",
            id="first-trials",
        ),
    ],
)
def test_what_a_population_can_not_do_is_refused_with_the_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=f"pruner pbt: .*{said}"):
        pbt(**changes)


def test_a_condition_on_what_stays_is_fine_and_the_sampler_is_an_even_one() -> None:
    spec = pbt(
        {**SPACE, "batch_size": {"choices": [1, 2]}, "dropout": {"low": 0, "high": 0.5, "when": "batch_size > 1"}}
    )
    assert resolved_sampler(spec).type == "qmc"
    assert resolved_sampler(pbt(sampler={"type": "tpe"})).type == "tpe"


@pytest.mark.parametrize(
    ("rule", "changes", "expected"),
    [
        pytest.param({}, {}, (40, 80, 120), id="epochs"),
        pytest.param({"interval": 3}, {}, (60, 120), id="three-halves"),
        pytest.param({"interval": 1}, {"epochs": 1}, (20,), id="inside-an-epoch"),
        pytest.param({}, {"warmup_fraction": 0.25}, (80, 120), id="behind-warm-up"),
        pytest.param({}, {"warmup_fraction": {"choices": [0.0, 0.5]}}, (120,), id="behind-the-longest-warm-up"),
    ],
)
def test_exchanges_lie_at_reports_behind_warm_up_and_before_the_end(
    rule: dict[str, Any], changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    spec = pbt({**SPACE, **changes}, rule=rule)
    assert isinstance(spec.pruner, PopulationSpec)
    epochs = spec.search_space.epochs
    assert isinstance(epochs, int)
    assert exchanges(spec.pruner, spec.search_space, epochs, 2, examples=40) == expected


def test_a_report_that_lies_between_two_examples_is_rounded_up_as_the_reports_are() -> None:
    from hpsearch.finetune.order import report_exposures

    spec = pbt({**SPACE, "epochs": 2}, rule={"interval": 2}, objective={"reports_per_epoch": 3})
    assert isinstance(spec.pruner, PopulationSpec)
    found = exchanges(spec.pruner, spec.search_space, 2, 3, examples=40)
    assert found == (27, 54)
    assert set(found) < set(report_exposures(40, 2, 3))


def test_one_that_is_replaced_and_the_one_in_its_place_are_one_training() -> None:
    trials = [
        a_trial(0),
        a_trial(1, state=TrialState.PRUNED),
        a_trial(2, state=TrialState.RUNNING, parent=0, inherited_at=50, replaces=1),
    ]
    assert left(BudgetSpec(trials=3), trials) == 1
    assert limit_reached(BudgetSpec(trials=2), trials, 0) == "all 2 trials of the budget were used"


def test_a_device_takes_as_many_trials_as_a_population_has_for_it() -> None:
    assert _most(pbt(population=8), devices=2) == 4
    assert _most(pbt(population=8), devices=16) == 1


def a_config(rate: float, dropout: float = 0.1) -> dict[str, Any]:
    return {"hyperparameters": {"epochs": 4, "learning_rate_multiplier": rate, "dropout": dropout}}


def test_a_schedule_is_told_by_what_changes_in_it() -> None:
    earlier = [{"until": 40, **a_config(1.0)}, {"until": 80, **a_config(0.8)}]
    parts = schedule_of({**a_config(0.8, dropout=0.12), "earlier": earlier})
    assert [(part["since"], part["until"]) for part in parts] == [(0, 40), (40, 80), (80, None)]
    assert list(told(parts)) == [
        "learning_rate_multiplier: 1 until 40 examples, 0.8 then",
        "dropout: 0.1 until 80 examples, 0.12 then",
    ]
    assert schedule_of(a_config(1.0)) == schedule_of(None) == []
    row = {"number": 9, "schedule": parts}
    assert list(schedules({"ranking": [{"number": 3, "schedule": []}, row]}))[2:] == [
        f"  {line}" for line in told(parts)
    ]
    assert list(schedules({"ranking": [{"number": 3, "schedule": []}]})) == []


def test_an_exchange_is_told_in_a_sentence() -> None:
    event = {"exposure": 100, "heirs": [{"replaces": 3, "parent": 1}, {"replaces": 5, "parent": 1}]}
    said = SENTENCES["study.exchanged"](event)
    assert said == "exchange at 100 examples: trial 3 is replaced, from trial 1; trial 5 is replaced, from trial 1"
    assert SENTENCES["study.exchanged"]({"exposure": 50, "heirs": []}).endswith("nobody is replaced")


def test_what_was_handed_over_is_forgotten_when_nobody_may_begin_there(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for number, exposure in ((0, 40), (0, 80), (1, 40)):
        place.handed_over(number, exposure).mkdir(parents=True)
    place.tidy(())
    assert len(list(tmp_path.glob("exchange/*/*"))) == 3
    place.tidy((), needed_from=80)
    assert list(tmp_path.glob("exchange/*/*")) == [place.handed_over(0, 80)]
    place.tidy((), needed_from=float("inf"))
    assert not (tmp_path / "exchange").exists()
