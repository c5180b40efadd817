"""What runners say of their studies, in SQL: what devices are divided by."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hpsearch.lifecycle import StudyState
from hpsearch.shares import Claim, Need
from hpsearch.storage import Acting, Acts, Database, Lease, Standing, Studies, claims
from hpsearch.storage.tables import studies as table
from tests.builders import a_spec

HOUR = 3600.0
LONG = 60.0
SOME = Need(3, 1)


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    opened = Database(migrated_url)
    yield opened
    opened.close()


def driven(database: Database, name: str, by: str = "alice", cluster: str = "here", need: Need = SOME) -> Lease:
    """A study that a runner has claimed and speaks for."""
    studies = Studies(database)
    studies.create(a_spec(name=name), by=by)
    _, lease = studies.claim("runner", LONG) or pytest.fail("nothing claimed")
    studies.renew(lease, LONG, Standing(cluster, need, 2))
    time.sleep(0.01)
    return lease


def an_hour_passes(database: Database) -> None:
    """And a bit, for clocks are read to a millisecond; leases stay."""
    with database.write() as connection:
        for column in (table.c.driven_at, table.c.turned_at):
            connection.execute(table.update().values({column: column - HOUR - 1}))


def without_times(found: list[Claim]) -> list[tuple[str, str, int, Need]]:
    return [(claim.study, claim.owner, claim.priority, claim.need) for claim in found]


def test_the_studies_of_a_cluster_are_found_the_oldest_first(database: Database) -> None:
    driven(database, "one")
    driven(database, "two", "bob", need=Need(8, 0, 4))
    driven(database, "far", cluster="elsewhere")
    Studies(database).create(a_spec(name="queued"))
    assert without_times(claims(database, "here")) == [
        ("one", "alice", 0, Need(3, 1)),
        ("two", "bob", 0, Need(8, 0, 4)),
    ]
    assert [claim.study for claim in claims(database, "elsewhere")] == ["far"]
    assert (Studies(database).get("one").held, Studies(database).get("one").share) == (1, 2)


def test_a_new_priority_counts_at_once(database: Database) -> None:
    driven(database, "one")
    Acts(database).change("one", {"priority": 7}, Acting("alice"))
    assert [claim.priority for claim in claims(database, "here")] == [7]


def test_a_study_whose_runner_is_gone_holds_nothing(database: Database) -> None:
    lease = driven(database, "one")
    Studies(database).renew(lease, 0.01)
    time.sleep(0.05)
    assert claims(database, "here") == []
    Studies(database).claim("another", LONG)
    assert claims(database, "here") == []
    assert (Studies(database).get("one").held, Studies(database).get("one").share) == (0, None)


def test_a_study_that_is_left_holds_nothing(database: Database) -> None:
    lease = driven(database, "one")
    Studies(database).end(lease, StudyState.QUEUED, "its runner was stopped")
    assert (Studies(database).get("one").held, claims(database, "here")) == (0, [])


def test_a_turn_begins_when_something_is_held_and_a_wait_when_nothing_is(database: Database) -> None:
    studies = Studies(database)
    lease = driven(database, "one", need=Need(3, 0))
    for held in (1, 0):
        an_hour_passes(database)
        (before,) = claims(database, "here")
        assert HOUR <= before.since < 1.5 * HOUR
        studies.renew(lease, LONG, Standing("here", Need(3, held), 2))
        (after,) = claims(database, "here")
        assert 0 <= after.since < 0.5 * HOUR
    an_hour_passes(database)
    studies.renew(lease, LONG, Standing("here", Need(5, 0), 2))
    assert claims(database, "here")[0].since >= HOUR


def test_time_counts_while_devices_are_held_and_not_while_a_study_waits_for_its_turn(database: Database) -> None:
    studies = Studies(database)
    lease = driven(database, "one", need=Need(3, 0))
    an_hour_passes(database)
    assert studies.renew(lease, LONG, Standing("here", Need(3, 1), 2)).driven_seconds == 0
    an_hour_passes(database)
    counted = studies.renew(lease, LONG, Standing("here", Need(3, 0), 2)).driven_seconds
    assert HOUR <= counted < 1.5 * HOUR
    an_hour_passes(database)
    studies.end(lease, StudyState.QUEUED, "its runner was stopped")
    assert studies.get("one").driven_seconds == pytest.approx(counted)
