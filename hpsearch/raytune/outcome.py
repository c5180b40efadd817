"""What a trial's messages mean: for Search, for the health of its device, and for its files."""

from __future__ import annotations

from collections.abc import Callable

from hpsearch.errors import DiskFull
from hpsearch.raytune.devices import finish, node_stays
from hpsearch.raytune.health import Health
from hpsearch.raytune.holding import Holding
from hpsearch.raytune.messages import Failed, Finished, Lost, Message, Placed, Released, Replayed, Reported
from hpsearch.raytune.place import Place
from hpsearch.results import Failure
from hpsearch.search import Decision, Loss, Search
from hpsearch.spec.finetune import FinetuneConfig


class Outcome:
    """Of the trials of one study that were handed out.

    Args:
        search: The study's; it is told how each trial gets on and how it ends.
        place: Where their files are.
        health: Of the devices.
        holding: What the study holds of them.
        is_dropping: Whether all trials are dropped where they are; what they are then is not decided here.
    """

    def __init__(
        self, search: Search, place: Place, health: Health, holding: Holding, *, is_dropping: Callable[[], bool]
    ) -> None:
        self._search, self._place, self._health, self._holding = search, place, health, holding
        self._is_dropping = is_dropping
        self._configs: dict[int, str] = {}
        self._alone_until: dict[int, int] = {}
        self._pruned: set[int] = set()
        self._paused: set[int] = set()

    def begun(self, number: int, config: FinetuneConfig, alone_until: int | None) -> None:
        """A trial was handed out; see `Asked.alone_until`."""
        self._configs[number] = config.hyperparameters.model_dump_json()
        self._alone_until.pop(number, None)
        if alone_until is not None:
            self._alone_until[number] = alone_until

    @property
    def alone(self) -> frozenset[int]:
        """The trials that have, or wait to have, a device for themselves."""
        return frozenset(number for number in self._alone_until if self._search.is_running(number))

    def hear(self, number: int, message: Message) -> bool:
        """Make of a message what it means; the answer is whether the trial goes on.

        Raises:
            DiskFull: There is no room for its files. It waits.
        """
        if self._goes_on(number, message):
            return True
        self._forget(number)
        return False

    def stopped(self, number: int, lost: bool) -> None:
        """A trial that runs was stopped between two messages; `lost` when its process died."""
        if number in self._pruned:
            self._search.prune(number)
        elif number in self._paused:
            self._paused.discard(number)
            self._search.pause(number)
        elif lost:
            self._search.interrupt(number, *self._how_died(number, "the process of the trial died"))
        self._health.left(number)
        self._forget(number)

    def _goes_on(self, number: int, message: Message) -> bool:
        if isinstance(message, Reported):
            return self._reported(number, message)
        if isinstance(message, Placed):
            self._health.placed(number, message)
            self._search.trained_on(number, message.device)
            return True
        if isinstance(message, Replayed):
            self._search.replayed(number, message.steps, message.company, message.deviation)
            return True
        self._left(number, message)
        return False

    def _reported(self, number: int, message: Reported) -> bool:
        self._holding.trains(number)
        self._health.reported(number, message.report.exposure)
        decision = self._search.report(number, message.report, message.contract, message.warnings)
        if message.report.exposure > self._alone_until.get(number, message.report.exposure):
            del self._alone_until[number]
        if decision is Decision.FINISH:  # what the device says then is its last message
            finish(f"{self._search.spec.name}/{number}", self._health.actors_of([number]))
        elif decision is Decision.REUSE:
            self._search.reuse(number, self._place.artifacts / str(number))
        elif decision is Decision.PRUNE:
            self._pruned.add(number)
        elif decision is Decision.PAUSE:
            self._paused.add(number)
        return decision in (Decision.GO_ON, Decision.FINISH)

    def _left(self, number: int, message: Message) -> None:
        """The device trains it no more."""
        if isinstance(message, Failed | Lost):
            self._health.failed(number, self._configs[number], message)
        died = self._how_its_device_died(number, message.text) if isinstance(message, Lost) and message.died else None
        self._health.left(number)
        if isinstance(message, Finished):
            self._search.complete(number, message.best, message.contract, message.adapter, message.sealed)
        elif isinstance(message, Released):
            gives = self._holding.is_giving(number)
            self._search.interrupt(number, "another study has its place" if gives else message.text, Loss.NONE)
        elif isinstance(message, Failed):
            self._failed(number, message)
        elif isinstance(message, Lost):
            self._search.interrupt(number, *(died or (message.text, Loss.WORKER)))
        elif not self._is_dropping():
            self._search.interrupt(number, "the device dropped the trial", Loss.OUTSIDE)

    def _failed(self, number: int, message: Failed) -> None:
        if message.failure is Failure.DISK_FULL:  # nobody's fault: the study pauses, and the trial goes on then
            self._search.interrupt(number, message.text, Loss.NONE)
            self._place.tidy(self._search.idle_snapshots(parked=0))  # those of pruned trials may be what is in the way
            raise DiskFull(message.text)
        self._search.fail(number, message.failure, message.text)

    def _forget(self, number: int) -> None:
        """When a trial has ended or waits, its snapshots are of no use, or those of others."""
        if not self._search.is_running(number):
            self._place.tidy(self._search.idle_snapshots(self._place.parked), self._search.needed_from())

    def _how_died(self, number: int, text: str) -> tuple[str, Loss]:
        node = self._health.node_of(number)
        if node is not None and not node_stays(node):
            return "the node of the trial died", Loss.OUTSIDE
        return text, Loss.WORKER

    def _how_its_device_died(self, number: int, text: str) -> tuple[str, Loss]:
        shares = self._holding.per_device > 1 and self._health.node_of(number) is not None
        text, loss = self._how_died(number, text)
        return text, Loss.DEVICE if shares and loss is Loss.WORKER else loss
