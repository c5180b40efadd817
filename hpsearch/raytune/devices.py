"""The device actors of the cluster: started where one is missing, and told what concerns all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpsearch.raytune.address import NAME_PREFIX, DeviceAddress
from hpsearch.raytune.device import Device


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


def release_everywhere(study: str) -> None:
    """Ask every device of the cluster to let go of a study's trials, without waiting for it."""
    for device in _all_devices():
        device.release.remote(study)


def finish_everywhere(trial: str) -> None:
    """Ask whichever device trains a trial (`study/number`) to end it with its best report, without waiting for it."""
    for device in _all_devices():
        device.finish.remote(trial)


def _all_devices() -> Iterator[Any]:
    for actor in ray.util.list_named_actors(all_namespaces=False):
        if actor.startswith(NAME_PREFIX):
            with contextlib.suppress(ValueError):  # it ended just now
                yield ray.get_actor(actor)
