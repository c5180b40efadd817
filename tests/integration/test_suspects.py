"""A trial that kills its device's process, on a real Ray cluster: nobody else pays for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray

from hpsearch.raytune import bridge
from hpsearch.raytune.address import devices_of
from hpsearch.raytune.health import Aside, Health
from hpsearch.raytune.messages import Placed
from hpsearch.results import TrialState
from hpsearch.search import record
from tests.integration.test_raytune import Study, data, spec_of, storage

__all__ = ["data", "storage"]  # fixtures

pytestmark = pytest.mark.usefixtures("ray_address")

POISON = 2
"""The number of the trial that kills its device as soon as it is there."""


class Killing(Health):
    """Of devices, of which one dies as by a crash in a kernel when it has taken the poison on."""

    deaths: ClassVar[list[set[str]]] = []
    """The trials that were there, each time."""

    def aside(self) -> dict[str, Aside]:
        """All devices but the first, so that all trials are on one."""
        others = devices_of(ray.get_runtime_context().get_node_id(), [])[1:]
        return {address.label: Aside(time.time() + 600, "as a test wants it") for address in others}

    def placed(self, number: int, placed: Placed) -> None:
        super().placed(number, placed)
        if number != POISON:
            return
        device, deadline = ray.get_actor(placed.actor), time.monotonic() + 60
        while len(there := ray.get(device.trials.remote())) < 3 and not self.deaths:  # at first in company
            assert time.monotonic() < deadline
        os.kill(placed.pid, signal.SIGKILL)
        self.deaths.append({key.split("/")[1] for key in there})


def test_a_trial_that_kills_its_device_fails_alone_and_those_beside_it_complete(
    data: dict[str, str], storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang_file: Path
) -> None:
    from hpsearch.finetune import finetune, prepare
    from hpsearch.spec.finetune import FinetuneConfig

    monkeypatch.setattr(Killing, "deaths", [])
    monkeypatch.setattr(bridge, "Health", Killing)
    monkeypatch.setattr(record, "RETRIES", 1)  # after each death, a new process has to load everything
    spec = spec_of(
        data,
        "poisoned",
        search_space={"epochs": 2, "batch_size": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}},
        budget={"trials": 3},
        parallelism={"trials_per_device": 3, "max_concurrent_trials": 3},
    )
    study = Study(spec, storage, tmp_path)
    hang_file.touch()  # nobody gets on before all are there
    study.drive()
    trials = study.search.trials()
    assert [(trial.number, trial.failure) for trial in trials if trial.failure] == [(2, "worker_lost")]
    assert Killing.deaths == [{"0", "1", "2"}, {"2"}]
    (retry,) = [trial for trial in trials if trial.retry_of == 2]
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
