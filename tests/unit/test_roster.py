"""Who is on a device: company, and trials that have it for themselves."""

from __future__ import annotations

import json
import threading
import time

import pytest

from hpsearch.raytune import roster as roster_module
from hpsearch.raytune.messages import Message, Reported, Slot
from hpsearch.raytune.roster import Refusal, Roster
from tests.builders import a_report


def a_slot(alone_until: int | None = None) -> Slot:
    return Slot("{}", "validation_loss", "adapter", "progress", 1, None, capacity=4, alone_until=alone_until)


def admit(roster: Roster, key: str, alone_until: int | None = None, *, crowd: bool = False) -> Refusal | None:
    return roster.admit(key, a_slot(alone_until), has_room_for_all=crowd)


def deals_with(roster: Roster, key: str, message: Message) -> None:
    """Send a message to the trial, and have it ask for the next one."""
    roster.send(key, message)
    assert json.loads(roster.next_message(key))["kind"] == type(message).__name__
    threading.Thread(target=roster.next_message, args=(key,), daemon=True).start()


def reported(exposure: int) -> Reported:
    return Reported(a_report(exposure), "contract")


SUSPECT, OTHER, NEXT = "study/0/2/a", "study/1/1/b", "other/7/3/c"


def test_a_trial_has_its_device_for_itself_until_it_got_further_than_ever_before() -> None:
    roster = Roster()
    assert admit(roster, SUSPECT, alone_until=40) is None
    for exposure in (0, 40):
        deals_with(roster, SUSPECT, reported(exposure))
        assert admit(roster, OTHER) is Refusal.RESERVED
        assert admit(roster, OTHER, crowd=True) is Refusal.RESERVED
    roster.send(SUSPECT, reported(60))
    assert admit(roster, OTHER) is Refusal.RESERVED
    roster.next_message(SUSPECT)
    assert admit(roster, OTHER) is Refusal.RESERVED, "nobody has dealt with the report yet"
    threading.Thread(target=roster.next_message, args=(SUSPECT,), daemon=True).start()
    deadline = time.monotonic() + 10
    while admit(roster, OTHER) is not None:
        assert time.monotonic() < deadline, "it has been cleared"
        time.sleep(0.01)
    assert roster.trials() == [SUSPECT, OTHER]


def test_a_trial_that_must_be_alone_is_taken_on_when_those_that_were_let_go_of_for_it_have_gone() -> None:
    roster = Roster()
    assert admit(roster, OTHER) is None
    assert admit(roster, SUSPECT, alone_until=0) is Refusal.RESERVED
    assert "has the device for itself" in roster.take().leaving[OTHER]
    assert admit(roster, "study/2/1/d") is Refusal.RESERVED, "nobody slips in meanwhile"
    roster.remove(OTHER)
    assert admit(roster, SUSPECT, alone_until=0) is None


def test_asking_without_lining_up_disturbs_nobody() -> None:
    roster = Roster()
    assert admit(roster, OTHER) is None
    asked = roster.admit(SUSPECT, a_slot(0), has_room_for_all=False, lines_up=False)
    assert asked is Refusal.RESERVED
    assert roster.take().leaving == {}
    assert admit(roster, "study/2/1/d") is None


def test_trials_that_must_be_alone_take_turns_in_the_order_in_which_they_came() -> None:
    """Of whichever studies. One is not let go of before it is cleared."""
    roster = Roster()
    assert admit(roster, SUSPECT, alone_until=0) is None
    for _ in range(2):
        assert admit(roster, OTHER, alone_until=0) is Refusal.RESERVED
        assert admit(roster, NEXT, alone_until=0) is Refusal.RESERVED
    assert roster.take().leaving == {}
    roster.remove(SUSPECT)
    assert admit(roster, NEXT, alone_until=0) is Refusal.RESERVED
    assert admit(roster, OTHER, alone_until=0) is None
    roster.remove(OTHER)
    assert admit(roster, NEXT, alone_until=0) is None


def test_who_stood_in_line_and_asks_no_more_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    roster = Roster()
    assert admit(roster, OTHER) is None
    assert admit(roster, SUSPECT, alone_until=0) is Refusal.RESERVED
    monkeypatch.setattr(roster_module, "LINE_SECONDS", -1.0)
    assert admit(roster, "study/2/1/d") is None


def test_the_next_attempt_at_a_trial_that_was_alone_is_taken_on_at_once() -> None:
    """The process of the one before is gone with its driver, and nobody has missed it yet."""
    roster = Roster()
    assert admit(roster, SUSPECT, alone_until=0) is None
    assert admit(roster, "study/0/3/z", alone_until=0) is None
