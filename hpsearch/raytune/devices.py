"""The device actors of the cluster, started where one is missing and told what concerns all of them; and its nodes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpsearch.errors import WorkerLost
from hpsearch.raytune.address import NAME_PREFIX, DeviceAddress
from hpsearch.raytune.device import Device

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks at the node on which the driver runs: nobody else would say that it died."""


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


def release_everywhere(whose: str) -> None:
    """Ask every device of the cluster to let go of a study's trials, or of one (`study/number`), without waiting."""
    for device in _all_devices():
        device.release.remote(whose)


def finish_everywhere(trial: str) -> None:
    """Ask whichever device trains a trial (`study/number`) to end it with its best report, without waiting for it."""
    for device in _all_devices():
        device.finish.remote(trial)


def count_devices() -> int:
    """GPUs of the cluster, or its cores when it has no GPU."""
    cluster = ray.cluster_resources()
    return int(cluster.get("GPU", 0)) or int(cluster.get("CPU", 0))


def _all_devices() -> Iterator[Any]:
    for actor in ray.util.list_named_actors(all_namespaces=False):
        if actor.startswith(NAME_PREFIX):
            with contextlib.suppress(ValueError):  # it ended just now
                yield ray.get_actor(actor)


def node_lives(node_id: str) -> bool:
    """Whether the cluster says so."""
    try:
        return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
    except Exception:  # without an answer nothing is known; without a head this process ends itself
        log.warning("node not looked at: the cluster does not answer", exc_info=True)
        return True


def own_node_died() -> WorkerLost | None:
    """When the node died on which this process drives, whose calls are never answered then; None while it lives."""
    if node_lives(ray.get_runtime_context().get_node_id()):
        return None
    return WorkerLost("the runner's own Ray node died")
