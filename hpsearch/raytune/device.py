"""The device actor: one long-lived process per GPU (or CPU core) that trains the trials placed there.

It keeps base models loaded and datasets tokenised, so no trial pays for importing torch, loading the model
or tokenising. Trials come and go by messages; one thread trains them, the others answer.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpsearch import __version__
from hpsearch.errors import HpsearchError, InvalidInput, TrialFailure
from hpsearch.raytune.messages import Failed, Finished, Message, Removed, Reported, encode
from hpsearch.results import Failure
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric

if TYPE_CHECKING:
    from hpsearch.finetune.cohort import Event
    from hpsearch.finetune.prepare import Prepared

log = logging.getLogger(__name__)

KEPT_MODELS = 2
"""Base models with their data that stay loaded on a device while no trial uses them."""

IDLE_SECONDS = 15 * 60
"""A device without trials for so long ends its process and gives the memory back."""


SILENT_SECONDS = 10
"""A trial whose own process was not heard of for so long is dropped: the process died with its driver."""


@dataclass(frozen=True)
class Slot:
    """What a device needs to know of a trial."""

    config: str
    """FinetuneConfig as JSON."""
    metric: Metric
    """What the best report is best by."""
    adapter: str
    """Folder for the best weights."""
    capacity: int
    """Trials that may share the device."""
    cache: str | None = None
    """Folder of tokenised data that all workers share."""


@dataclass(frozen=True)
class DeviceAddress:
    """One GPU, or one core, of one node."""

    node: str
    kind: Literal["gpu", "cpu"]
    id: str
    """Of a GPU as Ray names it: an index, or a UUID."""

    @property
    def name(self) -> str:
        """The device actor's name in the cluster."""
        return f"hpsearch-{__version__}-{self.node}-{self.kind}-{self.id}"


def devices_of(node: str, gpus: list[str]) -> list[DeviceAddress]:
    """The devices on which a trial that holds these GPUs (or a core) of a node may train."""
    if gpus:
        return [DeviceAddress(node, "gpu", gpu) for gpu in gpus]
    return [DeviceAddress(node, "cpu", str(core)) for core in range(_cores(node))]


def _cores(node: str) -> int:
    for description in ray.nodes():
        if description["NodeID"] == node:
            return max(1, int(description["Resources"].get("CPU", 1)))
    return 1


def open_device(address: DeviceAddress) -> Any:
    """The device at this address, started if it is missing."""
    return (
        ray.remote(Device)
        .options(
            name=address.name,
            get_if_exists=True,
            lifetime="detached",  # it outlives the trial that was the first to need it
            num_cpus=0,  # the trials on it hold its share
            max_concurrency=128,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=address.node, soft=False),
        )
        .remote(address)
    )


