"""Which base models are loaded beside one another: on one device, and on the devices of one node."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from finetune_reference import a_config

from hpsearch.basemodel import describe
from hpsearch.finetune import memory
from hpsearch.raytune.models import Models, NodeMemory, NoRoom

ONE, OTHER = a_config("llama"), a_config("gpt2")


class Machine:
    """With memory for one base model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.devices: list[Models] = []

    def device(self, share: float = 0.5) -> Models:
        self.devices.append(Models(is_gpu=False, share=share, node=NodeMemory(self._folder)))
        return self.devices[-1]

    def free_bytes(self, _device: torch.device) -> int:
        return 0 if any(device._prepared for device in self.devices) else 1 << 40


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "memory")
    monkeypatch.setattr(memory, "free_bytes", machine.free_bytes)
    monkeypatch.setattr(memory, "is_loaded", lambda *_: False)  # a test before this one may have it loaded
    return machine


def test_what_is_idle_goes_before_another_model_is_loaded(machine: Machine) -> None:
    device = machine.device()
    one = device.get(ONE, None, [])
    assert device.get(ONE, None, [one]) is one
    other = device.get(OTHER, None, [])
    assert list(device._prepared.values()) == [other]


@pytest.mark.parametrize("is_gpu", [False, True])
def test_a_base_that_is_idle_is_not_loaded_again_for_other_data(
    is_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device lets go of what is idle before it loads, a GPU of all of it."""
    device = Models(is_gpu=is_gpu, share=1.0, node=NodeMemory(tmp_path / "memory"))
    monkeypatch.setattr(device, "_device", "cpu")
    one = weakref.ref(device.get(ONE, None, []).base)
    other = device.get(a_config("llama", data="prompt_completion"), None, [])
    assert other.base is one()
    assert (len(device._prepared) == 1) == is_gpu


def test_what_does_not_fit_beside_what_is_used_waits(machine: Machine) -> None:
    device = machine.device()
    one = device.get(ONE, None, [])
    with pytest.raises(NoRoom, match="GiB"):
        device.get(OTHER, None, [one])
    assert list(device._prepared.values()) == [one]
    assert device.get(OTHER, None, []) is not one


def test_what_is_idle_on_another_device_of_the_node_goes_too(machine: Machine) -> None:
    first, second = machine.device(), machine.device()
    one = first.get(ONE, None, [])
    with pytest.raises(NoRoom):
        second.get(OTHER, None, [])
    first.make_room([one])
    assert first._prepared, "it is used"
    first.make_room([])
    assert not first._prepared
    assert second.get(OTHER, None, []).loaded.facts.model_type == "gpt2"


def test_who_is_alone_loads_whatever_is_free(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have fitted, or not, if nobody had looked."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)
    first, second = machine.device(), machine.device()
    assert first.get(ONE, None, [])
    with pytest.raises(NoRoom):
        second.get(OTHER, None, [])


def test_large_models_are_loaded_one_after_the_other(machine: Machine) -> None:
    """Each of two devices sees the same free memory."""
    device, other = machine.device(share=1e-12), NodeMemory(machine._folder)
    with other.loading() as is_only:
        assert is_only
        with pytest.raises(NoRoom):
            device.get(ONE, None, [])
    assert device.get(ONE, None, [])


def test_what_a_load_takes_is_known_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = describe(ONE.model.base).parameters
    full = a_config("gpt2", "full")
    assert memory.loading_bytes(full, "cpu") == 20 * describe(full.model.base).parameters
    assert memory.loading_bytes(ONE, "cpu") in (0, 4 * parameters), "nothing while a test before this one has it loaded"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(memory, "computes_in", lambda _device, dtype=dtype: dtype)
        assert memory.loading_bytes(ONE, "cuda:0") == dtype.itemsize * parameters
