"""When a trial gives its place to another study."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hpsearch.raytune import holding
from hpsearch.raytune.holding import LOADING_SLICES, Holding
from hpsearch.shares import Share

SLICE = 60.0


class Driven:
    """A study with one trial on a device, whose place another study has a right to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(holding, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.holding = Holding(lambda need: Share(0, 1 - need.held, need.held, need), SLICE)
        self.begin()

    def begin(self) -> None:
        assert any(self.holding.may_begin(0, 1) for _ in range(2))  # the first time says that the place is free
        self.holding.begun(0)

    def gives_after(self, seconds: float) -> bool:
        self.now += seconds
        named = self.holding.give([0])
        assert named == ({0} if self.holding.is_giving(0) else set())
        return self.holding.is_giving(0)


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Driven:
    return Driven(monkeypatch)


def test_a_trial_trains_for_a_slice_however_long_its_model_took_to_load(driven: Driven) -> None:
    """Else two studies whose models take longer to load than a slice would load in turns, and never train."""
    assert not driven.gives_after(2 * SLICE)
    driven.holding.trains(0)
    assert not driven.gives_after(SLICE - 1)
    driven.holding.trains(0)  # its next report
    assert driven.gives_after(1)


def test_a_trial_that_goes_on_is_loaded_anew(driven: Driven) -> None:
    driven.holding.trains(0)
    assert driven.gives_after(SLICE)
    driven.begin()
    assert not driven.gives_after(SLICE)


def test_a_trial_that_never_trains_gives_its_place_up_all_the_same(driven: Driven) -> None:
    assert not driven.gives_after(LOADING_SLICES * SLICE - 1)
    assert driven.gives_after(1)
