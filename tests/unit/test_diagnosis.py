"""What a learning curve says of a trial's fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.diagnosis import CURVES, ranked
from hpsearch.results import Trial, TrialState
from hpsearch.results.diagnosis import Diagnosis, Finding, diagnose
from hpsearch.results.insight import insight
from hpsearch.spec.objective import ObjectiveSpec
from hpsearch.spec.space import SearchSpace
from tests.builders import a_report, a_trial

LOSS = ObjectiveSpec()


def trained(losses: Sequence[float], training: Sequence[float] = (), **changes: object) -> Trial:
    """A trial with a report every half epoch, the baseline's first."""
    reports = [a_report(50 * place, loss) for place, loss in enumerate(losses)]
    for place, loss in enumerate(training, start=1):
        reports[place] = replace(reports[place], training_loss=loss)
    return a_trial(7, min(losses[1:], default=None), reports=tuple(reports), **changes)


def found(losses: Sequence[float], training: Sequence[float] = (), **changes: object) -> Finding | None:
    diagnosis = diagnose(trained(losses, training, **changes), LOSS)
    return None if diagnosis is None else diagnosis.finding


@pytest.mark.parametrize(
    ("losses", "training", "finding"),
    [
        pytest.param([4.0, 2.0, 1.5, 1.3, 1.25], [], None, id="levels-off"),
        pytest.param([4.0, 3.5, 3.0, 2.5, 2.0], [], None, id="falls-to-the-end"),
        pytest.param([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 0.5, 0.2], Finding.OVERFITTED, id="turned"),
        pytest.param([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 1.4, 1.5], Finding.UNSTABLE, id="turned-and-so-did-training"),
        pytest.param([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 1.0, 1.02], Finding.OVERFITTED, id="batches-differ"),
        pytest.param([4.0, 2.0, 1.5, 1.6, 1.6], [2, 1, 0.5, 0.2], None, id="turned-by-a-little"),
        pytest.param([2.0, 1.9995, 1.9990, 1.9994, 1.9992], [2, 1, 0.5, 0.2], None, id="gained-next-to-nothing"),
        pytest.param([4.0, 5.0, 4.4, 4.2, 4.1], [], Finding.NEVER_BETTER, id="worse-than-the-base-model"),
        pytest.param([4.0, 4.0, 4.0], [], None, id="nothing-learned"),
        pytest.param([4.0, 4.0000002, 4.0000001], [], None, id="nothing-learned-but-for-rounding"),
        pytest.param([4.0, 5.0, 4.5, 3.0, 2.9, 2.85, 2.8, 2.8, 2.8], [], None, id="a-rough-start"),
        pytest.param([4.0, 5.0], [], None, id="one-report-says-nothing"),
        pytest.param([4.0], [], None, id="the-baseline-says-nothing"),
        pytest.param([], [], None, id="no-reports"),
    ],
)
def test_a_curve_says_what_is_wrong(losses: list[float], training: list[float], finding: Finding | None) -> None:
    assert found(losses, training) == finding


def test_a_person_is_told_what_is_seen_and_what_to_try() -> None:
    def text(*curves: Sequence[float]) -> str:
        return (diagnose(trained(*curves), LOSS) or pytest.fail("nothing was found")).text

    assert text([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 0.5, 0.2]) == (
        "was at its best after epoch 1; by epoch 2 its validation loss had gone from 1.5 to 1.9, its training loss "
        "from 1 to 0.2. The weights kept are those of its best report; try a lower learning rate multiplier, or more "
        "dropout or weight decay"
    )
    assert text([4.0, 5.0, 4.5]) == (
        "was worse than the untouched base model (4) all the time: try a lower learning rate multiplier"
    )


TURNED = [4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 0.5, 0.2]


@pytest.mark.parametrize("state", TrialState)
def test_only_of_trials_that_have_come_to_an_end_something_is_said(state: TrialState) -> None:
    assert (found(*TURNED, state=state) is not None) == (state in (TrialState.COMPLETE, TrialState.PRUNED))


