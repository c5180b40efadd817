"""The thread of a device that trains, with a roster of trials and without Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_reference import a_config

from hpsearch.finetune import Member, memory, prepare, sealed, snapshot
from hpsearch.finetune import evaluate as evaluation
from hpsearch.finetune.attempts import Attempt
from hpsearch.finetune.cohort import Cohort, Finished
from hpsearch.raytune import device as device_module
from hpsearch.raytune import models
from hpsearch.raytune import roster as roster_module
from hpsearch.raytune import training as training_module
from hpsearch.raytune.address import DeviceAddress
from hpsearch.raytune.device import environment
from hpsearch.raytune.messages import Slot
from hpsearch.raytune.roster import Roster
from hpsearch.raytune.training import Training
from hpsearch.spec.finetune import FinetuneConfig

PATIENCE = 60


def a_slot(folder: Path, number: int, **changes: Any) -> Slot:
    config = a_config(**changes)
    return Slot(
        config=config.model_dump_json(),
        metric="validation_loss",
        adapter=str(folder / str(number)),
        progress=str(folder / "progress" / str(number)),
        attempt=1,
        reported=None,
        capacity=4,
    )


@pytest.fixture
def is_gpu() -> bool:
    return False


@pytest.fixture
def roster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_gpu: bool) -> Iterator[Roster]:
    """Of a device that trains in a thread of this process, as long as there is anything to do."""
    monkeypatch.setattr(
        roster_module, "SILENT_SECONDS", 10 * PATIENCE
    )  # there is no process of a trial that says it lives
    monkeypatch.setattr(models.tempfile, "gettempdir", lambda: str(tmp_path))
    roster = Roster()
    training = Training(roster, is_gpu, share=1.0)
    thread = threading.Thread(target=training.run, daemon=True)
    thread.start()
    yield roster
    roster.close()
    for key in roster.trials():
        roster.remove(key)
    monkeypatch.setattr(training_module, "IDLE_SECONDS", 0.0)
    thread.join(PATIENCE)
    assert not thread.is_alive()


class SlowBaseline:
    """An evaluation of the base model that takes a minute and more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        self.begun = threading.Event()
        real = evaluation._sums

        def slow(*args: Any) -> Any:
            self.batches += 1
            self.begun.set()
            time.sleep(0.5)
            return real(*args)

        monkeypatch.setattr(evaluation, "_sums", slow)
        monkeypatch.setattr(evaluation, "kept_micro_batches", lambda *args: [*self._real(*args)] * 200)

    _real = staticmethod(evaluation.kept_micro_batches)


@pytest.mark.parametrize("way", ["released", "removed"])
def test_a_baseline_for_which_nobody_waits_any_more_is_abandoned(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A study that is paused or cancelled, or has no time left, holds no device until its baseline is through."""
    slow = SlowBaseline(monkeypatch)
    slots = {"study/0/1/a": a_slot(tmp_path, 0), "study/1/1/b": a_slot(tmp_path, 1)}  # which writes their data, first
    assert not any(roster.admit(key, slot, has_room_for_all=False) for key, slot in slots.items())
    assert slow.begun.wait(PATIENCE)
    roster.release("study/0")
    batches = slow.batches
    until(lambda: slow.batches > batches + 2, "the other trial of the study still waits for it")
    if way == "released":
        roster.release("study/1")
        for key in ("study/0/1/a", "study/1/1/b"):
            assert json.loads(roster.next_message(key))["kind"] == "Released"
    else:
        roster.remove("study/1/1/b")
        assert json.loads(roster.next_message("study/0/1/a"))["kind"] == "Released"
    assert slow.batches < 100


def until(what: Callable[[], object], text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


def test_a_trial_for_whose_model_there_is_no_memory_waits_until_others_are_done(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = models.NodeMemory(tmp_path / f"hpsearch-memory-{os.getuid()}")
    assert other.hold()
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(memory, "is_loaded", lambda *_: False)  # a test before this one may have it loaded
    slot = a_slot(tmp_path, 0)
    assert roster.admit("study/0/1/a", slot, has_room_for_all=False) is None
    until(other.is_wanted, "it says that it waits")
    assert roster.trials() == ["study/0/1/a"]
    other.let_go()  # alone, it is loaded whatever is free
    assert json.loads(roster.next_message("study/0/1/a"))["kind"] == "Reported"


def test_a_trial_that_does_not_fit_beside_what_the_others_will_take_waits(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whole models begin in one look: the second sees what the first has not taken yet."""
    slots = {f"study/{number}/1/a": a_slot(tmp_path, number, method="full") for number in range(2)}
    prepared = prepare(FinetuneConfig.model_validate_json(slots["study/0/1/a"].config))
    parameters = sum(each.numel() for each in prepared.loaded.model.parameters())
    cohorts: list[list[str]] = []
    tick = Cohort.tick

    def seen(cohort: Cohort, *waiting: Any) -> Any:
        cohorts.append(list(cohort))
        return tick(cohort, *waiting)

    monkeypatch.setattr(Cohort, "tick", seen)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(30 * parameters))  # 12 awaited, and 16 / 0.7 needed
    with roster._changed:  # which looks when both are there
        assert not any(roster.admit(key, slot, has_room_for_all=True) for key, slot in slots.items())
    for key in slots:
        while json.loads(roster.next_message(key))["kind"] == "Reported":
            pass
    assert next(filter(None, cohorts)) == ["study/0/1/a"]
    assert ["study/0/1/a", "study/1/1/a"] in cohorts, "what was taken is what is not free any more"


