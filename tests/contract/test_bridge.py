"""What the driver makes of the messages of trials, without Ray: which devices it lets them go to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from hpsearch.basemodel import describe
from hpsearch.errors import DiskFull
from hpsearch.raytune import bridge, devices, driver, outcome, placement, stopping
from hpsearch.raytune.adapter import take_errors_as_losses
from hpsearch.raytune.bridge import Bridge
from hpsearch.raytune.health import IN_A_ROW
from hpsearch.raytune.holding import Holding
from hpsearch.raytune.messages import (
    Barred,
    Failed,
    Finished,
    InLine,
    Lost,
    Message,
    Placed,
    Released,
    Reported,
    encode,
)
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import Placement, Room
from hpsearch.raytune.stopping import Stop, Stopping
from hpsearch.results import Failure, TrialState
from hpsearch.search import Asked
from hpsearch.search.losses import RETRIES
from hpsearch.shares import Need, Share
from hpsearch.spec.defaults import resolve
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.storage import optuna_storage
from tests.conftest import STUDIES
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, InMemory, a_report, spec_of

ROOM = 4


class Tune:
    """Asks for trials and passes messages on, as Tune does."""

    def __init__(self, driven: Driven, folder: Path, *, per_device: int = 1, room: int = ROOM) -> None:
        self.driven = driven
        spec = self.driven.search.spec
        self.holding = Holding()
        self.holding.per_device = per_device
        self.bridge = Bridge(
            self.driven.search,
            lambda asked: resolve(spec, asked.params, EXAMPLES, "llama", 10**6),
            Place(folder),
            Stopping(lambda: None),
            placement=Placement({"CPU": 1}, per_device, lambda: Room(room, room)),
            holding=self.holding,
        )
        self._ids = 0

    def start_all(self) -> dict[str, dict[str, Any]]:
        """As many trials as there is room for, by Tune's names."""
        given: dict[str, dict[str, Any]] = {}
        for _ in range(2):  # the first time, it may only be said that places are of use again
            while isinstance(config := self.bridge.suggest(str(self._ids + 1)), dict):
                self._ids += 1
                given[str(self._ids)] = config
        return given

    def start(self) -> tuple[str, dict[str, Any]]:
        """The next trial: Tune's name for it, and what it is given."""
        self._ids += 1
        config = self.bridge.suggest(str(self._ids))
        assert isinstance(config, dict), config
        return str(self._ids), config

    def tell(self, trial_id: str, message: Message) -> bool:
        goes_on = self.bridge.receive(trial_id, encode(message))
        assert self.bridge.stopping.error is None
        if not goes_on:
            self.bridge.ended(trial_id, lost=False)
        return goes_on

    def fail_on(self, device: str, times: int) -> None:
        for pid in range(times):
            trial_id, _ = self.start()
            assert self.tell(trial_id, Placed(device, "node", pid, "actor"))
            self.tell(trial_id, Failed(Failure.ERROR, "its GPU is broken"))

    def train_on(self, device: str) -> str:
        trial_id, _ = self.start()
        assert self.tell(trial_id, Placed(device, "node", 1, "actor"))
        for exposure in (0, 40):
            assert self.tell(trial_id, Reported(a_report(exposure), CONTRACT))
        return trial_id