def test_nothing_is_said_of_what_is_not_known() -> None:
    unknown = trained(*TURNED)
    reports = (*unknown.reports[:-1], replace(unknown.reports[-1], training_loss=None))
    assert diagnose(replace(unknown, reports=reports), LOSS) is None
    assert found(*TURNED, parent=3, inherited_at=100) is None, "other params led there"


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED])
)
def test_any_curve_has_an_answer_whatever_the_unit_of_its_metric(losses: list[float], state: TrialState) -> None:
    trial = trained(losses, state=state)
    by_loss, by_bits = (
        diagnose(trial, ObjectiveSpec(metric=metric)) for metric in ("validation_loss", "validation_bits_per_byte")
    )
    assert (by_loss and by_loss.finding) == (by_bits and by_bits.finding)


def test_accuracy_is_better_the_larger_it_is() -> None:
    def by_accuracy(*values: float) -> Finding | None:
        reports = tuple(
            a_report(50 * place, 1.0, validation_token_accuracy=value, training_loss=1 / (1 + place))
            for place, value in enumerate(values)
        )
        diagnosis = diagnose(a_trial(reports=reports), ObjectiveSpec(metric="validation_token_accuracy"))
        return diagnosis and diagnosis.finding

    assert by_accuracy(0.2, 0.8, 0.7, 0.5) == Finding.OVERFITTED
    assert by_accuracy(0.2, 0.1, 0.1) == Finding.NEVER_BETTER
    assert by_accuracy(0.2, 0.5, 0.8) is None
    assert by_accuracy(0.193969, 0.193969, 0.193969) is None, "a rate that is far too low"


@pytest.mark.parametrize("table", ["docstrings-0", "docstrings-1"])
def test_on_recorded_curves_the_advice_leads_towards_the_best_trials(table: str) -> None:
    trials = ranked(CURVES / f"{table}.json.gz")
    told: dict[Finding | None, list[int]] = {}
    for place, trial in enumerate(trials):
        diagnosis = diagnose(trial, LOSS)
        told.setdefault(diagnosis and diagnosis.finding, []).append(place)

    def rate(places: Sequence[int]) -> float:
        return median(float(trials[place].params["learning_rate_multiplier"]) for place in places)

    best = rate(range(len(trials) // 10))
    assert rate(told[Finding.NEVER_BETTER]) > 10 * best
    assert median(told[Finding.NEVER_BETTER]) > 0.9 * len(trials)
    assert rate(told[Finding.OVERFITTED]) > 2.5 * best
    assert len(told[None]) > len(trials) / 2


def test_the_best_trial_s_diagnosis_is_the_first_advice_unless_an_edge_says_otherwise() -> None:
    space = SearchSpace.model_validate({"learning_rate_multiplier": {"low": 0.1, "high": 10, "log": True}})

    def advice(finding: Finding, *rates: float) -> list[str]:
        trials = [
            replace(trained([4.0, 3.0]), number=number, params={"learning_rate_multiplier": each})
            for number, each in enumerate(rates)
        ]
        return insight(space, trials, {}, lambda trial: Diagnosis(finding, f"{trial.number} is ill")).advice

    assert advice(Finding.OVERFITTED, 1.0, 2.0) == ["the best trial 0 is ill"]
    assert advice(Finding.OVERFITTED, *[0.1] * 6)[0] == "the best trial 0 is ill"
    widen = advice(Finding.OVERFITTED, *[10.0] * 6)
    assert not any("is ill" in sentence for sentence in widen)
    assert len(widen) == 1
    heir = replace(trained([4.0, 3.0]), parent=1, params={"learning_rate_multiplier": 1.0})
    own = replace(trained([4.0, 3.0]), number=5, params={"learning_rate_multiplier": 1.0})
    found = insight(space, [heir, own], {}, lambda trial: Diagnosis(Finding.OVERFITTED, f"{trial.number} is ill"))
    assert found.advice == ["the best trial 5 is ill"], "heirs are left out"
