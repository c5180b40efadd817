"""Population based training on a real Ray cluster: weights are handed over, and every curve is that of its schedule."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from hpsearch.raytune.stopping import ShouldStop, Stop
from hpsearch.results import TrialState
from hpsearch.spec.finetune import FinetuneConfig
from tests.integration.test_raytune import Study, data, spec_of, storage

__all__ = ["data", "storage"]

pytestmark = pytest.mark.usefixtures("ray_address")


def test_weights_are_handed_over_and_each_curve_is_that_of_its_schedule_trained_alone(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    """The driver is replaced right behind the first exchange: heirs begin under the second one."""
    from hpsearch.finetune import finetune, prepare

    spec = spec_of(
        data,
        "population",
        search_space={
            "epochs": 1,
            "batch_size": 8,
            "learning_rate_multiplier": {"low": 0.3, "high": 3, "log": True},
            "dropout": {"low": 0.0, "high": 0.2},
        },
        pruner={"type": "pbt", "population": 3, "interval": 1, "quantile": 0.3},
        sampler={"type": "auto"},
        objective={"reports_per_epoch": 3},
        parallelism={"trials_per_device": 1},
    )
    exchanged = threading.Event()

    def event(kind: str, _: dict[str, Any]) -> None:
        if kind == "study.exchanged":
            exchanged.set()

    stops: ShouldStop = lambda: Stop.NOW if exchanged.is_set() else None  # noqa: E731
    Study(spec, storage, tmp_path, event=event).drive(stops)
    study = Study(spec, storage, tmp_path)
    study.drive()
    assert study.search.ending() == (True, "all 3 trials of the budget were used")
    trials = study.search.trials()
    assert study.kinds().count("study.exchanged") == 1
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 3
    assert [trial.state for trial in trials].count(TrialState.PRUNED) == 2
    heirs = [trial for trial in trials if trial.parent is not None]
    assert [trial.inherited_at for trial in heirs] == [14, 27]
    prepared = None
    for trial in trials:
        config = FinetuneConfig.model_validate(trial.config)
        prepared = prepared or prepare(config)
        alone = finetune(config, prepared=prepared).reports[: len(trial.reports)]
        assert [report.exposure for report in trial.reports] == [report.exposure for report in alone]
        losses = [report.validation_loss for report in trial.reports]
        assert losses == pytest.approx([report.validation_loss for report in alone], rel=1e-5)
        if trial.state == TrialState.COMPLETE:
            assert len(trial.reports) == 4
            assert (Path(str(trial.adapter)) / "adapter_model.safetensors").is_file()
    assert any(len(trial.schedule) > 1 for trial in trials if trial.state == TrialState.COMPLETE)
    whole = next(trial for trial in trials if trial.state == TrialState.COMPLETE)
    assert sum(trial.tokens for trial in trials) == 3 * whole.reports[-1].tokens
    assert not (tmp_path / "artifacts/exchange").exists()
