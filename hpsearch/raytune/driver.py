"""Drives one study's search on Ray, from its next trial to its end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import ray
from ray import tune

from hpsearch.basemodel import BaseModel
from hpsearch.errors import DiskFull
from hpsearch.raytune.adapter import AskSearcher, ReportScheduler, StudyStopper
from hpsearch.raytune.bridge import Bridge
from hpsearch.raytune.holding import Holding
from hpsearch.raytune.place import Place
from hpsearch.raytune.placement import place_trials
from hpsearch.raytune.stopping import ShouldStop, Stopping
from hpsearch.raytune.trainable import FinetuneTrial
from hpsearch.search import Asked, Search
from hpsearch.spec.defaults import resolve
from hpsearch.spec.finetune import FinetuneConfig

log = logging.getLogger(__name__)

NAMESPACE = "hpsearch"

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is in SQL
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # never restored: a fresh Tuner takes over what remains
    "TUNE_RESULT_BUFFER_LENGTH": "0",  # every report is decided on before the next
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Else Tune itself runs a trial again whose node was told to end, and that despite `max_failures=0`.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # stopping is the runner's business
    "RAY_AIR_NEW_OUTPUT": "0",
}

_REGISTERING = threading.Lock()


def connect(address: str | None) -> str:
    """Join the cluster at `address`, or start one on this machine that ends with this process; returns its name."""
    # Tune complains at the end that it finds no result files: it was told to write none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE_SETTINGS.items()})
    if address is not None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    else:
        os.environ.pop("RAY_ADDRESS", None)  # it would win over the address given here
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 * 2**20,  # messages are small; weights travel by disk
        )
    return str(ray.get_runtime_context().get_session_name())


def drive(
    search: Search,
    model: BaseModel,
    examples: int,
    place: Place,
    should_stop: ShouldStop = lambda: None,
    *,
    holding: Holding | None = None,
) -> bool:
    """Run trials until the budget is used up or `should_stop` says so. Several threads may drive a study each.

    Trials that were interrupted go on first, from their snapshots. After stopping in order, all trials wait to be
    gone on with; after stopping now, they are open in `search`.

    Args:
        search: The study's search; every trial that ends here is told to it.
        model: Facts about the base model.
        examples: Size of the training set.
        place: Where the study's files are.
        should_stop: Looked at all the time.
        holding: What the study may hold of the devices; left out, it has all of them for itself.

    Returns:
        Whether `should_stop` ended it.

    Raises:
        LeaseLost: Another runner has taken the study over.
        WorkerLost: The Ray node of this process died; only another process can join the cluster anew.
        DiskFull: There is no room for a trial's files. All trials were stopped in order.
        Exception: Whatever else `search` raised, such as for a database that is away. All trials were stopped.
    """

    def config_of(asked: Asked) -> FinetuneConfig:
        return resolve(search.spec, asked.params, examples, model.model_type, model.parameters)

    holding = holding or Holding()
    place.tidy(search.idle_snapshots(place.parked), search.needed_from())
    if search.is_over():  # its budget was spent when it was interrupted: it ends without its turn on a device
        return should_stop() is not None
    _wait_for_workers(should_stop)
    if should_stop() or not holding.wait(should_stop):
        return True

    def stops_measuring() -> object:
        return should_stop() or (search.is_out_of_time() and search.is_over())

    placement = place_trials(search, model, config_of, place, stops_measuring, may_hold=holding.room)
    if placement is None:
        return should_stop() is not None

    holding.per_device = placement.per_device
    stopping = Stopping(should_stop)
    bridge = Bridge(search, config_of, place, stopping, placement=placement, holding=holding)
    _fit(bridge, placement.resources)
    while bridge.rests and holding.wait(should_stop):
        _fit(bridge, placement.resources)
    if stopping.error is not None and not isinstance(stopping.error, DiskFull):
        raise stopping.error
    if stopping.is_wanted:  # those that did not come to the end of a step in time, too
        search.release("the study was stopped")
    place.tidy(search.idle_snapshots(place.parked), search.needed_from())
    if stopping.error is not None:
        raise stopping.error
    # One that waits was told to stop too, even if people have taken that back since.
    return stopping.is_wanted or bridge.rests or should_stop() is not None


def _fit(bridge: Bridge, resources: Mapping[str, float]) -> None:
    """Let Tune run trials until none is left, or the study must wait for its turn: then it holds nothing."""
    bridge.rests = False
    # Tune keeps trainables by name, for all threads of the process, in a dictionary that is not safe to change at once.
    kind = "finetune-" + "-".join(f"{amount:g}-{resource}" for resource, amount in sorted(resources.items()))
    with _REGISTERING:
        tune.register_trainable(kind, tune.with_resources(FinetuneTrial, dict(resources)))
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-tune-"))
    try:
        tuner = tune.Tuner(
            kind,
            tune_config=tune.TuneConfig(
                search_alg=AskSearcher(bridge),
                scheduler=ReportScheduler(bridge),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=bridge.search.spec.name,
                storage_path=str(folder),
                stop=StudyStopper(bridge),
                failure_config=tune.FailureConfig(max_failures=0),  # Tune's retry would mix two attempts in a curve
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_workers(should_stop: ShouldStop) -> None:
    """Until the cluster has something to train on: a head may start before its workers have joined."""
    told = False
    while not should_stop() and not any(ray.cluster_resources().get(kind, 0) >= 1 for kind in ("GPU", "CPU")):
        if not told:
            log.warning("waiting for workers: the Ray cluster has neither a GPU nor a CPU yet")
            told = True
        time.sleep(1)
