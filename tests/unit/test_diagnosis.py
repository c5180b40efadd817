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
from hpsearch.spec.objective import Metric, ObjectiveSpec
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
        pytest.param([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 0.5, 0.2], Finding.OVERFITTED, id="turned"),
        pytest.param([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 1.4, 1.5], Finding.UNSTABLE, id="turned-and-so-did-training"),
        pytest.param([4.0, 2.0, 1.5, 1.6, 1.6], [2, 1, 0.5, 0.2], None, id="turned-by-a-little"),
        pytest.param([4.0, 5.0, 4.4, 4.2, 4.1], [], Finding.NEVER_BETTER, id="worse-than-the-base-model"),
        pytest.param([4.0, 4.0, 4.0], [], Finding.NEVER_BETTER, id="nothing-learned"),
        pytest.param([4.0, 3.5, 3.0, 2.5, 2.0], [], Finding.UNDERTRAINED, id="falls-to-the-end"),
        pytest.param([4.0, 5.0, 4.5, 3.0, 2.9, 2.85, 2.8, 2.8, 2.8], [], None, id="a-rough-start"),
        pytest.param([4.0, 2.0], [], None, id="one-report-says-nothing"),
        pytest.param([4.0], [], None, id="the-baseline-says-nothing"),
        pytest.param([], [], None, id="no-reports"),
    ],
)
def test_a_curve_says_what_is_wrong(losses: list[float], training: list[float], finding: Finding | None) -> None:
    assert found(losses, training) == finding


def test_a_person_is_told_what_is_seen_and_what_to_change() -> None:
    def text(*curves: Sequence[float]) -> str:
        return (diagnose(trained(*curves), LOSS) or pytest.fail("nothing was found")).text

    assert text([4.0, 2.0, 1.5, 1.7, 1.9], [2, 1, 0.5, 0.2]) == (
        "was best after 1 of 2 epochs; then its validation loss went from 1.5 to 1.9 while its training loss fell from "
        "1 to 0.2. The weights kept are those of its best report; try a lower learning rate multiplier, fewer epochs, "
        "or more dropout or weight decay"
    )
    assert text([4.0, 3.5, 3.0, 2.5, 2.0]) == (
        "still got better when it ended: its last quarter brought 25% of all it gained. Try more epochs or a higher "
        "learning rate multiplier"
    )
    assert text([4.0, 5.0, 4.5]) == (
        "was never better than the untouched base model (4): try a lower learning rate multiplier"
    )


@pytest.mark.parametrize("state", TrialState)
def test_only_what_has_ended_by_itself_is_called_undertrained(state: TrialState) -> None:
    falling, turned = [4.0, 3.5, 3.0, 2.5, 2.0], [4.0, 2.0, 1.5, 1.7, 1.9]
    assert (found(falling, state=state) is not None) == (state == TrialState.COMPLETE)
    assert found(falling, state=TrialState.COMPLETE, cut_short=True) is None
    assert (found(turned, [2, 1, 0.5, 0.2], state=state) is not None) == (
        state in (TrialState.COMPLETE, TrialState.PRUNED)
    )


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED])
)
def test_any_curve_has_an_answer_and_the_metric_does_not_decide_it(losses: list[float], state: TrialState) -> None:
    trial = trained(losses, state=state)
    by_loss, by_bits = (
        diagnose(trial, ObjectiveSpec(metric=metric)) for metric in ("validation_loss", "validation_bits_per_byte")
    )
    assert (by_loss and by_loss.finding) == (by_bits and by_bits.finding)
    metric: Metric = "validation_token_accuracy"
    upside_down = replace(
        trial, reports=tuple(replace(r, validation_token_accuracy=1 - r.validation_loss / 10) for r in trial.reports)
    )
    by_accuracy = diagnose(upside_down, ObjectiveSpec(metric=metric))
    gain = losses[0] - min(losses[1:], default=losses[0])
    if gain > 1e-6:  # what is even may round to either side
        assert (by_accuracy and by_accuracy.finding) == (by_loss and by_loss.finding)


@pytest.mark.parametrize("table", sorted(path.name for path in CURVES.glob("*.json.gz")))
def test_on_recorded_curves_the_advice_leads_towards_the_best_trials(table: str) -> None:
    """What is told to change the learning rate is told the right direction, and what is ill is no winner."""
    trials = ranked(CURVES / table)
    told: dict[Finding | None, list[int]] = {}
    for place, trial in enumerate(trials):
        diagnosis = diagnose(trial, LOSS)
        told.setdefault(diagnosis and diagnosis.finding, []).append(place)

    def rate(places: Sequence[int]) -> float:
        return median(float(trials[place].params["learning_rate_multiplier"]) for place in places)

    best = rate(range(len(trials) // 10))
    assert sum(map(len, told.values())) == len(trials)
    assert rate(told[Finding.UNDERTRAINED]) < best / 2
    assert median(told[Finding.UNDERTRAINED]) > 0.75 * len(trials)
    for finding in (Finding.NEVER_BETTER, Finding.OVERFITTED):
        assert finding not in told or rate(told[finding]) > 2 * best
    if Finding.NEVER_BETTER in told:
        assert median(told[Finding.NEVER_BETTER]) > 0.9 * len(trials)


def test_the_best_trials_diagnosis_is_the_first_advice() -> None:
    space = SearchSpace.model_validate({"epochs": {"low": 1, "high": 4}})
    ill = Diagnosis(Finding.UNDERTRAINED, "still got better when it ended")
    assert insight(space, [trained([4.0, 3.0])], {}, ill).advice[0] == "the best trial still got better when it ended"
    assert insight(space, [trained([4.0, 3.0])], {}).advice == []
