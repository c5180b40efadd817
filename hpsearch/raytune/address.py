"""Where trials are trained: one device actor per GPU, or per core where there is no GPU."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal

import ray

from hpsearch import __version__

NAME_PREFIX = f"hpsearch-{__version__}-"


@dataclass(frozen=True)
class DeviceAddress:
    """One GPU, or one core, of one node."""

    node: str
    kind: Literal["gpu", "cpu"]
    id: str
    """Of a GPU as Ray names it: an index, or a UUID."""

    @property
    def name(self) -> str:
        """The device actor's name in the cluster."""
        return f"{NAME_PREFIX}{self.node}-{self.kind}-{self.id}"

    @property
    def label(self) -> str:
        """For people; to be asked for on the device's own node."""
        return f"{socket.gethostname()}/{self.node[:8]}/{self.kind}{self.id}"


def devices_of(node: str, gpus: list[str]) -> list[DeviceAddress]:
    """The devices on which a trial that holds these GPUs (or a core) of a node may train."""
    if gpus:
        return [DeviceAddress(node, "gpu", gpu) for gpu in gpus]
    return [DeviceAddress(node, "cpu", str(core)) for core in range(cores_of(node))]


def cores_of(node: str) -> int:
    """How many cores of the node Ray may use; at least 1."""
    for description in ray.nodes():
        if description["NodeID"] == node:
            return max(1, int(description["Resources"].get("CPU", 1)))
    return 1
