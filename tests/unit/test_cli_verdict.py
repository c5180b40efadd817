"""The verdict on the command line: what is followed, what is printed, which weights are taken home."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from rich.console import Console

from hpsearch.cli.export import chosen
from hpsearch.cli.tables import verdict_lines
from hpsearch.client import Client
from hpsearch.errors import AdapterNotFound, InvalidInput
from hpsearch.results import rank
from hpsearch.results.verdict import Candidate, verdict
from hpsearch.spec.objective import ObjectiveSpec
from tests.builders import a_trial
from tests.unit.test_progress import a_progress, told

SEEDS = (101, 202, 303)


def a_ranking(*values: float, again: dict[int, tuple[float, ...]] | None = None) -> dict[str, Any]:
    """Of trials 0, the defaults, and 1, 2, ...; `again` has their losses under fresh seeds."""
    trials = [a_trial(number, value) for number, value in enumerate(values)]
    ranked = rank("tickets", "finished", ObjectiveSpec(), None, trials)
    if again is not None:
        candidates = [
            Candidate(number, number == 0, None, dict(zip(SEEDS, losses, strict=True)))
            for number, losses in again.items()
        ]
        ranked = ranked.judged(verdict(candidates, "minimize", None).as_json())
    return ranked.as_json()


LUCKY = {0: (0.230, 0.228, 0.229), 1: (0.231, 0.228, 0.230), 2: (0.201, 0.199, 0.200)}


def printed(ranking: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in verdict_lines(ranking):
        console.print(part)
    return cast(io.StringIO, console.file).getvalue()


def test_without_a_verdict_the_way_to_one_is_told() -> None:
    assert "`hpsearch confirm tickets` finds out" in printed(a_ranking(0.3, 0.2))
    assert printed(a_ranking(0.3)) == ""
    assert printed({**a_ranking(0.3, 0.2), "state": "running"}) == ""


def test_a_verdict_is_a_table_and_a_sentence() -> None:
    ranking = a_ranking(0.230, 0.190, 0.195, again=LUCKY)
    lines = printed(ranking).splitlines()
    assert lines[1] == "verdict"
    rows = [line.split() for line in lines[3:6]]
    assert [row[0] for row in rows] == ["2", "0", "1"] or [row[0] for row in rows] == ["2", "1", "0"]
    assert "(defaults)" in printed(ranking)
    assert lines[6].startswith("Use trial 2: over 3 fresh seeds it is better than the defaults by 0.0")


def test_a_verdict_of_an_earlier_ranking_is_told_as_such() -> None:
    ranking = a_ranking(0.230, 0.190, 0.195, 0.100, again=LUCKY)
    assert ranking["verdict"]["outdated"]
    assert "verdict (of an earlier ranking)" in printed(ranking)


class Service:
    """All that choosing a trial asks of a client."""

    def __init__(self, ranking: dict[str, Any]) -> None:
        self._ranking = ranking

    def ranking(self, name: str) -> dict[str, Any]:
        assert name == "tickets"
        return self._ranking


def the_best(ranking: dict[str, Any], trial: str = "best") -> int:
    return chosen(cast(Client, Service(ranking)), "tickets", trial)


def test_the_weights_taken_home_are_those_that_the_verdict_recommends() -> None:
    values = (0.230, 0.190, 0.195)
    assert the_best(a_ranking(*values)) == 1
    assert the_best(a_ranking(*values, again=LUCKY)) == 2
    assert the_best(a_ranking(*values, again=LUCKY), "0") == 0
    assert the_best(a_ranking(*values, 0.1, again=LUCKY)) == 3  # the verdict is of an earlier ranking
    with pytest.raises(InvalidInput, match="'worst'"):
        the_best(a_ranking(*values), "worst")
    with pytest.raises(AdapterNotFound, match="no completed trial"):
        the_best(a_ranking())


def test_defaults_that_were_pruned_and_are_recommended_have_no_weights_yet() -> None:
    ranking = a_ranking(0.230, 0.190, again={0: (0.20, 0.21, 0.20), 1: (0.25, 0.27, 0.25)})
    ranking["ranking"] = [entry for entry in ranking["ranking"] if entry["number"] != 0]
    with pytest.raises(AdapterNotFound, match="`hpsearch continue tickets 0`"):
        the_best(ranking)


def test_who_follows_a_study_hears_of_its_confirmation() -> None:
    progress = a_progress()
    assert told(
        progress,
        {"kind": "study.confirming", "trials": [4, 0], "seeds": 3, "trainings": 6},
        {"kind": "confirmation.started", "number": 4, "seed": 101},
        {"kind": "confirmation.completed", "number": 4, "seed": 101, "value": 0.21},
        {"kind": "confirmation.failed", "number": 0, "seed": 101, "failure": "diverged", "text": "not finite"},
        {"kind": "study.verdict", "outcome": "better", "recommended": 4, "text": "Use trial 4."},
    ) == [
        "trials 4, 0 are trained again under 3 fresh seeds: 6 trainings",
        "trial 4 is trained again under seed 101",
        "trial 4 again under seed 101: 0.2100",
        "trial 0 under seed 101 failed (diverged): not finite",
        "verdict: Use trial 4.",
    ]
    progress.take({"kind": "confirmation.completed", "number": 0, "seed": 101, "value": 0.25})  # it was tried again
    assert progress.trials == {}
    console = Console(file=io.StringIO(), width=120)
    console.print(progress.picture())
    assert "2/6 trained again" in cast(io.StringIO, console.file).getvalue()
