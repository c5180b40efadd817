"""What is a hang, and what only takes long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hpsearch import watchdog
from hpsearch.raytune.roster import Roster
from hpsearch.watchdog import LENGTHY, Progress, begin, lengthy, mark, watch, where

PATIENCE = 0.4


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.05)


@contextmanager
def working(work: Callable[[threading.Event], None]) -> Iterator[Progress]:
    """A thread that works until it is told to end."""
    ended, begun, started = threading.Event(), list[Progress](), threading.Event()

    def run() -> None:
        begun.append(begin())
        started.set()
        work(ended)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield begun[0]
    finally:
        ended.set()
        thread.join()


def watched(progress: Progress) -> list[str]:
    """What the watchdog says, once it does."""
    said: list[str] = []
    threading.Thread(target=lambda: said.append(watch(progress, lambda: PATIENCE)), daemon=True).start()
    return said


def test_a_thread_that_marks_nothing_hangs_and_its_stack_says_where() -> None:
    def hangs_here(ended: threading.Event) -> None:
        mark()
        ended.wait()

    with working(hangs_here) as progress:
        assert "no progress for" in watch(progress, lambda: PATIENCE)
        assert "hangs_here" in where(progress)


def test_work_in_small_steps_is_no_hang_however_long_it_takes() -> None:
    def works(ended: threading.Event) -> None:
        while not ended.wait(PATIENCE / 20):
            mark()

    with working(works) as progress:
        said = watched(progress)
        time.sleep(3 * PATIENCE)
        assert said == []


def test_what_is_lengthy_may_take_longer_and_is_named_when_it_hangs_too() -> None:
    def loads(ended: threading.Event) -> None:
        with lengthy("loading"):
            ended.wait()

    with working(loads) as progress:
        began = time.monotonic()
        assert "while loading" in watch(progress, lambda: PATIENCE)
        assert time.monotonic() - began > (LENGTHY - 1) * PATIENCE


def test_marks_of_other_threads_say_nothing() -> None:
    def hangs(ended: threading.Event) -> None:
        ended.wait()

    with working(hangs) as progress:
        said = watched(progress)
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            mark()
            with lengthy("this is the test's own thread"):
                time.sleep(0.01)
        assert said


def test_a_process_that_was_stopped_for_long_has_not_hung_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its threads stood still; the one that works marks again soon after."""

    def works(ended: threading.Event) -> None:
        while not ended.wait(PATIENCE / 4):
            mark()

    with working(works) as progress:
        said = watched(progress)
        time.sleep(PATIENCE / 8)
        now = time.monotonic
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: now() + 3600)
        time.sleep(2 * PATIENCE)
        assert said == []


def test_a_device_without_trials_has_the_patience_of_whoever_has_it_load_or_measure() -> None:
    """The first trial's model is loaded before the trial is there: an operator's longer patience must hold for that."""
    roster = Roster()
    roster.do(lambda: None, stalled_seconds=7200.0)
    assert roster.stalled_seconds == 7200.0
