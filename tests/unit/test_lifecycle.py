"""Study states, the legal moves, and what people may do."""

from __future__ import annotations

import itertools

import pytest

from hpsearch.errors import IllegalMove
from hpsearch.lifecycle import ACTS, MOVES, Act, StudyState, after, check_move

LEGAL = {
    "queued": {"running", "paused", "cancelled"},
    "running": {"queued", "paused", "finished", "failed", "cancelled"},
    "paused": {"queued", "cancelled"},
    "finished": {"queued"},
    "failed": {"queued"},
    "cancelled": set(),
}

DOABLE = {
    "pause": {"queued", "running", "paused"},
    "resume": {"queued", "running", "paused", "failed"},
    "extend": {"queued", "running", "paused", "finished", "failed"},
    "confirm": {"queued", "running", "paused", "finished"},
    "change": {"queued", "running", "paused"},
    "add_trial": {"queued", "running", "paused", "finished", "failed"},
    "stop_trial": {"queued", "running", "paused"},
    "continue_trial": {"queued", "running", "paused", "finished", "failed"},
    "forget_borrowed": {"queued", "running", "paused", "finished", "failed"},
    "cancel": {"queued", "running", "paused", "cancelled"},
    "delete": {"finished", "failed", "cancelled"},
}


def test_the_states_are_the_ones_scripts_rely_on() -> None:
    assert {str(state) for state in StudyState} == set(LEGAL)
    assert set(MOVES) == set(StudyState)
    assert set(ACTS) == set(Act)


@pytest.mark.parametrize(("current", "target"), itertools.product(StudyState, StudyState), ids=str)
def test_a_move_is_legal_or_raises(current: StudyState, target: StudyState) -> None:
    if target in LEGAL[current]:
        check_move("tickets", current, target)
        return
    with pytest.raises(IllegalMove, match=f"'tickets' is {current}; it can't become {target}"):
        check_move("tickets", current, target)


@pytest.mark.parametrize(("act", "current"), itertools.product(Act, StudyState), ids=str)
def test_an_act_leads_along_a_legal_move_or_raises(act: Act, current: StudyState) -> None:
    if current in DOABLE[act]:
        target = after(act, "tickets", current)
        assert target == current or target in LEGAL[current]
        return
    with pytest.raises(IllegalMove, match=f"'tickets' is {current}: .* is for"):
        after(act, "tickets", current)


def test_nothing_leads_away_from_a_cancelled_study() -> None:
    assert not LEGAL["cancelled"]
    assert {act for act in Act if StudyState.CANCELLED in ACTS[act]} == {Act.CANCEL, Act.DELETE}
