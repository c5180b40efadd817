"""How a study's trials share the cluster: on how many devices, and how many on each."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hpsearch.basemodel import BaseModel
from hpsearch.raytune.address import DeviceAddress, devices_of
from hpsearch.raytune.devices import open_device, own_node_died
from hpsearch.raytune.place import Place
from hpsearch.search import Asked, Search
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.study import StudySpec

log = logging.getLogger(__name__)

PROCESS_BYTES = 700 * 2**20
"""A device process with torch and transformers, before any model."""

MOST_MEASURED = 32
"""Trials on one device that are tried out, at most."""

WAVES = 2
"""A sampler that learns has this many rounds of trials at least: the more at once, the less each is chosen knowing."""

FREE_SECONDS = 30.0
"""Measuring waits so long for a device that is free, and no longer: other studies may keep all of them busy."""

RESOLUTION = 10_000
"""Ray counts a resource in parts of this size, and rounds: 32 times its 1/32 would be more than a whole device."""

LEARNS_NOTHING = {"random", "qmc", "grid"}
"""Samplers whose trials don't depend on the others."""


Asking = tuple[str, str | None, float]
"""What a device is asked with: a typical config as JSON, the folder of tokenised data, and seconds without progress."""


class Room(NamedTuple):
    """What the cluster has room for, as it is now."""

    trials: int
    """At once, at most."""
    sensible: int
    """The same, where `max_concurrent_trials` is `auto`."""


@dataclass(frozen=True)
class Placement:
    """What was decided for the time that a study is driven; its kind of device stays the same in that."""

    resources: dict[str, float]
    """Of one trial, as Tune is told."""
    per_device: int
    room: Callable[[], Room]
    """Asks the cluster: nodes come and go."""


def place_trials(
    search: Search,
    model: BaseModel,
    config_of: Callable[[Asked], FinetuneConfig],
    place: Place,
    should_stop: Callable[[], object],
    *,
    may_hold: Callable[[int], int],
) -> Placement | None:
    """Find out how many trials go on a device, and let devices load what they need; None when told to stop.

    Args:
        search: The study's; it is told what was decided, and why.
        model: Facts about the base model.
        config_of: Resolves a trial's params.
        place: Where tokenised data is, and how long a device may make no progress.
        should_stop: Looked at while something is measured.
        may_hold: Told how many devices are of use, it answers how many are this study's now; others' are not loaded.
    """
    spec = search.spec
    kind = "GPU" if ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
    # Each core's process holds a float32 copy of the model; a full fine-tune five more for AdamW.
    copies = 6 if spec.model.method == "full" else 2
    each = 0 if kind == "GPU" else PROCESS_BYTES + 4 * model.parameters * copies
    devices, sensible = _room(kind, each, per_device=1)
    typical = config_of(Asked(0, search.typical_params, "defaults")).model_dump_json()
    asking = (typical, None if place.cache is None else str(place.cache), place.stalled_seconds)
    wanted = spec.parallelism.max_concurrent_trials
    if kind == "CPU":
        at_once = min(limit for limit in (sensible, wanted, spec.budget.trials) if isinstance(limit, int))
        for address in _cores(may_hold(at_once)):
            open_device(address).get_ready.remote(*asking)
    per_device = spec.parallelism.trials_per_device
    circumstances = {"devices": devices, "gpus": kind == "GPU", "most": _most(spec, devices)}
    if per_device == "auto" and (known := search.placed_before(circumstances)) is not None:
        per_device = known  # the runner before this one has measured it
    if per_device == "auto":
        found = _measured(spec, kind, devices, asking, should_stop)
        if found is None:
            return None
        per_device, reason, is_known = found
        search.placed(per_device, devices, reason, circumstances if is_known else None)
    resources = {"CPU": share_of(per_device)}
    if kind == "GPU":
        resources = {"CPU": share_of(per_device, min(1.0, _cores_per_gpu())), "GPU": share_of(per_device)}
    return Placement(resources, per_device, functools.partial(_room, kind, each, per_device))


