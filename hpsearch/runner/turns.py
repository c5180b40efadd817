"""More studies than a runner drives at once: who has had a slice gives its place to one that waits in the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpsearch.lifecycle import Orders
from hpsearch.raytune.holding import Holding
from hpsearch.storage import place_in_line


class Turn:
    """One study's place at its runner."""

    def __init__(self) -> None:
        self.gives_way = False
        """Whether it was asked to stop in order and to queue again."""
        self._holding: Holding | None = None

    def begin(self, holding: Holding, orders: Callable[[], Orders]) -> None:
        """The study is driven from now on.

        Args:
            holding: What it holds of the devices.
            orders: Its orders, as of the last heartbeat.
        """
        self._orders, self._held_before = orders, orders().driven_seconds
        self._holding = holding

    @property
    def seconds(self) -> float:
        """How long it has held devices since it has this place."""
        return 0.0 if self._holding is None else self._orders().driven_seconds - self._held_before

    @property
    def is_over(self) -> bool:
        """Whether it has had its slice, so that others may have the place."""
        return self._holding is not None and self._holding.has_had(self.seconds)

    def goes_before(self, place: float, now: float) -> bool:
        """Whether it would be claimed again before whoever waits at a place of the line.

        Args:
            place: See `place_in_line`.
            now: The time by the clock of the database.
        """
        return bool(place_in_line(now, self._orders().spec.priority) <= place)


def rotate(turns: Sequence[Turn], line: Sequence[float], now: float) -> None:
    """Ask for as many places as studies wait that would be claimed next; from those first that held devices longest.

    Args:
        turns: Of all studies that the runner drives.
        line: The places of those that wait, the first one first.
        now: The time by the clock of the database.
    """
    asked = sum(turn.gives_way for turn in turns)
    open_ones = sorted((turn for turn in turns if turn.is_over and not turn.gives_way), key=lambda turn: -turn.seconds)
    for place in line[asked:]:
        giver = next((turn for turn in open_ones if not turn.goes_before(place, now)), None)
        if giver is None:
            return
        open_ones.remove(giver)
        giver.gives_way = True