def reported(roster: Roster, key: str) -> int:
    """The exposure of a trial's next report."""
    message = json.loads(roster.next_message(key))
    assert message["kind"] == "Reported", message
    return int(message["report"]["exposure"])


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed-between-its-two-snapshots"])
def test_what_a_trial_hands_over_is_there_before_its_report_is_known_and_an_heir_begins_there(
    roster: Roster, tmp_path: Path, killed: bool
) -> None:
    """A report after each of ten steps; others may begin at the fifth."""
    parent, left = a_config(), tmp_path / "exchange" / "0"
    slot = a_slot(tmp_path, 0)
    if killed:
        member = Member(parent, prepare(parent))
        while member.exposure < 20:
            member.advance()
        Attempt(Path(slot.progress), 1).keep(member)
        slot = dataclasses.replace(slot, attempt=2, reported=16)
    slot = dataclasses.replace(slot, hands_over_at=20, hands_over_to=str(left))
    key = f"study/0/{slot.attempt}/a"
    assert roster.admit(key, slot, has_room_for_all=False) is None
    while reported(roster, key) < 20:
        assert killed or not left.exists()
    assert (left / "20" / snapshot.FILE).is_file()
    assert reported(roster, key) == 24, "nobody has told it to stop"

    child = parent.changed(20, parent.hyperparameters.model_copy(update={"dropout": 0.3}))
    heir = dataclasses.replace(
        a_slot(tmp_path, 1), config=child.model_dump_json(), inherits=str(left / "20"), reported=20
    )
    assert roster.admit("study/1/1/b", heir, has_room_for_all=False) is None
    assert [reported(roster, "study/1/1/b") for _ in range(3)] == [20, 24, 28]


def test_who_reports_beside_one_that_ends_does_not_wait_until_that_one_s_test_split_is_read(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, goes_on = "study/0/1/a", "study/1/1/b"
    tick, begun, may_end = Cohort.tick, threading.Event(), threading.Event()
    ended: list[tuple[str, Any]] = []
    beside: list[tuple[str, Any]] = []

    def together(cohort: Cohort, *waiting: Any) -> Any:
        """The end comes in one tick with a report of the other one, and first."""
        events = list(tick(cohort, *waiting))
        ended.extend(event for event in events if isinstance(event[1], Finished) and event[0] == ends)
        others = [event for event in events if event not in ended]
        if not ended or beside or goes_on not in dict(others):
            return others
        beside.extend(others)
        return [*ended, *others]

    def slow(_: Member) -> None:
        begun.set()
        may_end.wait(3 * PATIENCE)

    monkeypatch.setattr(Cohort, "tick", together)
    monkeypatch.setattr(sealed, "score_sealed", slow)
    heard: dict[str, list[dict[str, Any]]] = {ends: [], goes_on: []}

    def hear(key: str) -> None:
        while not heard[key] or heard[key][-1]["kind"] == "Reported":
            heard[key].append(json.loads(roster.next_message(key)))

    for key, slot in ((ends, a_slot(tmp_path, 0)), (goes_on, a_slot(tmp_path, 1, epochs=3))):
        assert roster.admit(key, slot, has_room_for_all=False) is None
        threading.Thread(target=hear, args=[key], daemon=True).start()
    assert begun.wait(PATIENCE)
    exposure = dict(beside)[goes_on].exposure
    until(lambda: heard[goes_on][-1]["report"]["exposure"] == exposure, "it is told while the other one is read")
    may_end.set()
    until(lambda: [each[-1]["kind"] for each in heard.values()] == ["Finished"] * 2, "both end")


@pytest.mark.parametrize("is_gpu", [True])
def test_a_gpu_that_pytorch_can_not_use_fails_its_trials_by_name_and_ends_no_device(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray counts the GPUs that the driver shows, also where PyTorch is a build for CPUs or the driver is too old."""
    ended: list[int] = []
    monkeypatch.setattr(training_module.os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert roster.admit("study/0/1/a", a_slot(tmp_path, 0), has_room_for_all=True) is None
    message = json.loads(roster.next_message("study/0/1/a"))
    assert (message["kind"], message["failure"]) == ("Failed", "error")
    assert "PyTorch can't use it" in message["text"]
    assert not ended


def test_memory_that_cuda_runs_out_of_while_a_model_loads_is_named(
    roster: Roster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(models.Models, "get", load)
    assert roster.admit("study/0/1/a", a_slot(tmp_path, 0), has_room_for_all=True) is None
    message = json.loads(roster.next_message("study/0/1/a"))
    assert (message["kind"], message["failure"]) == ("Failed", "out_of_memory")


def test_a_device_sees_its_own_gpu_and_no_other() -> None:
    seen = environment(DeviceAddress("node", "gpu", "2"), {})
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["HIP_VISIBLE_DEVICES"] == "2"
    assert environment(DeviceAddress("node", "cpu", "2"), {})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_gpu_s_memory_grows_in_place_unless_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module.platform, "release", lambda: "6.8.0-45-generic")
    gpu, ours = DeviceAddress("node", "gpu", "2"), {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert environment(gpu, {}).items() >= ours.items()
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        assert "PYTORCH_ALLOC_CONF" not in environment(gpu, {name: "max_split_size_mb:512"})
    assert "PYTORCH_ALLOC_CONF" not in environment(DeviceAddress("node", "cpu", "2"), {})
    for kernel in ("5.15.90.1-microsoft-standard-WSL2", "5.15.148-tegra"):  # whose drivers can't
        monkeypatch.setattr(device_module.platform, "release", lambda kernel=kernel: kernel)
        assert "PYTORCH_ALLOC_CONF" not in environment(gpu, {})