def _room(kind: str, each: int, per_device: int) -> Room:
    """What the cluster's devices of a kind have room for now; each takes so many bytes of its machine's memory."""
    cluster = ray.cluster_resources()
    devices = int(cluster.get(kind, 0))
    fitting = max(1, int(cluster.get("memory", 0)) // each) if each else devices
    return Room(devices * per_device, min(devices, fitting) * per_device)


def share_of(per_device: int, whole: float = 1.0) -> float:
    """What each of so many trials takes of a resource, so that all of them fit."""
    return math.floor(whole * RESOLUTION / per_device) / RESOLUTION


def _nodes_with(resource: str) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource, 0) >= 1]


def _cores_per_gpu() -> float:
    """Where they are scarcest: a trial that took more would leave a GPU empty there."""
    ratios = [node["Resources"].get("CPU", 0) / node["Resources"]["GPU"] for node in _nodes_with("GPU")]
    return float(min(ratios, default=0.0))


def _cores(count: int) -> list[DeviceAddress]:
    """Devices on which trials without a GPU will train, from all nodes in turn: no node's memory holds them all."""
    nodes = [devices_of(node["NodeID"], []) for node in _nodes_with("CPU")]
    turns = zip_longest(*nodes)
    return [address for turn in turns for address in turn if address is not None][:count]


def _measured(
    spec: StudySpec, kind: str, devices: int, asking: Asking, should_stop: Callable[[], object]
) -> tuple[int, str, bool] | None:
    """How many trials share a device, why, and whether that is known for good; None when told to stop."""
    if spec.model.method == "full":
        return 1, "whole models share no pass", True
    most = _most(spec, devices)
    if most == 1:
        return 1, "more at once would be chosen knowing too little", True
    group = placement_group([{kind: 1}])
    try:
        deadline = time.monotonic() + FREE_SECONDS
        while not group.wait(0.5):
            if should_stop():
                return None
            if time.monotonic() > deadline:
                return 1, f"no device was free within {FREE_SECONDS:.0f} s to measure more", False
        return _measured_in(group, kind, (*asking, most), should_stop)
    finally:
        remove_placement_group(group)


def _measured_in(
    group: PlacementGroup, kind: str, asking: tuple[*Asking, int], should_stop: Callable[[], object]
) -> tuple[int, str, bool] | None:
    """The answer of a device that is held.

    Raises:
        WorkerLost: The Ray node of this process died, so the answer would never come.
    """
    held = {"num_cpus": int(kind == "CPU"), "num_gpus": int(kind == "GPU")}
    asked = _measure.options(**held, scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote(*asking)
    while not ray.wait([asked], timeout=0.5)[0]:
        if should_stop():
            ray.cancel(asked, force=True)
            return None
        if (died := own_node_died()) is not None:
            raise died
    try:
        per_device, reason = ray.get(asked)
    except RayError as error:  # the first trial will say what is wrong, if it is not over by then
        log.warning("not measured: one trial on each device", exc_info=True)
        return 1, f"it could not be measured ({type(error).__name__})", False
    return per_device, reason, True


def _most(spec: StudySpec, devices: int) -> int:
    """Trials on a device that are worth trying out."""
    limits = [MOST_MEASURED]
    if spec.budget.trials is not None:
        waves = 1 if spec.sampler.type in LEARNS_NOTHING else WAVES
        limits.append(spec.budget.trials // (waves * devices))
    if isinstance(spec.pruner, PopulationSpec):
        limits = [MOST_MEASURED, -(-spec.pruner.population // devices)]
    if spec.parallelism.max_concurrent_trials != "auto":
        limits.append(-(-spec.parallelism.max_concurrent_trials // devices))
    return max(1, min(limits))


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _measure(config: str, cache: str | None, stalled_seconds: float, most: int) -> Any:
    """Runs where it holds a whole device, so that nobody else trains there."""
    context = ray.get_runtime_context()
    addresses = devices_of(context.get_node_id(), [str(gpu) for gpu in ray.get_gpu_ids()])
    idle = (address for address in addresses if not ray.get(open_device(address).trials.remote()))
    address = next(idle, addresses[0])  # of the cores, the one held has no number
    return ray.get(open_device(address).measure.remote(config, cache, stalled_seconds, most))
