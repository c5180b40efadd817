"""The thread of a device that trains: it alone touches models and the cohort."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch.errors import DiskFull, HubUnavailable, OutOfMemory, WorkerLost
from hpsearch.raytune.messages import (
    Failed,
    Finished,
    Lost,
    Message,
    Released,
    Replayed,
    Reported,
    Slot,
    failed,
    fields_of,
)
from hpsearch.raytune.models import Models, NoRoom
from hpsearch.raytune.roster import Roster
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.watchdog import lengthy, mark

if TYPE_CHECKING:
    from hpsearch.finetune import cohort
    from hpsearch.finetune.attempts import Attempt
    from hpsearch.finetune.cohort import Event
    from hpsearch.finetune.member import Member
    from hpsearch.finetune.prepare import Prepared

log = logging.getLogger(__name__)

IDLE_SECONDS = 15 * 60
"""A device without trials for so long ends its process and gives the memory back."""

SHARED_SECONDS = 3
"""A folder that the runner made may be seen so much later on another node."""


class Training:
    """Trains whoever is on the roster."""

    def __init__(self, roster: Roster, is_gpu: bool, share: float) -> None:
        """Nothing is imported or loaded before `run`.

        Args:
            roster: The trials on the device.
            is_gpu: Whether they train on `cuda:0`.
            share: Part of the node's free memory that is this device's.
        """
        self._roster, self._is_gpu, self._share = roster, is_gpu, share
        self._models = Models(is_gpu, share)
        self._contracts: dict[str, str] = {}
        self._in_use: dict[str, Prepared] = {}
        self._attempts: dict[str, Attempt] = {}
        self._delayed: list[str] = []
        self._joining: list[str] = []
        self._short: set[str] = set()

    def run(self) -> None:
        """Until there was nothing to do for a long time."""
        with lengthy("starting"):
            import torch

            from hpsearch.finetune.cohort import Cohort

        if not self._is_gpu:
            torch.set_num_threads(1)
        self._cohort = Cohort()
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_SECONDS:
            mark()
            self._roster.wait_for_work(self._cohort, seconds=1)
            if self._look_and_train():
                idle_since = time.monotonic()

    def _look_and_train(self) -> bool:
        """Do what is asked for, then one tick; whether there was anything to do."""
        for key in self._roster.silent():
            log.warning("trial dropped: its process is gone", extra=fields_of(key))
            self._let_go(key)
            self._roster.remove(key)
        work = self._roster.take()
        slots = work.slots
        for key in [key for key in self._cohort if key not in slots]:
            self._cohort.remove(key)
        self._contracts = {key: contract for key, contract in self._contracts.items() if key in slots}
        self._in_use = {key: prepared for key, prepared in self._in_use.items() if key in slots}
        self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in slots}
        self._models.make_room(self._used())
        for errand in work.errands:
            errand()
        delayed, self._delayed = self._delayed, []
        self._joining = [*delayed, *work.joining]
        for key in self._joining:
            if key in slots and key not in work.leaving:
                self._join(key, slots[key])
        for key in work.leaving.keys() & slots.keys():
            self._let_go(key)
            self._send(key, Released(work.leaving[key]))
        for key in work.finishing & slots.keys():
            self._finish(key, slots[key])
        happened = self._cohort.tick(work.waiting | work.leaving.keys())
        for key, event in sorted(happened, key=lambda each: _takes_long(each[1])):
            self._send(key, self._message(key, slots[key], event))
        return bool(slots or work.errands)

    def get_ready(self, config: FinetuneConfig, cache: str | None) -> None:
        """Load what trials like this one will need; nothing when any is trained, for it would wait."""
        if not len(self._cohort):
            self._prepare(config, cache)

    def measure(self, config: FinetuneConfig, cache: str | None, most: int) -> tuple[int, str]:
        """How many trials like this one should share the device, at most so many, and why.

        Raises:
            InvalidInput: The model or the data can't be used.
        """
        from hpsearch.finetune.company import measure

        measured = measure(self._prepare(config, cache), config, most)
        return measured.members, measured.reason

    def _join(self, key: str, slot: Slot) -> None:
        from hpsearch.finetune import memory
        from hpsearch.finetune.attempts import Attempt
        from hpsearch.finetune.evaluate import Abandoned
        from hpsearch.finetune.member import Member
        from hpsearch.finetune.step import is_out_of_memory

        if not self._roster.wants(key):  # any more: it is answered at the next look
            return
        try:
            _check_shared(Path(slot.adapter).parent)
            config = FinetuneConfig.model_validate_json(slot.config)
            prepared = self._prepare(config, slot.cache, self._is_waited_for)
            self._contracts[key] = prepared.evaluation_contract
            self._in_use[key] = prepared
            others = [self._cohort[other] for other in self._cohort]
            if others and not memory.fits(config, prepared, self._share, others):
                self._delayed.append(key)  # until one of the others leaves
                return
            member = Member(config, prepared, slot.metric)
            memory.limit_tokens(member, self._share, others)
            if slot.alone_until is not None:
                log.info("trial trains alone", extra={**fields_of(key), "reason": "a process died under it"})
            self._attempts[key] = attempt = Attempt(Path(slot.progress), slot.attempt)
            with lengthy("reading a snapshot"):
                continues = attempt.go_on(member, slot.reported, None if slot.inherits is None else Path(slot.inherits))
            if continues:
                if _hands_over(slot, member):  # whoever reported there may have died before it did
                    self._keep(key, slot, member)
                log.info("trial continued", extra={**fields_of(key), "step": member.steps})
                self._tell_again(key, slot, member)
            if not member.is_done:
                self._cohort.admit(key, member, prove=slot.prove)
        except NoRoom as error:
            if key not in self._short:
                log.warning("trial waits for memory", extra={**fields_of(key), "text": str(error)})
            self._short.add(key)
            self._delayed.append(key)
        except Abandoned:
            log.info("baseline abandoned: nobody waits for it", extra=fields_of(key))
        except HubUnavailable as error:  # another worker may have the model, or the hub answers again by then
            log.warning("trial not started", exc_info=True, extra=fields_of(key))
            self._send(key, Lost(str(error), died=False))
        except Exception as error:  # whatever goes wrong with one trial is that trial's failure, never the device's
            log.warning("trial not started", exc_info=True, extra=fields_of(key))
            self._send(key, failed(OutOfMemory(str(error)) if is_out_of_memory(error) else error))

    def _is_waited_for(self) -> bool:
        """Whether any of the trials that are about to begin is still wanted here."""
        return any(self._roster.wants(key) for key in self._joining)

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
                with lengthy("writing a snapshot"):
                    self._attempts[key].keep(member)
            except Exception:  # the last snapshot is whole: what was trained since is trained again
                log.warning("snapshot not written", exc_info=True, extra=fields_of(key))

    def _finish(self, key: str, slot: Slot) -> None:
        """The trial's end, where it stands."""
        from hpsearch.finetune.cohort import Finished as Done

        if key in self._cohort:
            member = self._cohort.remove(key)
            assert member.best is not None  # it is asked of trials that have reported
            self._send(key, self._message(key, slot, Done(member.best, member)))

    def _prepare(
        self, config: FinetuneConfig, cache: str | None, goes_on: Callable[[], bool] = lambda: True
    ) -> Prepared:
        return self._models.get(config, None if cache is None else Path(cache), self._used(), goes_on)

    def _used(self) -> list[Prepared]:
        """What trials of this device train on."""
        return list(self._in_use.values())

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
                self._keep(key, slot, self._cohort[key])
            except DiskFull as error:
                self._cohort.remove(key)
                return failed(error)
        warnings = self._in_use[key].warnings if event.exposure == 0 else ()
        return Reported(event, self._contracts[key], warnings)

    def _keep(self, key: str, slot: Slot, member: Member) -> None:
        """Where the member stands after its last report: for itself, and for others where they may begin there."""
        try:
            with lengthy("writing a snapshot"):
                if _hands_over(slot, member):
                    folder = Path(slot.hands_over_to) / str(member.reports[-1].exposure)
                    self._attempts[key].hand_over(member, folder)
                else:
                    self._attempts[key].keep_if_due(member)
        except DiskFull:
            raise
        except OSError:  # training needs no snapshot
            log.warning("snapshot not written", exc_info=True, extra=fields_of(key))

    def _end_of(self, key: str, slot: Slot, event: cohort.Finished) -> Message:
        """Its best weights are on the disk before anybody knows of it."""
        from hpsearch.finetune.sealed import score_sealed

        try:
            with lengthy("writing the best weights"):
                self._attempts[key].keep_best(event.member, Path(slot.adapter))
        except DiskFull as error:
            return failed(error)
        except Exception as error:  # the disk's fault: the trial goes on from its snapshot, and ends once more
            log.warning("best weights not written", exc_info=True, extra=fields_of(key))
            return Lost(f"the best weights could not be written: {error}"[:500], died=False)
        return Finished(event.best, self._contracts[key], slot.adapter, score_sealed(event.member))

    def _send(self, key: str, message: Message) -> None:
        if isinstance(message, Failed):
            if self._is_gpu and not _gpu_works():
                # After an illegal access every call fails in this process, whoever's trial it is; not in the next one.
                log.error("device ended: its GPU refuses every call", extra={**fields_of(key), "text": message.text})
                os._exit(1)  # the trials on it see a lost worker, and go on from their snapshots
            log.warning("trial failed", extra={**fields_of(key), "failure": message.failure, "text": message.text})
        self._roster.send(key, message)


def _hands_over(slot: Slot, member: Member) -> bool:
    """Whether the member's last report is one from which other trials may begin."""
    return slot.hands_over_at is not None and member.reports[-1].exposure >= slot.hands_over_at


def _takes_long(event: Event) -> bool:
    """Ends, where weights are written and test examples read: what the others wait for is told before."""
    from hpsearch.finetune.cohort import Finished as Done

    return isinstance(event, Done)


def _check_shared(artifacts: Path) -> None:
    """Raise WorkerLost where the study's folder is missing: its weights would be written to a disk nobody looks at."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not artifacts.is_dir():
        if time.monotonic() > deadline:
            raise WorkerLost(f"{socket.gethostname()} has no {artifacts}: HPSEARCH_HOME must be shared by all nodes")
        time.sleep(0.1)


def _gpu_works() -> bool:
    import torch

    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not initialized:  # it never worked here, and would not in the next process either
        return True
    try:
        torch.cuda.synchronize()
    except Exception:  # torch's own kinds of errors differ by version
        return False
    return True
