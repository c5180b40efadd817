"""The device actor: one long-lived process per GPU (or CPU core) that trains the trials placed there.

It keeps base models loaded and datasets tokenised, so no trial pays for importing torch, loading the model
or tokenising. Trials come and go by messages; one thread trains them, the others answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpsearch import __version__
from hpsearch.errors import DiskFull, HpsearchError, InvalidInput, TrialFailure, WorkerLost
from hpsearch.raytune.messages import Failed, Finished, Lost, Message, Released, Removed, Replayed, Reported, encode
from hpsearch.results import Failure
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric

if TYPE_CHECKING:
    from hpsearch.finetune import cohort
    from hpsearch.finetune.attempts import Attempt
    from hpsearch.finetune.cohort import Event
    from hpsearch.finetune.member import Member
    from hpsearch.finetune.prepare import Prepared

log = logging.getLogger(__name__)

KEPT_MODELS = 2
"""Base models with their data that stay loaded on a device while no trial uses them."""

NAME_PREFIX = f"hpsearch-{__version__}-"

IDLE_SECONDS = 15 * 60
"""A device without trials for so long ends its process and gives the memory back."""


SILENT_SECONDS = 10
"""A trial whose own process was not heard of for so long is dropped: the process died with its driver."""

SHARED_SECONDS = 3
"""A folder that the runner made may be seen so much later on another node."""

FAREWELL_SECONDS = 5
"""A device that was asked to end waits so long for its trials to hear of it."""


@dataclass(frozen=True)
class Slot:
    """What a device needs to know of a trial."""

    config: str
    """FinetuneConfig as JSON."""
    metric: Metric
    """What the best report is best by."""
    adapter: str
    """Folder for the best weights."""
    progress: str
    """Folder of its snapshots."""
    attempt: int
    """How often it was handed out, this time included."""
    reported: int | None
    """The exposure of its last report that is known; None before any."""
    capacity: int
    """Trials that may share the device."""
    cache: str | None = None
    """Folder of tokenised data that all workers share."""
    prove: bool = False
    """Whether its first steps are made again alone."""


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
        return f"{NAME_PREFIX}{self.node}-{self.kind}-{self.id}"


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


def release_everywhere(study: str) -> None:
    """Ask every device of the cluster to let go of a study's trials, without waiting for it."""
    for device in _all_devices():
        device.release.remote(study)


def finish_everywhere(trial: str) -> None:
    """Ask whichever device trains a trial (`study/number`) to end it with its best report, without waiting for it."""
    for device in _all_devices():
        device.finish.remote(trial)


def _all_devices() -> Iterator[Any]:
    for actor in ray.util.list_named_actors(all_namespaces=False):
        if actor.startswith(NAME_PREFIX):
            with contextlib.suppress(ValueError):  # it ended just now
                yield ray.get_actor(actor)


