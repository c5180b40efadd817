"""What the studies that are driven now have use for and hold, as their runners say with every heartbeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpsearch.lifecycle import StudyState
from hpsearch.shares import Claim, Need
from hpsearch.storage.database import Database
from hpsearch.storage.tables import studies

NOTHING: dict[str, Any] = {
    "cluster": None,
    "wanted": None,
    "held": 0,
    "per_device": None,
    "share": None,
    "turned_at": None,
}
"""The columns of a study that nobody drives."""


@dataclass(frozen=True)
class Standing:
    """What a runner says of a study that it drives."""

    cluster: str
    """Studies share devices with those of the same Ray cluster."""
    need: Need
    share: int
    """Trials that the study may hold, as far as its runner knows."""

    def columns(self, now: float) -> dict[str, Any]:
        """As they are stored. A turn, or a wait for one, begins when the study begins or ends to hold something."""
        turned = sa.or_(studies.c.turned_at.is_(None), (studies.c.held > 0) != (self.need.held > 0))
        return {
            "cluster": self.cluster,
            "wanted": self.need.wanted,
            "held": self.need.held,
            "per_device": self.need.per_device,
            "share": self.share,
            "turned_at": sa.case((turned, now), else_=studies.c.turned_at),
        }


def claims(database: Database, cluster: str) -> list[Claim]:
    """Those of all studies on this cluster whose runners live, the oldest first."""
    row = studies.c
    query = sa.select(
        row.name, row.created_by, row.priority, row.wanted, row.held, row.per_device, row.turned_at
    ).order_by(row.created_at, row.name)
    with database.read() as connection:
        now = database.now(connection)
        alive = sa.and_(row.state == StudyState.RUNNING, row.lease_expires_at >= now, row.cluster == cluster)
        return [
            Claim(name, owner, priority, Need(wanted, held, per_device), max(0.0, now - turned_at))
            for name, owner, priority, wanted, held, per_device, turned_at in connection.execute(query.where(alive))
        ]
