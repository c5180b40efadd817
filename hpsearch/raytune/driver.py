"""Drives one study's search on Ray, from its next trial to its end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import ray
from ray import tune

from hpsearch.basemodel import BaseModel
from hpsearch.raytune.adapter import AskSearcher, Bridge, ReportScheduler, StudyStopper
from hpsearch.raytune.trainable import FinetuneTrial
from hpsearch.search import Asked, Search
from hpsearch.spec.defaults import resolve
from hpsearch.spec.finetune import FinetuneConfig

NAMESPACE = "hpsearch"

TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is in SQL
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # never restored: a fresh Tuner takes over what remains
    "TUNE_RESULT_BUFFER_LENGTH": "0",  # every report is decided on before the next
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine that ends with this process."""
    # Tune complains at the end that it finds no result files: it was told to write none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)
    os.environ.update({name: os.environ.get(name, value) for name, value in TUNE_SETTINGS.items()})
    if address is not None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
        return
    ray.init(
        namespace=NAMESPACE,
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 * 2**20,  # messages are small; weights travel by disk
    )


def drive(
    search: Search,
    model: BaseModel,
    examples: int,
    artifacts: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run trials until the budget is used up or `should_stop` says so.

    Args:
        search: The study's search; every trial that ends here is told to it.
        model: Facts about the base model.
        examples: Size of the training set.
        artifacts: Folder of the study's weights, one folder per trial below it.
        should_stop: Looked at all the time; trials then stop where they are and stay open in `search`.

    Raises:
        LeaseLost: Another runner has taken the study over. All trials were stopped.
    """

    def config_of(asked: Asked) -> FinetuneConfig:
        return resolve(search.spec, asked.params, examples, model.model_type, model.parameters)

    bridge = Bridge(search, config_of, examples, artifacts, should_stop)
    share, at_once = _placement(search)
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-tune-"))
    try:
        tuner = tune.Tuner(
            tune.with_resources(FinetuneTrial, share),
            tune_config=tune.TuneConfig(
                search_alg=AskSearcher(bridge),
                scheduler=ReportScheduler(bridge),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=search.spec.name,
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
    if bridge.lease_lost is not None:
        raise bridge.lease_lost


def _placement(search: Search) -> tuple[dict[str, float], int]:
    """The resources of one trial, and how many trials run at once."""
    parallelism = search.spec.parallelism
    cluster = ray.cluster_resources()
    gpus, cores = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
    per_device = parallelism.trials_per_device
    share = {"CPU": 1 / per_device}
    if gpus:
        share = {"CPU": min(1.0, cores / (gpus * per_device)), "GPU": 1 / per_device}
    devices = gpus or cores
    wanted = parallelism.max_concurrent_trials
    return share, devices * per_device if wanted == "auto" else min(wanted, devices * per_device)