class Device:
    """Runs as a Ray actor; its methods are called from many threads."""

    def __init__(self, address: DeviceAddress) -> None:
        # Before torch is imported: which GPU it sees, and one thread per core (spinning threads cost 4 to 25 times).
        os.environ["CUDA_VISIBLE_DEVICES"] = address.id if address.kind == "gpu" else ""
        os.environ["OMP_NUM_THREADS"] = "1"
        self._is_gpu = address.kind == "gpu"
        self._share = 1.0 if self._is_gpu else 1 / _cores(address.node)
        """Part of the node's free memory that is this device's."""
        self._changed = threading.Condition()
        self._slots: dict[str, Slot] = {}
        self._heard: dict[str, float] = {}
        self._joining: list[str] = []
        self._errands: list[Callable[[], None]] = []
        self._leaving: set[str] = set()
        self._finishing: set[str] = set()
        self._outdated: set[str] = set()
        self._is_ending = False
        self._outbox: dict[str, queue.Queue[str]] = {}
        _when_terminated(self._end)
        threading.Thread(target=self._train_or_die, name="train", daemon=True).start()

    def admit(self, key: str, slot: Slot, crowd: bool = False) -> bool:
        """Take a trial on; False when the device is full, unless it may be crowded. Its messages can be waited for."""
        with self._changed:
            earlier = {other for other in self._slots if _trial_of(other) == _trial_of(key)}
            is_full = len(self._slots) - len(earlier) >= slot.capacity and not self._is_gpu
            if self._is_ending or (is_full and not crowd):
                return False
            self._outdated |= earlier  # their processes are gone, and nobody has missed them yet
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

    def release(self, study: str) -> None:
        """Let go of a study's trials between two steps; each gets that as its last message."""
        with self._changed:
            self._leaving |= {key for key in self._slots if key.startswith(f"{study}/")}
            self._changed.notify_all()

    def finish(self, trial: str) -> None:
        """End a trial that has reported between two steps, as if that were all of its epochs."""
        with self._changed:
            self._finishing |= {key for key in self._slots if _trial_of(key) == trial}
            self._changed.notify_all()

    def _end(self) -> None:
        """Let go of all trials, then end the process."""
        with self._changed:
            self._is_ending = True
            self._leaving |= set(self._slots)
            self._changed.notify_all()
        deadline = time.monotonic() + FAREWELL_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: not self._slots, timeout=deadline - time.monotonic())
        os._exit(0)

    def remove(self, key: str) -> None:
        """Drop a trial: it ended, was pruned or was cancelled."""
        with self._changed:
            self._slots.pop(key, None)
            self._heard.pop(key, None)
            outbox = self._outbox.pop(key, None)
            if outbox is not None:
                outbox.put(encode(Removed()))
            self._changed.notify_all()

    def get_ready(self, config: str, cache: str | None) -> None:
        """Load what trials like this one will need, without making anybody wait; what fails now fails again then."""

        def load() -> None:
            if len(self._cohort):  # what trains here would wait
                return
            try:
                self._prepare(FinetuneConfig.model_validate_json(config), cache)
            except Exception:  # the trial that needs it will say so
                log.info("not made ready", exc_info=True)

        self._do(load)

    def measure(self, config: str, cache: str | None, most: int) -> tuple[int, str]:
        """How many trials like this one should share the device, at most so many, and why.

        Raises:
            InvalidInput: The model or the data can't be used.
        """
        found: Future[tuple[int, str]] = Future()

        def measure() -> None:
            from hpsearch.finetune.company import measure

            try:
                resolved = FinetuneConfig.model_validate_json(config)
                measured = measure(self._prepare(resolved, cache), resolved, most)
                found.set_result((measured.members, measured.reason))
            except Exception as error:  # whoever asked decides
                found.set_exception(error)

        self._do(measure)
        return found.result()

    def _do(self, errand: Callable[[], None]) -> None:
        """Have the training thread do something between two ticks."""
        with self._changed:
            self._errands.append(errand)
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
        self._attempts: dict[str, Attempt] = {}
        self._delayed: list[str] = []
        idle_since = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=1)
            for key in self._silent():
                log.warning("trial dropped: its process is gone", extra={"trial": key})
                self._let_go(key)
                self.remove(key)
            with self._changed:
                idle_since = time.monotonic() if self._slots or self._errands else idle_since
                if time.monotonic() - idle_since > IDLE_SECONDS:
                    os._exit(0)  # ends the actor; the next trial that needs the device starts a new one
                joining, self._joining = self._joining, []
                errands, self._errands = self._errands, []
                leaving, self._leaving = self._leaving, set()
                finishing, self._finishing = self._finishing, set()
                slots = dict(self._slots)
                waiting = {key for key, outbox in self._outbox.items() if not outbox.empty()}
            for key in [key for key in self._cohort if key not in slots]:
                self._cohort.remove(key)
            self._contracts = {key: contract for key, contract in self._contracts.items() if key in slots}
            self._in_use = {key: prepared for key, prepared in self._in_use.items() if key in slots}
            self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in slots}
            for errand in errands:
                errand()
                idle_since = time.monotonic()  # loading a large model may have taken longer than an idle device lives
            delayed, self._delayed = self._delayed, []
            for key in [*delayed, *joining]:
                if key in slots and key not in leaving:
                    self._join(key, slots[key])
            for key in leaving & slots.keys():
                self._let_go(key)
                self._send(key, Released("the device let go of it"))
            for key in finishing & slots.keys():
                self._finish(key, slots[key])
            for key, event in self._cohort.tick(waiting | leaving):
                self._send(key, self._message(key, slots[key], event))

    def _silent(self) -> list[str]:
        with self._changed:
            outdated, self._outdated = self._outdated & self._slots.keys(), set()
            heard_since = time.monotonic() - SILENT_SECONDS
            return [key for key in self._slots if key in outdated or self._heard[key] < heard_since]

    def _has_work(self) -> bool:
        """A trial to take on, one to drop, or one whose last message was dealt with."""
        if self._joining or self._leaving or self._finishing or self._errands:
            return True
        return any(key not in self._outbox or self._outbox[key].empty() for key in self._cohort)

    def _join(self, key: str, slot: Slot) -> None:
        from hpsearch.finetune import memory
        from hpsearch.finetune.attempts import Attempt
        from hpsearch.finetune.member import Member

        try:
            _check_shared(Path(slot.adapter).parent)
            config = FinetuneConfig.model_validate_json(slot.config)
            prepared = self._prepare(config, slot.cache)
            self._contracts[key] = prepared.evaluation_contract
            self._in_use[key] = prepared
            if len(self._cohort) and not memory.fits(config, prepared, self._share):
                self._delayed.append(key)  # until one of the others leaves
                return
            member = Member(config, prepared, slot.metric)
            memory.limit_tokens(member, self._share)
            self._attempts[key] = attempt = Attempt(Path(slot.progress), slot.attempt)
            if attempt.go_on(member, slot.reported):
                log.info("trial continued", extra={"trial": key, "step": member.steps, "attempt": slot.attempt})
                self._tell_again(key, slot, member)
            if not member.is_done:
                self._cohort.admit(key, member, prove=slot.prove)
        except Exception as error:  # whatever goes wrong with one trial is that trial's failure, never the device's
            log.warning("trial not started", exc_info=True, extra={"trial": key})
            self._send(key, failed(error))

    def _tell_again(self, key: str, slot: Slot, member: Member) -> None:
        """Reports that nobody may have dealt with before the interruption, from the last known one on; the end too."""
        from hpsearch.finetune.cohort import Finished as Done

        known = slot.reported or 0
        events: list[Event] = [report for report in member.reports if report.exposure >= known]
        if member.is_done:
            assert member.best is not None  # the last example of an epoch is always a report
            events.append(Done(member.best, member))
        for event in events:
            self._send(key, self._message(key, slot, event))

    def _let_go(self, key: str) -> None:
        """Take a trial out of the cohort and keep where it stood; nothing when it has ended or not begun."""
        if key not in self._cohort:
            return
        member = self._cohort.remove(key)
        if member.steps:
            try:
                self._attempts[key].keep(member)
            except Exception:  # the last snapshot is whole: what was trained since is trained again
                log.warning("snapshot not written", exc_info=True, extra={"trial": key})

    def _finish(self, key: str, slot: Slot) -> None:
        """The trial's end, where it stands."""
        from hpsearch.finetune.cohort import Finished as Done

        if key in self._cohort:
            member = self._cohort.remove(key)
            assert member.best is not None  # it is asked of trials that have reported
            self._send(key, self._message(key, slot, Done(member.best, member)))

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
        from hpsearch.finetune.replay import Replay

        if isinstance(event, cohort.Failed):
            return failed(event.error)
        if isinstance(event, cohort.Finished):
            return self._end_of(key, slot, event)
        if isinstance(event, Replay):
            return Replayed(event.steps, event.company, event.deviation)
        if key in self._cohort and event.exposure > 0:  # before anybody knows of the report: never behind it
            try:
                self._attempts[key].keep_if_due(self._cohort[key])
            except DiskFull as error:
                self._cohort.remove(key)
                return failed(error)
            except OSError:  # training needs no snapshot
                log.warning("snapshot not written", exc_info=True, extra={"trial": key})
        warnings = self._in_use[key].warnings if event.exposure == 0 else ()
        return Reported(event, self._contracts[key], warnings)

    def _end_of(self, key: str, slot: Slot, event: cohort.Finished) -> Message:
        """Its best weights are on the disk before anybody knows of it."""
        from hpsearch.finetune.attempts import telling_disk_full

        try:
            with telling_disk_full():
                event.member.save_best(Path(slot.adapter))
        except DiskFull as error:
            return failed(error)
        except Exception as error:  # the disk's fault: the trial goes on from its snapshot, and ends once more
            log.warning("best weights not written", exc_info=True, extra={"trial": key})
            return Lost(f"the best weights could not be written: {error}"[:500])
        return Finished(event.best, self._contracts[key], slot.adapter)

    def _send(self, key: str, message: Message) -> None:
        if isinstance(message, Failed):
            if self._is_gpu and not _gpu_works():
                # After an illegal access every call fails in this process, whoever's trial it is; not in the next one.
                log.error("device ended: its GPU refuses every call", extra={"trial": key, "text": message.text})
                os._exit(1)  # the trials on it see a lost worker, and go on from their snapshots
            log.warning("trial failed", extra={"trial": key, "failure": message.failure, "text": message.text})
        outbox = self._outbox.get(key)
        if outbox is not None:
            outbox.put(encode(message))


def _check_shared(artifacts: Path) -> None:
    """Raise WorkerLost where the study's folder is missing: its weights would be written to a disk nobody looks at."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not artifacts.is_dir():
        if time.monotonic() > deadline:
            raise WorkerLost(f"{socket.gethostname()} has no {artifacts}: HPSEARCH_HOME must be shared by all nodes")
        time.sleep(0.1)


def _gpu_works() -> bool:
    import torch

    try:
        torch.cuda.synchronize()
    except Exception:  # torch's own kinds of errors differ by version
        return False
    return True


def _trial_of(key: str) -> str:
    """`study/number`, without the attempt."""
    return key.rpartition("/")[0]


def _when_terminated(end: Callable[[], None]) -> None:
    """Call `end` in a thread of its own on SIGTERM.

    The actor's main thread waits inside of Ray, where Python's handlers do not run; but the number of the signal is
    written to a pipe at once.
    """
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)

    def listen() -> None:
        while os.read(hears, 1) != bytes([signal.SIGTERM]):
            pass
        end()

    threading.Thread(target=listen, name="sigterm", daemon=True).start()


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