class Device:
    """Runs as a Ray actor; its methods are called from many threads."""

    def __init__(self, address: DeviceAddress) -> None:
        # Before torch is imported: which GPU it sees, and one thread per core (spinning threads cost 4 to 25 times).
        os.environ["CUDA_VISIBLE_DEVICES"] = address.id if address.kind == "gpu" else ""
        os.environ["OMP_NUM_THREADS"] = "1"
        self._is_gpu = address.kind == "gpu"
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._heard: dict[str, float] = {}
        self._joining: list[str] = []
        self._outbox: dict[str, queue.Queue[str]] = {}
        threading.Thread(target=self._train_or_die, name="train", daemon=True).start()

    def admit(self, key: str, slot: Slot) -> bool:
        """Take a trial on; False when the device is full. Its messages can be waited for at once."""
        with self._changed:
            if len(self._slots) >= slot.capacity and not self._is_gpu:
                return False
            self._slots[key] = slot
            self._heard[key] = time.monotonic()
            self._outbox[key] = queue.Queue()
            self._joining.append(key)
            self._changed.notify_all()
            return True

    def touch(self, key: str) -> None:
        """The trial's process lives."""
        with self._changed:
            if key in self._slots:
                self._heard[key] = time.monotonic()

    def next_message(self, key: str) -> str:
        """Wait for the trial's next message. Asking for it says that the one before was dealt with."""
        outbox = self._outbox.get(key)
        message = encode(Removed()) if outbox is None else outbox.get()
        with self._changed:
            self._changed.notify_all()
        return message

    def remove(self, key: str) -> None:
        """Drop a trial: it ended, was pruned or was cancelled."""
        with self._changed:
            self._slots.pop(key, None)
            self._heard.pop(key, None)
            outbox = self._outbox.pop(key, None)
            if outbox is not None:
                outbox.put(encode(Removed()))
            self._changed.notify_all()

    def pid(self) -> int:
        """The device's process."""
        return os.getpid()

    def trials(self) -> list[str]:
        """The keys of the trials on the device."""
        with self._changed:
            return list(self._slots)

    # The training thread. It alone touches models and the cohort.

    def _train_or_die(self) -> None:
        """Without its training thread the device would answer for ever and train nothing."""
        try:
            self._train()
        except BaseException:
            log.exception("device ended: its training thread failed")
            os._exit(1)  # the trials on it see a lost worker

    def _train(self) -> None:
        import torch

        from hpsearch.finetune.cohort import Cohort

        if not self._is_gpu:
            torch.set_num_threads(1)
        self._prepared: OrderedDict[str, Prepared] = OrderedDict()
        self._cohort = Cohort()
        self._contracts: dict[str, str] = {}
        self._in_use: dict[str, Prepared] = {}
        idle_since = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=1)
            for key in self._silent():
                log.warning("trial dropped: its process is gone", extra={"trial": key})
                self.remove(key)
            with self._changed:
                idle_since = time.monotonic() if self._slots else idle_since
                if time.monotonic() - idle_since > IDLE_SECONDS:
                    os._exit(0)  # ends the actor; the next trial that needs the device starts a new one
                joining, self._joining = self._joining, []
                slots = dict(self._slots)
                waiting = {key for key, outbox in self._outbox.items() if not outbox.empty()}
            for key in [key for key in self._cohort if key not in slots]:
                self._cohort.remove(key)
            self._contracts = {key: contract for key, contract in self._contracts.items() if key in slots}
            self._in_use = {key: prepared for key, prepared in self._in_use.items() if key in slots}
            for key in joining:
                if key in slots:
                    self._join(key, slots[key])
            for key, event in self._cohort.tick(waiting):
                self._send(key, self._message(key, slots[key], event))

    def _silent(self) -> list[str]:
        with self._changed:
            return [key for key in self._slots if time.monotonic() - self._heard[key] > SILENT_SECONDS]

    def _has_work(self) -> bool:
        """A trial to take on, one to drop, or one whose last message was dealt with."""
        return bool(self._joining) or any(key not in self._outbox or self._outbox[key].empty() for key in self._cohort)

    def _join(self, key: str, slot: Slot) -> None:
        from hpsearch.finetune.member import Member

        try:
            config = FinetuneConfig.model_validate_json(slot.config)
            prepared = self._prepare(config, slot.cache)
            self._contracts[key] = prepared.evaluation_contract
            self._in_use[key] = prepared
            self._cohort.admit(key, Member(config, prepared, slot.metric))
        except Exception as error:  # whatever goes wrong with one trial is that trial's failure, never the device's
            log.warning("trial not started", exc_info=True, extra={"trial": key})
            self._send(key, failed(error))

    def _prepare(self, config: FinetuneConfig, cache: str | None) -> Prepared:
        """The base model with its data, loaded once for all trials that share it."""
        from hpsearch.finetune.prepare import prepare, prepared_key

        key = prepared_key(config)
        if key not in self._prepared:
            self._forget()
            folder = None if cache is None else Path(cache)
            self._prepared[key] = prepare(config, "cuda:0" if self._is_gpu else "cpu", folder)
            for text in self._prepared[key].warnings:
                log.warning("data cut", extra={"train": config.data.train, "text": text})
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _forget(self) -> None:
        """Make room for another base model. On a GPU, nothing stays loaded that no trial uses."""
        for key in list(self._prepared):
            used = any(prepared is self._prepared[key] for prepared in self._in_use.values())
            if not used and (self._is_gpu or len(self._prepared) >= KEPT_MODELS):
                del self._prepared[key]
        if self._is_gpu:
            import torch

            torch.cuda.empty_cache()

    def _message(self, key: str, slot: Slot, event: Event) -> Message:
        from hpsearch.finetune import cohort

        if isinstance(event, cohort.Failed):
            return failed(event.error)
        if isinstance(event, cohort.Finished):
            try:
                event.member.save_best(Path(slot.adapter))
            except Exception as error:  # a full disk, say: this trial's weights are lost, the device goes on
                return failed(error)
            return Finished(event.best, self._contracts[key], slot.adapter)
        warnings = self._in_use[key].warnings if event.exposure == 0 else ()
        return Reported(event, self._contracts[key], warnings)

    def _send(self, key: str, message: Message) -> None:
        if isinstance(message, Failed):
            log.warning("trial failed", extra={"trial": key, "failure": message.failure, "text": message.text})
        outbox = self._outbox.get(key)
        if outbox is not None:
            outbox.put(encode(message))


def failed(error: Exception) -> Failed:
    """An error as the trial's end."""
    if isinstance(error, TrialFailure):
        return Failed(Failure(error.code), str(error))
    if isinstance(error, InvalidInput):
        return Failed(Failure.INVALID_DATA, str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, while loading
        return Failed(Failure.OUT_OF_MEMORY, str(error))
    text = str(error) if isinstance(error, HpsearchError) else f"{type(error).__name__}: {error}"
    return Failed(Failure.ERROR, text)
