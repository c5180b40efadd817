"""A trial that kills its device's process, on a real Ray cluster: nobody else pays for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from hpsearch.results import TrialState
from hpsearch.search import record
from tests.integration.test_raytune import Study, _devices, data, spec_of, storage

__all__ = ["data", "storage"]  # fixtures

pytestmark = pytest.mark.usefixtures("ray_address")

POISON = "poisoned/2/"
"""How the keys of the trial begin that kills its device, whenever it is on one; with others there if they come soon."""

SOON_SECONDS = 0.3


class Killing:
    """A thread that does what a crash in a kernel would do, and remembers which trials were there."""

    def __init__(self, company: int) -> None:
        self.deaths: list[set[str]] = []
        self._company, self._stopped = company, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        seen: dict[tuple[int, str], float] = {}
        while not self._stopped.wait(0.02):
            with contextlib.suppress(RayActorError, ValueError):  # one of them ends just now
                for device in _devices():
                    there = ray.get(device.trials.remote())
                    poison = next((key for key in there if key.startswith(POISON)), None)
                    if poison is None:
                        continue
                    pid = ray.get(device.pid.remote())
                    since = time.monotonic() - seen.setdefault((pid, poison), time.monotonic())
                    if len(there) >= self._company or (self.deaths and since > SOON_SECONDS):
                        os.kill(pid, signal.SIGKILL)
                        self.deaths.append({key.split("/")[1] for key in there})


def test_a_trial_that_kills_its_device_fails_alone_and_those_beside_it_complete(
    data: dict[str, str], storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpsearch.finetune import finetune, prepare
    from hpsearch.spec.finetune import FinetuneConfig

    monkeypatch.setattr(record, "RETRIES", 1)  # after each death, a new process has to load everything
    spec = spec_of(
        data,
        "poisoned",
        search_space={"epochs": 2, "batch_size": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}},
        budget={"trials": 3},
        parallelism={"trials_per_device": 3, "max_concurrent_trials": 3},
    )
    study = Study(spec, storage, tmp_path)
    with Killing(company=3) as killing:
        study.drive()
    trials = study.search.trials()
    assert [(trial.number, trial.failure) for trial in trials if trial.failure] == [(2, "worker_lost")]
    assert killing.deaths == [{"0", "1", "2"}, {"2"}]
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
