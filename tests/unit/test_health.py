"""When a device is to blame, and when its trials are."""

import itertools

import pytest

from hpsearch.raytune.health import ASIDE_SECONDS, IN_A_ROW, Health
from hpsearch.raytune.messages import Failed, Lost, Placed
from hpsearch.results import Failure

ERROR = Failed(Failure.ERROR, "too many open files")
DIED = Lost("the device's process died")


class Driven:
    """What a driver tells: trials on devices, how they get on and how they fail."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.health = Health(lambda: self.now)
        self._numbers, self._pids = itertools.count(), dict.fromkeys("abc", 1)

    def train(self, device: str, exposure: int = 0) -> int:
        """A trial that has reported."""
        number = next(self._numbers)
        self.health.placed(number, Placed(device, "node", self._pids[device], "actor"))
        self.health.reported(number, exposure)
        return number

    def fail(self, device: str, config: str = "", message: Failed | Lost = ERROR) -> None:
        """A trial of a config of its own, unless one is named."""
        number = self.train(device)
        self.health.failed(number, config or str(number), message)
        self.health.left(number)

    def die(self, device: str, *configs: str) -> None:
        """The device's process dies under trials of these configs."""
        numbers = [self.train(device) for _ in configs]
        for number, config in zip(numbers, configs, strict=True):
            self.health.failed(number, config, DIED)
            self.health.left(number)
        self._pids[device] += 1

    @property
    def aside(self) -> set[str]:
        return set(self.health.aside())


@pytest.fixture
def driven() -> Driven:
    return Driven()


def test_a_device_that_fails_different_configs_while_another_trains_is_set_aside_with_its_reason(
    driven: Driven,
) -> None:
    driven.train("b", exposure=50)
    for _ in range(IN_A_ROW - 1):
        driven.fail("a")
    assert driven.aside == set()
    driven.fail("a")
    assert driven.aside == {"a"}
    assert "too many open files" in driven.health.aside()["a"].reason


def test_it_comes_back_after_a_while_and_one_more_failure_sets_it_aside_again(driven: Driven) -> None:
    driven.train("b", exposure=50)
    for _ in range(IN_A_ROW):
        driven.fail("a")
    driven.now += ASIDE_SECONDS + 1
    assert driven.aside == set()
    driven.fail("a")
    assert driven.aside == {"a"}


def test_where_no_other_device_trains_it_may_be_the_study_s_fault(driven: Driven) -> None:
    other = driven.train("b", exposure=50)
    driven.health.left(other)
    for _ in range(2 * IN_A_ROW):
        driven.fail("a")
        driven.fail("b")
    assert driven.aside == set()


def test_a_trial_that_gets_further_proves_the_device_well_but_its_baseline_does_not(driven: Driven) -> None:
    driven.train("b", exposure=50)
    for _ in range(IN_A_ROW - 1):
        driven.fail("a")
    driven.train("a", exposure=50)
    driven.fail("a")
    assert driven.aside == set()
    driven.train("a", exposure=0)
    for _ in range(IN_A_ROW - 1):
        driven.fail("a")
    assert driven.aside == {"a"}


def test_one_config_that_fails_again_and_again_is_itself_to_blame(driven: Driven) -> None:
    driven.train("b", exposure=50)
    for _ in range(2 * IN_A_ROW):
        driven.fail("a", config="poison")
    assert driven.aside == set()


def test_the_death_of_a_process_is_one_failure_however_many_trials_it_had(driven: Driven) -> None:
    driven.train("b", exposure=50)
    driven.die("a", "1", "2", "3", "4", "5")
    assert driven.aside == set()
    driven.die("a", "6", "7")
    driven.die("a", "8", "9")
    assert driven.aside == {"a"}


def test_a_config_that_was_there_at_each_death_is_suspected_itself(driven: Driven) -> None:
    driven.train("b", exposure=50)
    for mates in (("1", "2"), ("2", "3"), ("4", "5")):
        driven.die("a", "poison", *mates)
    assert driven.aside == set()


@pytest.mark.parametrize("failure", [Failure.DIVERGED, Failure.OUT_OF_MEMORY])
def test_what_a_config_does_is_no_device_s_fault(driven: Driven, failure: Failure) -> None:
    driven.train("b", exposure=50)
    for _ in range(2 * IN_A_ROW):
        driven.fail("a", message=Failed(failure, "the loss is inf, say"))
    assert driven.aside == set()


def test_others_that_have_only_shown_the_baseline_do_not_train_yet(driven: Driven) -> None:
    driven.train("b")
    for _ in range(2 * IN_A_ROW):
        driven.fail("a")
    assert driven.aside == set()


def test_checkpoints_of_another_version_are_not_the_devices_fault(driven: Driven) -> None:
    driven.train("b", exposure=50)
    for _ in range(2 * IN_A_ROW):
        driven.fail("a", message=Failed(Failure.OUTDATED_CHECKPOINT, "of another version"))
    assert driven.aside == set()
