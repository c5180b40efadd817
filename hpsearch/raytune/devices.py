"""The device actors of the cluster, started where one is missing and told what concerns all of them; and its nodes."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpsearch.errors import WorkerLost
from hpsearch.raytune.address import NAME_PREFIX, DeviceAddress
from hpsearch.raytune.device import Device

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks at the nodes: nobody else would say that the driver's own died, or that one is about to go."""

LEAVING_SECONDS = 20.0
"""Devices of a node that is about to go have so long to keep their trials; Ray gives it 30 s."""

CONNECT_SECONDS = 1.0
"""A node that is asked whether it lives takes a connection within so long."""

DYING_SECONDS = 0.5
"""Then it is asked again: of a node that dies, what was on it may be missed sooner."""


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


def release(whose: str, devices: Iterable[str]) -> None:
    """Ask devices, named as their actors are, to let go of a study's trials, or of one (`study/number`). Don't wait."""
    for device in _living(devices):
        device.release.remote(whose)


def finish(trial: str, devices: Iterable[str]) -> None:
    """Ask devices to end a trial (`study/number`) with its best report, without waiting for it."""
    for device in _living(devices):
        device.finish.remote(trial)


def count_devices() -> int:
    """GPUs of the cluster, or its cores when it has no GPU."""
    cluster = ray.cluster_resources()
    return int(cluster.get("GPU", 0)) or int(cluster.get("CPU", 0))


def end_devices_that_go() -> None:
    """Tell the devices of nodes that were told to end (SIGTERM, a preemption) to let go of all trials and end.

    Ray gives such a node some time, and kills what is left: the steps since the last snapshots would be lost.
    """
    for node in leaving_nodes():
        names = ray.util.list_named_actors(all_namespaces=False)
        for device in _living(name for name in names if name.startswith(NAME_PREFIX + node)):
            device.end.remote(LEAVING_SECONDS)


def leaving_nodes() -> frozenset[str]:
    """Nodes that are alive, and get no work any more because they are about to go."""
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())  # there is no public way
    except Exception:  # without an answer nothing is known; without a head this process ends itself
        log.warning("leaving nodes not looked for: the cluster does not answer", exc_info=True)
        return frozenset()


def _living(devices: Iterable[str]) -> Iterator[Any]:
    for name in devices:
        with contextlib.suppress(ValueError):  # it ended just now
            yield ray.get_actor(name)


def node_stays(node_id: str) -> bool:
    """Whether it lives and is not about to go. It is asked itself: the cluster notices a death only after a while."""
    alive = _alive()
    if alive is None:
        return True
    if node_id not in alive or node_id in leaving_nodes():
        return False
    address = alive[node_id]["NodeManagerAddress"], alive[node_id]["NodeManagerPort"]
    with contextlib.suppress(OSError):
        for pause in (0.0, DYING_SECONDS):
            time.sleep(pause)
            socket.create_connection(address, CONNECT_SECONDS).close()
        return True
    return False


def _alive() -> dict[str, dict[str, Any]] | None:
    """The nodes that live, by their ids, as the cluster says; None when it says nothing."""
    try:
        return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    except Exception:  # without an answer nothing is known; without a head this process ends itself
        log.warning("nodes not looked at: the cluster does not answer", exc_info=True)
        return None


def own_node_died() -> WorkerLost | None:
    """When the node died on which this process drives, whose calls are never answered then; None while it lives."""
    alive = _alive()
    if alive is None or ray.get_runtime_context().get_node_id() in alive:
        return None
    return WorkerLost("the runner's own Ray node died")
