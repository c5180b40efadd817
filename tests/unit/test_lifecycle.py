"""Study states and the legal moves."""

from __future__ import annotations

import itertools

import pytest

from hpsearch.errors import IllegalMove
from hpsearch.lifecycle import MOVES, StudyState, check_move

LEGAL = {
    "queued": {"running", "cancelled", "failed"},
    "running": {"queued", "finished", "failed", "cancelled", "paused"},
    "paused": {"queued", "cancelled"},
    "finished": set(),
    "failed": set(),
    "cancelled": set(),
}


def test_the_states_are_the_ones_scripts_rely_on() -> None:
    assert {str(state) for state in StudyState} == set(LEGAL)
    assert set(MOVES) == set(StudyState)


@pytest.mark.parametrize(("current", "target"), itertools.product(StudyState, StudyState), ids=str)
def test_a_move_is_legal_or_raises(current: StudyState, target: StudyState) -> None:
    if target in LEGAL[current]:
        check_move("tickets", current, target)
        return
    with pytest.raises(IllegalMove, match=f"'tickets' is {current}; it can't become {target}"):
        check_move("tickets", current, target)


@pytest.mark.parametrize("state", StudyState, ids=str)
def test_what_is_over_never_moves_again_and_the_rest_can(state: StudyState) -> None:
    assert state.is_over is (not LEGAL[state])