@pytest.fixture
def tune(sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tune:
    monkeypatch.setattr(stopping, "LOOK_SECONDS", float("inf"))
    monkeypatch.setattr(outcome, "node_stays", lambda node: node != "gone")  # there is no Ray that could be asked
    shutil.copy(sqlite_template, tmp_path / "study.db")
    return Tune(Driven(optuna_storage(f"sqlite:///{tmp_path}/study.db"), spec_of(20)), tmp_path)


def test_a_device_that_fails_what_another_trains_is_named_to_the_trials_after_it(tune: Tune) -> None:
    tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    _, config = tune.start()
    assert config["set_aside"] == ["bad"]
    (told,) = [details for kind, details in tune.driven.events if kind == "study.device_set_aside"]
    assert told["device"] == "bad"
    assert "its GPU is broken" in told["reason"]


def test_a_trial_that_ray_places_there_all_the_same_goes_elsewhere_and_loses_nothing(tune: Tune) -> None:
    tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    holds, given = tune.start()
    barred = Barred(("bad",))
    assert tune.tell(holds, barred)
    assert tune.tell(holds, barred)
    again, config = tune.start()
    assert config["number"] == given["number"]
    assert tune.tell(again, Placed("good", "node", 1, "actor"))
    trial = tune.driven.trial(config["number"])
    assert (trial.state, trial.device, trial.lost, trial.orphaned) == (TrialState.RUNNING, "good", 0, 0)


def test_the_share_of_a_node_that_is_about_to_go_is_held_until_it_has_gone(tune: Tune) -> None:
    """Else Tune would hand its actor, and with it the node, to the same trial again and again."""
    holds, given = tune.start()
    for _ in range(2):
        assert tune.tell(holds, Barred(("any",), leaves=True))
    again, config = tune.start()
    assert config["number"] == given["number"]
    assert tune.tell(again, Placed("good", "node", 1, "actor"))
    tune.bridge.ended(holds, lost=True)
    trial = tune.driven.trial(config["number"])
    assert (trial.state, trial.lost, trial.orphaned) == (TrialState.RUNNING, 0, 0)


def test_shares_that_are_held_leave_less_room_for_trials(tune: Tune) -> None:
    tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    for _ in range(2):
        assert tune.tell(tune.start()[0], Barred(("bad",)))
    tune.start()
    assert tune.bridge.suggest("one too many") is None


def test_a_share_is_held_no_longer_than_its_device_is_set_aside(tune: Tune) -> None:
    tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    holds, _ = tune.start()
    assert tune.tell(holds, Barred(("bad",)))
    assert not tune.tell(holds, Barred(("bad", "another that is well by now")))


def test_when_all_others_are_gone_the_device_is_tried_again(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    holds, _ = tune.start()
    assert tune.tell(holds, Barred(("bad",)))
    tune.bridge.ended(good, lost=True)
    assert tune.tell(holds, Barred(("bad",))), "not at once: the next trial may be on its way"
    monkeypatch.setattr(bridge, "DESERTED_SECONDS", -1.0)
    assert not tune.tell(holds, Barred(("bad",)))
    _, config = tune.start()
    assert config["set_aside"] == []
    assert "study.device_back" in [kind for kind, _ in tune.driven.events]


def test_what_dies_with_its_node_is_not_the_trial_s_loss(tune: Tune) -> None:
    """Whether its own process is missed first or its device's, which may take seconds longer to die."""
    for node, losses in (("gone", [(0, 1), (0, 2)]), ("node", [(1, 2), (2, 2)])):
        for tells, expected in zip((False, True), losses, strict=True):
            trial_id, config = tune.start()
            assert tune.tell(trial_id, Placed("device", node, 1, "actor"))
            if tells:
                tune.tell(trial_id, Lost("the device's process died"))
            else:
                tune.bridge.ended(trial_id, lost=True)
            trial = tune.driven.trial(config["number"])
            assert (trial.lost, trial.orphaned) == expected
            details = [details for kind, details in tune.driven.events if kind == "trial.interrupted"]
            assert ("node" in details[-1]["text"]) == (node == "gone")


def sharing(tune: Tune, tmp_path: Path, *, devices: int, trials: int, **changes: Any) -> Tune:
    """Two trials to a device."""
    driven = Driven(tune.driven.storage, spec_of(trials, name="shared", **changes))
    return Tune(driven, tmp_path, per_device=2, room=2 * devices)


def test_only_the_trial_that_kills_its_device_is_to_blame_for_that(tune: Tune, tmp_path: Path) -> None:
    """The first of six, two to a device: it takes another one along once, and never again."""
    tune = sharing(tune, tmp_path, devices=1, trials=6)
    poison = tune.driven.search.typical_params
    deaths: list[list[int]] = []
    for pid in range(100):
        there = tune.start_all()
        if not there:
            break
        assert len(there) == 1 or not any(config["alone_until"] is not None for config in there.values())
        numbers = {trial_id: config["number"] for trial_id, config in there.items()}
        for trial_id in there:
            assert tune.tell(trial_id, Placed("device", "node", pid, "actor"))
            assert tune.tell(trial_id, Reported(a_report(0), CONTRACT))
        dies = any(tune.driven.trial(number).params == poison for number in numbers.values())
        deaths += [list(numbers.values())] if dies else []
        for trial_id in there:
            if dies:
                tune.tell(trial_id, Lost("the device's process died"))
            else:
                assert tune.tell(trial_id, Reported(a_report(100), CONTRACT))
                tune.tell(trial_id, Finished(a_report(100), CONTRACT, "adapter"))
        assert all(trial.lost == 0 for trial in tune.driven.trials() if trial.params != poison)
    of_poison = [trial for trial in tune.driven.trials() if trial.params == poison]
    assert [trial.failure for trial in of_poison] == ["worker_lost"] * 2
    assert deaths == [[0, 1], *[[0]] * RETRIES, [of_poison[1].number]]
    others = [trial for trial in tune.driven.trials() if trial.params != poison]
    assert [(trial.state, trial.lost) for trial in others] == [(TrialState.COMPLETE, 0)] * 6


def test_suspects_train_one_by_one_beside_those_that_are_none(tune: Tune, tmp_path: Path) -> None:
    """One has a device for itself in any case; a second one only where a whole device's places are free."""
    tune = sharing(tune, tmp_path, devices=2, trials=20)
    first = list(tune.start_all())
    assert len(first) == 4
    for trial_id, pid in zip(first, (1, 1, 2, 2), strict=True):
        assert tune.tell(trial_id, Placed(f"device {pid}", "node", pid, "actor"))
        assert tune.tell(trial_id, Reported(a_report(0), CONTRACT))
    for trial_id in first[:2]:
        tune.tell(trial_id, Lost("the device's process died"))
    (alone,) = (there := tune.start_all()).values()
    assert (alone["number"], alone["alone_until"]) == (0, 0)
    tune.tell(first[2], Failed(Failure.DIVERGED, "the loss is inf"))
    (beside,) = tune.start_all().values()
    assert (beside["number"], beside["alone_until"]) == (4, None), "half a device is free: it is for something new"
    tune.tell(next(iter(there)), Reported(a_report(100), CONTRACT))
    (second,) = tune.start_all().values()
    assert (second["number"], second["alone_until"]) == (1, 0)


def test_two_devices_that_die_are_two_on_which_suspects_are_alone(tune: Tune, tmp_path: Path) -> None:
    tune = sharing(tune, tmp_path, devices=2, trials=20)
    for trial_id, pid in zip(list(tune.start_all()), (1, 1, 2, 2), strict=True):
        assert tune.tell(trial_id, Placed(f"device {pid}", "node", pid, "actor"))
        tune.tell(trial_id, Lost("the device's process died"))
    given = tune.start_all().values()
    assert [(config["number"], config["alone_until"]) for config in given] == [(0, 0), (1, 0)]


def test_where_other_studies_share_the_devices_one_suspect_at_a_time_has_one_of_them(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holding, "is_shared", True)
    tune = sharing(tune, tmp_path, devices=2, trials=20)
    for trial_id, pid in zip(list(tune.start_all()), (1, 1, 2, 2), strict=True):
        assert tune.tell(trial_id, Placed(f"device {pid}", "node", pid, "actor"))
        tune.tell(trial_id, Lost("the device's process died"))
    given = [(config["number"], config["alone_until"]) for config in tune.start_all().values()]
    assert given == [(0, 0), (4, None), (5, None)]


@pytest.mark.parametrize("why", ["the study stops", "another study has its place", "the time is up"])
def test_who_waits_for_a_device_hears_from_nobody_else_that_it_is_to_stop(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    tune = sharing(tune, tmp_path, devices=1, trials=20)
    trial_id, config = tune.start()
    assert tune.tell(trial_id, InLine())
    if why == "the study stops":
        monkeypatch.setattr(tune.bridge.stopping, "_should_stop", lambda: Stop.IN_ORDER)
        assert not tune.bridge.stops()
    elif why == "the time is up":
        monkeypatch.setattr(tune.driven.search, "is_out_of_time", lambda: True)
    else:
        monkeypatch.setattr(tune.holding, "is_giving", lambda number: number == config["number"])
    assert not tune.tell(trial_id, InLine())
    trial = tune.driven.trial(config["number"])
    assert (trial.state, trial.lost, trial.orphaned) == (TrialState.WAITING, 0, 0)


@pytest.mark.parametrize("completed", [False, True], ids=["nothing else is there", "something better is there"])
def test_who_waits_for_a_device_to_finish_what_it_has_waits_on_when_time_is_up(tmp_path: Path, completed: bool) -> None:
    """Let go of, it would be handed out again at once, and so on."""
    seconds = [0.0]
    driven = Driven(InMemory(), spec_of(20, budget={"wall_clock": 60}), elapsed=lambda: seconds[0])
    if completed:
        driven.run(driven.must_ask())
    asked = driven.must_ask()
    for exposure in (0, 50):
        driven.search.report(asked.number, a_report(exposure), CONTRACT)
    driven.search.release("another study has its place")
    tune = Tune(driven, tmp_path)
    trial_id, config = tune.start()
    assert config["number"] == asked.number
    seconds[0] = 60.0
    assert tune.tell(trial_id, InLine()) is not completed


@pytest.mark.parametrize("error", [OutOfMemoryError("killed by Ray"), NodeDiedError("its node died"), ValueError("?")])
def test_what_ray_says_of_one_process_never_ends_the_whole_study(error: Exception) -> None:
    """Tune's own way with an error that it does not know, such as a process killed for want of memory."""

    class Manager(RayActorManager):  # type: ignore[misc]
        """Without a cluster."""

        def __init__(self) -> None:
            self._failed_actor_ids: set[int] = set()

        def _cleanup_actor(self, tracked_actor: TrackedActor) -> None:
            pass

    manager = Manager()
    lost: list[Exception] = []
    actor = TrackedActor(1, on_error=lambda _, told: lost.append(told))
    for _ in range(2):
        take_errors_as_losses(manager)
    with pytest.raises(RuntimeError):
        RayActorManager._actor_task_failed(manager, TrackedActorTask(actor), error)
    manager._actor_task_failed(tracked_actor_task=TrackedActorTask(actor), exception=error)  # as Tune calls it
    assert isinstance(lost[0], RayActorError)
    assert str(error) in str(lost[0])


def test_a_full_disk_costs_the_snapshots_of_pruned_trials_before_it_costs_the_study(tune: Tune, tmp_path: Path) -> None:
    """Else a study that is resumed finds the disk as full as before."""
    number = tune.driven.must_ask().number
    tune.driven.search.start(number, resolve(tune.driven.spec, tune.driven.trial(number).params, EXAMPLES, "llama", 1))
    for exposure in (0, 50):
        tune.driven.search.report(number, a_report(exposure), CONTRACT)
    tune.driven.search.prune(number)
    trial_id, config = tune.start()
    for each in (number, config["number"]):
        Place(tmp_path).progress(each).mkdir(parents=True)
    Place(tmp_path).tidy(tune.driven.search.idle_snapshots(Place(tmp_path).parked))
    assert Place(tmp_path).progress(number).is_dir(), "a person may have it continued"
    tune.bridge.receive(trial_id, encode(Placed("good", "node", 1, "actor")))
    tune.bridge.receive(trial_id, encode(Failed(Failure.DISK_FULL, "no space left")))
    assert isinstance(tune.bridge.stopping.error, DiskFull)
    assert not Place(tmp_path).progress(number).exists()
    assert Place(tmp_path).progress(config["number"]).is_dir()


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_pruned_trial_is_continued_from_its_snapshot_if_that_is_there(
    tune: Tune, tmp_path: Path, is_kept: bool
) -> None:
    number = tune.driven.must_ask().number
    tune.driven.search.start(number, resolve(tune.driven.spec, tune.driven.trial(number).params, EXAMPLES, "llama", 1))
    for exposure in (0, 50):
        tune.driven.search.report(number, a_report(exposure), CONTRACT)
    tune.driven.search.prune(number)
    attempt = Place(tmp_path).progress(number) / "1"
    attempt.mkdir(parents=True)
    if is_kept:
        (attempt / "progress.safetensors").touch()
    carried = [report.as_json() for report in tune.driven.trial(number).reports]
    link = {"continues": number, "curve": carried, "carried": len(carried), "attempts": 1, "origin": "continued"}
    tune.driven.search.enqueue(tune.driven.trial(number).params, link)
    _, config = tune.start()
    assert (config["number"], config["attempt"]) == (number + 1, 2)
    assert config["progress"] == str(Place(tmp_path).progress(number))
    assert config["reported"] == (50 if is_kept else None)


def test_shares_are_held_no_longer_than_the_search_lasts(tune: Tune) -> None:
    good = tune.train_on("good")
    tune.fail_on("bad", IN_A_ROW)
    holds, _ = tune.start()
    assert tune.tell(holds, Barred(("bad",)))
    tune.tell(good, Failed(Failure.DIVERGED, "the loss is inf"))
    tune.driven.search.end_waiting("the search is over")
    tune.fail_on("good", 2)
    while isinstance(asked := tune.bridge.suggest("next"), dict):
        tune.tell("next", Placed("good", "node", 1, "actor"))
        tune.tell("next", Failed(Failure.ERROR, "another error"))
    assert asked == Searcher.FINISHED
    assert not tune.tell(holds, Barred(("bad",)))


def test_a_study_that_was_told_to_stop_while_it_waited_for_its_turn_is_not_over(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if people have taken back by then what they told it."""

    class Waiting(Holding):
        turns = iter([True, False])

        def wait(self, should_stop: Callable[[], object]) -> bool:
            return next(self.turns)

    monkeypatch.setattr(driver, "_wait_for_workers", lambda _: None)
    monkeypatch.setattr(driver, "place_trials", lambda *_, **__: Placement({"CPU": 1}, 1, lambda: Room(ROOM, ROOM)))
    monkeypatch.setattr(driver, "_fit", lambda bridge, _: setattr(bridge, "rests", True))
    model = describe(str(STUDIES / "models" / "pydoc-llama"))
    assert driver.drive(tune.driven.search, model, EXAMPLES, Place(tmp_path), holding=Waiting())


def test_a_study_whose_budget_is_spent_ends_without_its_turn(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its interrupted trial has learnt counts; no device is needed for that."""

    class Waiting(Holding):
        def wait(self, should_stop: Callable[[], object]) -> bool:
            pytest.fail("it waits for its turn")

    monkeypatch.setattr(driver, "_wait_for_workers", lambda _: pytest.fail("it waits for a device"))
    shutil.copy(sqlite_template, tmp_path / "study.db")
    storage = optuna_storage(f"sqlite:///{tmp_path}/study.db")
    spec = spec_of(20, budget={"trials": 20, "tokens": 100})
    before = Driven(storage, spec)
    first, interrupted = before.must_ask(), before.must_ask()
    before.search.report(interrupted.number, a_report(0), CONTRACT)
    before.run(first)
    before.search.release("its runner was stopped")
    search = Driven(storage, spec).search
    model = describe(str(STUDIES / "models" / "pydoc-llama"))
    assert not driver.drive(search, model, EXAMPLES, Place(tmp_path), holding=Waiting())
    assert "training tokens was used" in search.ending()[1]


@pytest.mark.parametrize("has_learnt", [True, False], ids=["to finish", "nothing to finish"])
def test_a_study_whose_time_is_up_while_it_is_placed_still_finishes_what_it_has(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_learnt: bool
) -> None:
    seconds = [0.0]
    shutil.copy(sqlite_template, tmp_path / "study.db")
    before = Driven(
        optuna_storage(f"sqlite:///{tmp_path}/study.db"),
        spec_of(20, budget={"wall_clock": 60}),
        elapsed=lambda: seconds[0],
    )
    asked = before.must_ask()
    for exposure in (0, 50) if has_learnt else (0,):
        before.search.report(asked.number, a_report(exposure), CONTRACT)
    before.search.release("its runner was stopped")
    stops: list[bool] = []

    def place_trials(*arguments: Any, **_: object) -> None:
        seconds[0] = 60.0
        stops.append(bool(arguments[4]()))

    monkeypatch.setattr(driver, "_wait_for_workers", lambda _: None)
    monkeypatch.setattr(driver, "place_trials", place_trials)
    model = describe(str(STUDIES / "models" / "pydoc-llama"))
    driver.drive(before.search, model, EXAMPLES, Place(tmp_path))
    assert stops == [not has_learnt]


@pytest.mark.parametrize("share", [1, 3])
def test_no_device_of_another_study_is_made_ready(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    """Models would be loaded where this study may not train, and take the place of those that are needed there."""
    shutil.copy(sqlite_template, tmp_path / "study.db")
    parallelism = {"max_concurrent_trials": 8, "trials_per_device": 1}
    spec = spec_of(20, parallelism=parallelism)
    search = Driven(optuna_storage(f"sqlite:///{tmp_path}/study.db"), spec).search
    told: list[Need] = []

    def reckoned(need: Need) -> Share:
        told.append(need)
        late = told[-2] if len(told) > 1 else Need(0, 0)  # shares follow what was said a moment later
        return Share(share, min(share, late.wanted), need=late)

    opened: list[int] = []
    ready = SimpleNamespace(get_ready=SimpleNamespace(remote=lambda *_: None))
    monkeypatch.setattr(placement, "_cores", range)
    monkeypatch.setattr(placement, "open_device", lambda address: opened.append(address) or ready)
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: {"CPU": 6, "memory": 1 << 40})
    model = describe(str(STUDIES / "models" / "pydoc-llama"))

    def config_of(asked: Asked) -> FinetuneConfig:
        return resolve(spec, asked.params, EXAMPLES, "llama", 10**6)

    holding = Holding(reckoned)
    assert holding.wait(lambda: False)
    found = placement.place_trials(search, model, config_of, Place(tmp_path), lambda: False, may_hold=holding.room)
    assert found is not None
    assert opened == list(range(share))


class Actors:
    """Of the cluster's devices: what each is asked, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(devices.ray, "get_actor", self.get)

    def get(self, name: str) -> Any:
        if name == "gone":
            raise ValueError(name)
        return SimpleNamespace(release=SimpleNamespace(remote=lambda whose: self.asked.append((name, whose))))


def test_only_devices_that_hold_trials_of_the_study_are_asked_to_let_go_of_them(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all of them. To ask all devices for each study took studies times devices calls a second."""
    actors = Actors(monkeypatch)
    tune = sharing(tune, tmp_path, devices=3, trials=20)
    on_its_way, *placed = list(tune.start_all())
    for trial_id, actor in zip(placed, ("a", "a", "b", "b", "gone"), strict=True):
        assert tune.tell(trial_id, Placed(f"device {actor}", "node", 1, actor))
    assert not tune.bridge.stops()
    assert actors.asked == []
    monkeypatch.setattr(tune.bridge.stopping, "_should_stop", lambda: Stop.IN_ORDER)
    for _ in range(100):
        assert not tune.bridge.stops()
    assert sorted(actors.asked) == [("a", "shared"), ("b", "shared")]
    for trial_id in placed:
        tune.tell(trial_id, Released("the device let go of it"))
    assert tune.tell(on_its_way, Placed("device c", "node", 2, "c"))
    monkeypatch.setattr(stopping, "ASKED_AGAIN_SECONDS", -1.0)
    assert not tune.bridge.stops()
    assert actors.asked[2:] == [("c", "shared")]


def test_out_of_time_what_has_nothing_to_show_is_let_go_of(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that loads, or a long baseline, would end the study late; what has reported ends at its next report."""
    shutil.copy(sqlite_template, tmp_path / "study.db")
    elapsed = [0.0]
    spec = spec_of(20, budget={"trials": 20, "wall_clock": 60})
    driven = Driven(optuna_storage(f"sqlite:///{tmp_path}/study.db"), spec, elapsed=lambda: elapsed[0])
    told: list[tuple[str, frozenset[str]]] = []
    monkeypatch.setattr(bridge, "release", lambda *asked: told.append(asked))
    tune = Tune(driven, tmp_path)
    trains, _ = tune.start()
    loads, given = tune.start()
    assert tune.tell(loads, Placed("device", "node", 1, "actor"))
    assert tune.tell(trains, Reported(a_report(0), CONTRACT))
    assert not tune.bridge.stops()
    assert told == []
    elapsed[0] = 61.0
    assert not tune.bridge.stops()
    assert told == [(f"{spec.name}/{given['number']}", {"actor"})]
    assert not tune.tell(loads, Released("the device let go of it"))
    assert driven.trial(given["number"]).state == TrialState.WAITING
    assert tune.bridge.suggest("none any more") is None
