"""The device actor: one long-lived process per GPU (or CPU core) that trains the trials placed there.

It keeps base models loaded and datasets tokenised, so no trial pays for importing torch, loading the model
or tokenising. Trials come and go by messages; one thread trains them, the others answer.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from hpsearch.raytune.address import DeviceAddress, cores_of
from hpsearch.raytune.messages import Slot
from hpsearch.raytune.roster import Refusal, Roster
from hpsearch.raytune.training import Training
from hpsearch.service import configure_logging
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.watchdog import Progress, begin, watch, where

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 5
"""A device that was asked to end waits so long for its trials to hear of it."""


class Device:
    """Runs as a Ray actor; its methods are called from many threads."""

    def __init__(self, address: DeviceAddress) -> None:
        os.environ.update(environment(address, os.environ))  # before torch is imported
        configure_logging(device=address.label)
        self._is_gpu = address.kind == "gpu"
        share = 1.0 if self._is_gpu else 1 / cores_of(address.node)
        self._roster = Roster()
        self._training = Training(self._roster, self._is_gpu, share)
        _when_terminated(self.end)
        threading.Thread(target=self._train_or_die, name="train", daemon=True).start()

    def admit(self, key: str, slot: Slot, crowd: bool = False, lines_up: bool = True) -> int | Refusal:
        """Take a trial on, whose messages can be waited for then, or say why not; see `Roster.admit`.

        Returns:
            The device's process id.
        """
        refusal = self._roster.admit(key, slot, has_room_for_all=crowd or self._is_gpu, lines_up=lines_up)
        return os.getpid() if refusal is None else refusal

    def touch(self, key: str) -> None:
        """The trial's process lives."""
        self._roster.touch(key)

    def next_message(self, key: str) -> str:
        """Wait for the trial's next message. Asking for it says that the one before was dealt with."""
        return self._roster.next_message(key)

    def release(self, study: str) -> None:
        """Let go of a study's trials between two steps; each gets that as its last message."""
        self._roster.release(study)

    def finish(self, trial: str) -> None:
        """End a trial that has reported between two steps, as if that were all of its epochs."""
        self._roster.finish(trial)

    def remove(self, key: str) -> None:
        """Drop a trial: it ended, was pruned or was cancelled."""
        self._roster.remove(key)

    def get_ready(self, config: str, cache: str | None, stalled_seconds: float) -> None:
        """Load what trials like this one will need, without making anybody wait; what fails now fails again then."""

        def load() -> None:
            try:
                self._training.get_ready(FinetuneConfig.model_validate_json(config), cache)
            except Exception:  # the trial that needs it will say so
                log.info("not made ready", exc_info=True)

        self._roster.do(load, stalled_seconds)

    def measure(self, config: str, cache: str | None, stalled_seconds: float, most: int) -> tuple[int, str]:
        """How many trials like this one should share the device, at most so many, and why.

        Raises:
            InvalidInput: The model or the data can't be used.
        """
        found: Future[tuple[int, str]] = Future()

        def measure() -> None:
            try:
                found.set_result(self._training.measure(FinetuneConfig.model_validate_json(config), cache, most))
            except Exception as error:  # whoever asked decides
                found.set_exception(error)

        self._roster.do(measure, stalled_seconds)
        return found.result()

    def pid(self) -> int:
        """The device's process."""
        return os.getpid()

    def trials(self) -> list[str]:
        """The keys of the trials on the device."""
        return self._roster.trials()

    def _train_or_die(self) -> None:
        """Without its training thread the device would answer for ever and train nothing."""
        threading.Thread(target=self._watch, args=(begin(),), name="watchdog", daemon=True).start()
        try:
            self._training.run()
        except BaseException:
            log.exception("device ended: its training thread failed")
            os._exit(1)  # the trials on it see a lost worker
        os._exit(0)  # ends the actor; the next trial that needs the device starts a new one

    def _watch(self, progress: Progress) -> None:
        """A training thread that hangs can't be mended: end the process, and with it whatever the thread waits for."""
        text = watch(progress, lambda: self._roster.stalled_seconds)
        log.error("device ended: its training thread hangs", extra={"reason": text, "traceback": where(progress)})
        last_resort = threading.Timer(FAREWELL_SECONDS, os._exit, (1,))  # the thread may hold what the farewell needs
        last_resort.daemon = True
        last_resort.start()
        self._roster.lose(f"the device made {text} and was replaced (HPSEARCH_DEVICE_STALLED_SECONDS)")
        self._roster.wait_until_empty(FAREWELL_SECONDS)
        os._exit(1)

    def end(self, seconds: float = FAREWELL_SECONDS) -> None:
        """Let go of all trials, then end the process, after so long in any case."""
        self._roster.close()
        self._roster.wait_until_empty(seconds)
        os._exit(0)


def environment(address: DeviceAddress, given: Mapping[str, str]) -> dict[str, str]:
    """Which GPU the device's process sees, and one thread per core (spinning threads cost 4 to 25 times).

    On a GPU, PyTorch's memory grows in place: micro-batches differ in shape, and what one leaves free in pieces of its
    own sizes is of no use to the next. An operator's own settings for that memory stay.

    Args:
        address: Of the device.
        given: The environment as it is.
    """
    seen = address.id if address.kind == "gpu" else ""
    # NVIDIA's and AMD's: where a node has AMD's set, nothing else counts there.
    chosen = {"CUDA_VISIBLE_DEVICES": seen, "HIP_VISIBLE_DEVICES": seen, "OMP_NUM_THREADS": "1"}
    can_grow = not any(kernel in platform.release().lower() for kernel in _NO_VIRTUAL_MEMORY)
    if address.kind == "gpu" and can_grow and not any(name in given for name in _MEMORY_SETTINGS):
        chosen[_MEMORY_SETTINGS[0]] = "expandable_segments:True"
    return chosen


_MEMORY_SETTINGS = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"
"""All that PyTorch reads; earlier versions of it don't know the first, and change nothing."""

_NO_VIRTUAL_MEMORY = "microsoft", "tegra"
"""Kernels of WSL, where the first allocation fails (https://github.com/pytorch/pytorch/issues/192330), and Jetson."""


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
