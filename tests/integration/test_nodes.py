"""A second Ray node goes: its trials are kept or go on from their snapshots, and nobody blames them for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.utils import reset_ray_address

from hpsearch.raytune.devices import node_stays
from hpsearch.raytune.stopping import Stop
from hpsearch.results import TrialState
from tests.integration.test_raytune import Study, data, spec_of, storage
from tests.nodes import Node, NodeFault

__all__ = ["data", "storage"]  # fixtures

PATIENCE = 120
REUSED_SECONDS = 3
"""By then Tune has given the next trial to the actor that is still there."""


@pytest.fixture
def join(ray_address: str, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    """Has a second one of one core join the session's cluster."""
    joined: list[Node] = []

    def start() -> Node:
        node = Node.start(tmp_path / "node.log", f"--address={ray_address}")
        joined.append(node)
        _until(lambda: [each for each in ray.nodes() if each["NodeID"] == node.id and each["Alive"]])
        return node

    yield start
    for node in joined:
        node.kill()
    reset_ray_address()  # `ray start` leaves it: whoever asks for the Ray of this machine would wait for this one


def test_a_killed_node_is_known_to_be_dead_before_the_cluster_notices(join: Callable[[], Node]) -> None:
    node = join()
    assert node_stays(node.id)
    fault = NodeFault(node, signal.SIGKILL)
    fault.inject()
    fault.seconds_until_gone()
    assert not node_stays(node.id)


def test_a_node_that_joins_is_used_and_lets_go_of_its_trials_in_order_when_it_is_told_to_end(
    join: Callable[[], Node], data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    """By a study that trained before it came. At its end at once, not when its time is up; and what Tune then gives to
    the actor that was there goes elsewhere."""
    cores = int(ray.cluster_resources()["CPU"]) + 1
    space = {"epochs": 1000, "batch_size": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}, "dropout": 0.2}
    spec = spec_of(
        data,
        "leaving",
        search_space=space,
        objective={"reports_per_epoch": 4},
        budget={"trials": cores},
        parallelism={"trials_per_device": 1, "max_concurrent_trials": 64},
    )
    study = Study(spec, storage, tmp_path)
    stop = threading.Event()
    driving = threading.Thread(target=study.drive, args=(lambda: Stop.IN_ORDER if stop.is_set() else None,))
    driving.start()
    try:
        _until(lambda: [t for t in study.search.trials() if t.reports])
        node = join()
        there = _until(lambda: [t for t in study.search.trials() if _is_on(t, node) and len(t.reports) > 2])
        node.process.terminate()
        interrupted = _until(lambda: [each for kind, each in study.events if kind == "trial.interrupted"])
        time.sleep(REUSED_SECONDS)
    finally:
        stop.set()
        driving.join(PATIENCE)
    assert (interrupted[0]["number"], interrupted[0]["text"]) == (there[0].number, "the device let go of it")
    trial = study.search.trials()[there[0].number]
    assert (trial.state, trial.lost, trial.orphaned) == (TrialState.WAITING, 0, 0)
    assert any((tmp_path / "artifacts" / "progress" / str(trial.number)).glob("*/*")), "kept when it was let go of"


def _is_on(trial: Any, node: Node) -> bool:
    return trial.device is not None and trial.device.split("/")[1] == node.id[:8]


def _until(what: Any) -> list[Any]:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)
    return list(found)
