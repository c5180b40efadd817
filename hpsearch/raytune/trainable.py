"""A Tune trial: a thin actor that holds the trial's share of a device and waits for what the device reports."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError

from hpsearch.errors import WorkerLost
from hpsearch.raytune.address import DeviceAddress, devices_of
from hpsearch.raytune.devices import leaving_nodes, open_device
from hpsearch.raytune.messages import KEY, Barred, Failed, InLine, Lost, Placed, Slot, encode, failed, fields_of, key_of
from hpsearch.raytune.roster import SILENT_SECONDS, Refusal
from hpsearch.service import configure_logging

log = logging.getLogger(__name__)

ADMISSION_SECONDS = 120
CROWD_SECONDS = 1.5 * SILENT_SECONDS
"""By then the places of trials whose processes died are free."""
TOUCH_SECONDS = 2
BARRED_SECONDS = 1
"""Whoever holds the share of a device that is set aside, or reserved for one trial, asks so often if that is over."""

DYING = RayActorError, ActorUnschedulableError, ValueError
"""Of a device that died just now: the next look makes a new one, or finds that the node takes no work any more."""


class FinetuneTrial(tune.Trainable):  # type: ignore[misc]
    """One trial after another: Tune reuses the actor, so a trial pays for no process and no import."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial, without handing it to a device yet.

        Tune may give the trial to another actor that was free sooner, before this one makes a step.
        """
        self._key = key_of(config["study"], config["number"], config["attempt"], self.trial_id)
        self._config = config
        configure_logging()
        self._device: Any = None
        self._first: Placed | Barred | InLine | Failed | Lost | None = None

    def _begin(self) -> Placed | Barred | InLine | Failed | Lost:
        """Hand the trial to a device of this node, and say that this process lives from then on."""
        try:
            first = self._placed(_slot(self._config), frozenset(self._config["set_aside"]))
        except Exception as error:  # Tune would end the trial without its reason
            is_lost = isinstance(error, WorkerLost | RayActorError | GetTimeoutError)
            return Lost(str(error)[:500]) if is_lost else failed(error)
        if isinstance(first, Placed):
            self._gone = threading.Event()
            watched = (self._device, first, self._key, self._gone, self._config["silent_seconds"])
            threading.Thread(target=_touch, args=watched, daemon=True).start()
        return first

    def _placed(self, slot: Slot, aside: frozenset[str]) -> Placed | Barred | InLine:
        """Find a device that takes the trial; where it is then."""
        node = ray.get_runtime_context().get_node_id()
        addresses = devices_of(node, [str(gpu) for gpu in ray.get_gpu_ids()])
        good = [address for address in addresses if address.label not in aside]
        barred = Barred(tuple(address.label for address in addresses if address.label in aside))
        if not good:
            return barred
        began = time.monotonic()
        while (waited := time.monotonic() - began) < ADMISSION_SECONDS:
            if node in leaving_nodes():
                return Barred(tuple(address.label for address in addresses), leaves=True)
            # Ray has granted the share. Where studies with other shares left no device whole, one is crowded.
            crowd = waited > CROWD_SECONDS
            if crowd and barred.devices:
                return barred
            answers = []
            for address in good:
                with contextlib.suppress(*DYING):
                    answers.append(self._asked(address, slot, crowd=crowd, lines_up=False))
                    if isinstance(answers[-1], Placed):
                        return answers[-1]
            if answers and all(answer is Refusal.RESERVED for answer in answers):
                return self._in_line(good, slot)
            time.sleep(0.2)
        raise WorkerLost(f"no device of this node took the trial within {ADMISSION_SECONDS} s")

    def _asked(self, address: DeviceAddress, slot: Slot, *, crowd: bool, lines_up: bool) -> Placed | Refusal:
        """The answer of a device, started if it is missing."""
        device = open_device(address)
        answer = ray.get(device.admit.remote(self._key, slot, crowd, lines_up), timeout=ADMISSION_SECONDS)
        if isinstance(answer, Refusal):
            return answer
        self._device = device
        return Placed(address.label, address.node, answer, address.name)

    def _in_line(self, addresses: list[DeviceAddress], slot: Slot) -> Placed | InLine:
        """A trial that has to be alone waits for one of these devices only: for that with the fewest trials."""
        if slot.alone_until is not None:
            with contextlib.suppress(*DYING):
                trials = {address: _trials_on(address) for address in addresses}
                answer = self._asked(min(addresses, key=trials.__getitem__), slot, crowd=False, lines_up=True)
                if isinstance(answer, Placed):
                    return answer
        return InLine()

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next message; where it was placed, or what went wrong there, is the first."""
        if isinstance(self._first, Barred | InLine):
            time.sleep(BARRED_SECONDS)
        if self._first is None or isinstance(self._first, InLine):
            self._first = self._begin()
            return {KEY: encode(self._first)}
        if isinstance(self._first, Barred):
            return {KEY: encode(self._first)}
        try:
            return {KEY: ray.get(self._device.next_message.remote(self._key))}
        except RayActorError as error:
            return {KEY: encode(Lost(f"the device's process died: {_outline(error)}"))}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Let the device drop the trial, whether it has ended or not."""
        if self._device is not None:
            with contextlib.suppress(RayActorError):  # a dead device holds nothing
                ray.get(self._device.remove.remote(self._key))
            self._gone.set()  # not before: it is what ends a device that does not answer
            self._device = None


def _trials_on(address: DeviceAddress) -> int:
    return len(ray.get(open_device(address).trials.remote(), timeout=ADMISSION_SECONDS))


def _touch(device: Any, placed: Placed, key: str, gone: threading.Event, silent_seconds: float) -> None:
    """Tell the device that this process lives: when it dies with its driver, nobody else could tell.

    A device that does not answer for so long is killed, and its trials are lost workers': it may be stopped, or hang.
    """
    with contextlib.suppress(RayActorError):
        while not gone.wait(TOUCH_SECONDS):
            try:
                ray.get(device.touch.remote(key), timeout=silent_seconds)
            except GetTimeoutError:
                fields = {**fields_of(key), "device": placed.device, "seconds": silent_seconds}
                log.warning("device killed: it does not answer", extra=fields)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(placed.pid, signal.SIGKILL)  # on this node; Ray's own kill would wait for its answer
                return


def _outline(error: RayActorError) -> str:
    """What Ray knows of the cause, without its advice."""
    return " ".join(str(error).partition("Some common causes")[0].split())[-300:]


def _slot(config: dict[str, Any]) -> Slot:
    return Slot(
        config=config["config"],
        metric=config["metric"],
        adapter=config["adapter"],
        progress=config["progress"],
        inherits=config["inherits"],
        hands_over_at=config["hands_over_at"],
        hands_over_to=config["hands_over_to"],
        attempt=config["attempt"],
        reported=config["reported"],
        capacity=config["capacity"],
        cache=config["cache"],
        prove=config["prove"],
        stalled_seconds=config["stalled_seconds"],
        alone_until=config["alone_until"],
    )
