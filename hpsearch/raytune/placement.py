"""How a study's trials share the cluster: on how many devices, and how many on each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from hpsearch.basemodel import BaseModel
from hpsearch.raytune.device import DeviceAddress, devices_of, open_device
from hpsearch.search import Asked, Search
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.study import StudySpec

log = logging.getLogger(__name__)

PROCESS_BYTES = 700 * 2**20
"""A device process with torch and transformers, before any model."""

MOST_MEASURED = 32
"""Trials on one device that are tried out, at most."""

WAVES = 2
"""A sampler that learns has this many rounds of trials at least: the more at once, the less each is chosen knowing."""

LEARNS_NOTHING = {"random", "qmc", "grid"}
"""Samplers whose trials don't depend on the others."""


@dataclass(frozen=True)
class Placement:
    """What Tune is told."""

    resources: dict[str, float]
    """Of one trial."""
    per_device: int
    room: int
    """Trials at once, at most."""
    sensible: int
    """The same, where `max_concurrent_trials` is `auto`."""


def place_trials(
    search: Search,
    model: BaseModel,
    config_of: Callable[[Asked], FinetuneConfig],
    cache: Path | None,
    should_stop: Callable[[], object],
) -> Placement | None:
    """Find out how many trials go on a device, and let devices load what they need; None when told to stop.

    Args:
        search: The study's; it is told what was decided, and why.
        model: Facts about the base model.
        config_of: Resolves a trial's params.
        cache: Folder of tokenised data.
        should_stop: Looked at while something is measured.
    """
    spec, cluster = search.spec, ray.cluster_resources()
    gpus, cores = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
    devices = gpus or cores
    sensible = devices
    if not gpus:  # each core's process holds a float32 copy of the model; a full fine-tune five more for AdamW
        copies = 6 if spec.model.method == "full" else 2
        fitting = int(cluster.get("memory", 0)) // (PROCESS_BYTES + 4 * model.parameters * copies)
        sensible = min(devices, max(1, fitting))
    typical = config_of(Asked(0, search.typical_params, "defaults")).model_dump_json()
    wanted = spec.parallelism.max_concurrent_trials
    if not gpus:
        for address in _cores(sensible if wanted == "auto" else min(sensible, wanted)):
            open_device(address).get_ready.remote(typical, None if cache is None else str(cache))
    per_device, reason = spec.parallelism.trials_per_device, ""
    if per_device == "auto":
        found = _measured(spec, devices, typical, cache, should_stop)
        if found is None:
            return None
        per_device, reason = found
        search.placed(per_device, devices, reason)
    share = 1 / per_device
    resources = {"CPU": min(1.0, cores / gpus) * share, "GPU": share} if gpus else {"CPU": share}
    return Placement(resources, per_device, devices * per_device, sensible * per_device)


def _cores(count: int) -> list[DeviceAddress]:
    """The first devices on which trials without a GPU will train."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return [address for node in nodes for address in devices_of(node, [])][:count]


def _measured(
    spec: StudySpec, devices: int, config: str, cache: Path | None, should_stop: Callable[[], object]
) -> tuple[int, str] | None:
    """How many trials share a device, and why; None when told to stop."""
    if spec.model.method == "full":
        return 1, "whole models share no pass"
    most = _most(spec, devices)
    if most == 1:
        return 1, "more at once would be chosen knowing too little"
    resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
    asked = _measure.options(**resources).remote(config, None if cache is None else str(cache), most)
    while not ray.wait([asked], timeout=0.5)[0]:
        if should_stop():
            ray.cancel(asked, force=True)
            return None
    try:
        found: tuple[int, str] = ray.get(asked)
    except RayError as error:  # the first trial will say what is wrong, if it is not over by then
        log.warning("not measured: one trial on each device", exc_info=True, extra={"study": spec.name})
        return 1, f"it could not be measured ({type(error).__name__})"
    return found


def _most(spec: StudySpec, devices: int) -> int:
    """Trials on a device that are worth trying out."""
    limits = [MOST_MEASURED]
    if spec.budget.trials is not None:
        waves = 1 if spec.sampler.type in LEARNS_NOTHING else WAVES
        limits.append(spec.budget.trials // (waves * devices))
    if spec.parallelism.max_concurrent_trials != "auto":
        limits.append(-(-spec.parallelism.max_concurrent_trials // devices))
    return max(1, min(limits))


@ray.remote(max_retries=0)  # type: ignore[untyped-decorator]
def _measure(config: str, cache: str | None, most: int) -> Any:
    """Runs where it holds a whole device, so that nobody else trains there."""
    context = ray.get_runtime_context()
    address, *_ = devices_of(context.get_node_id(), [str(gpu) for gpu in ray.get_gpu_ids()])
    return ray.get(open_device(address).measure.remote(config, cache, most))
