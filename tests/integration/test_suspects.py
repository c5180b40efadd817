"""A trial that kills its device's process, on a real Ray cluster: nobody else pays for it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from hpsearch.raytune import bridge
from hpsearch.raytune.address import DeviceAddress, devices_of
from hpsearch.raytune.health import Aside, Health
from hpsearch.results import TrialState
from hpsearch.search import record
from tests.integration.test_raytune import STUDIES, Study, spec_of, storage

__all__ = ["storage"]  # a fixture

pytestmark = pytest.mark.usefixtures("ray_address")

POISON = "2"
"""The number of the trial that kills its device."""


def devices() -> list[DeviceAddress]:
    return devices_of(ray.get_runtime_context().get_node_id(), [])


class OneDevice(Health):
    def aside(self) -> dict[str, Aside]:
        """All devices but the first, so that all trials are on one."""
        return {address.label: Aside(time.time() + 600, "as a test wants it") for address in devices()[1:]}


class Killing(threading.Thread):
    """Kills the device as a crash in a kernel would: when all three are there and it trains, then under the poison."""

    def __init__(self, hang_file: Path) -> None:
        super().__init__(daemon=True)
        self._hang_file = hang_file
        self.deaths: list[set[str]] = []
        """The trials that were there, each time."""

    def run(self) -> None:
        while len(self.deaths) < 2:
            time.sleep(0.05)
            try:
                device = ray.get_actor(devices()[0].name)
                there = {key.split("/")[1] for key in ray.get(device.trials.remote(), timeout=10)}
                if POISON in there and (self.deaths or (len(there) == 3 and not self._hang_file.exists())):
                    os.kill(ray.get(device.pid.remote(), timeout=10), signal.SIGKILL)
                    self.deaths.append(there)
                    while ray.get(device.pid.remote(), timeout=10):  # Ray has not noticed yet
                        time.sleep(0.02)
            except (ValueError, RayActorError, GetTimeoutError):
                pass  # it is not there yet, or not any more


def test_a_trial_that_kills_its_device_fails_alone_and_those_beside_it_complete(
    storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang_file: Path
) -> None:
    from hpsearch.finetune import finetune, prepare
    from hpsearch.spec.finetune import FinetuneConfig

    monkeypatch.setattr(bridge, "Health", OneDevice)
    monkeypatch.setattr(record, "RETRIES", 1)  # after each death, a new process has to load everything
    data = {}
    for split, count in (("train", 200), ("validation", 10)):
        lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
        data[split] = str(tmp_path / f"{split}.jsonl")
        Path(data[split]).write_text("\n".join(lines) + "\n")
    rate = {"learning_rate_multiplier": 0.5}
    spec = spec_of(
        data,
        "poisoned",
        search_space={
            "epochs": 1,
            "batch_size": {"choices": [1, 20]},
            "learning_rate_multiplier": {"low": 0.1, "high": 1.0},
        },
        # The poison makes 200 steps before its first report, and dies in one of the first ones.
        first_trials=[{"batch_size": 20, **rate}, {"batch_size": 1, **rate}],
        objective={"reports_per_epoch": 1},
        budget={"trials": 3},
        parallelism={"trials_per_device": 3, "max_concurrent_trials": 3},
    )
    study = Study(spec, storage, tmp_path)
    hang_file.touch()  # nobody gets on before all are there
    killing = Killing(hang_file)
    killing.start()
    study.drive()
    trials = study.search.trials()
    assert killing.deaths == [{"0", "1", POISON}, {POISON}]
    assert [(trial.number, trial.failure) for trial in trials if trial.failure] == [(int(POISON), "worker_lost")]
    (retry,) = [trial for trial in trials if trial.retry_of == int(POISON)]
    assert retry.state == TrialState.COMPLETE
    prepared = None
    for trial in trials[:2]:
        assert (trial.lost, trial.attempts > 1) == (0, True)
        config = FinetuneConfig.model_validate(trial.config)
        prepared = prepared or prepare(config)
        alone = finetune(config, prepared=prepared).reports
        assert [report.validation_loss for report in trial.reports] == [report.validation_loss for report in alone]
        assert [report.tokens for report in trial.reports] == [report.tokens for report in alone]
    assert sorted(details["number"] for _, details in study.events if "alone" in details) == [0, 1, 2, 3]
    texts = [details["text"] for kind, details in study.events if kind == "trial.interrupted"]
    assert sum("it goes on alone, until it gets further" in text for text in texts) == 3
