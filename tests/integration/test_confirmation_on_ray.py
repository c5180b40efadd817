"""The best trials again under fresh seeds, on a real Ray cluster: each is what a lone fine-tune of that seed is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpsearch.raytune.driver import drive
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop, Stop
from hpsearch.results import TrialState
from hpsearch.search import Confirmation
from hpsearch.search.confirmation import candidates, fresh_seeds
from hpsearch.spec.defaults import default_params
from hpsearch.spec.finetune import FinetuneConfig
from tests.integration.test_raytune import Study, data, spec_of, storage

__all__ = ["data", "storage"]

pytestmark = pytest.mark.usefixtures("ray_address")


def test_what_confirms_is_trained_like_any_trial_and_goes_on_with_another_driver(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    from hpsearch.finetune import finetune, prepare

    spec = spec_of(data, "confirmed", confirm={"top": 1, "seeds": 2}, budget={"trials": 2})
    study = Study(spec, storage, tmp_path)
    study.drive()
    trials = study.search.trials()
    again = candidates(study.search, 1)
    told: list[str] = []

    def confirmation() -> Confirmation:
        return Confirmation(
            study.search,
            storage,
            examples=study.examples,
            default_params=default_params(spec, study.examples),
            fence=lambda: None,
            event=lambda kind, _: told.append(kind),
        )

    def driven(each: Confirmation, should_stop: ShouldStop) -> bool:
        return drive(each, study.model, study.examples, Place(tmp_path / "artifacts/confirmation"), should_stop)

    first = confirmation()
    assert driven(first, lambda: Stop.IN_ORDER if "confirmation.completed" in told else None)
    last = confirmation()
    assert not driven(last, lambda: None)
    trained = last.trials()
    assert [trial.state for trial in trained] == [TrialState.COMPLETE] * 2 * len(again)
    assert told.count("confirmation.completed") == len(trained)
    prepared = None
    for trial in trained:
        config = FinetuneConfig.model_validate(trial.config)
        assert config.seed in fresh_seeds(spec.seed, 2)
        prepared = prepared or prepare(config)
        alone = [report.validation_loss for report in finetune(config, prepared=prepared).reports]
        assert [report.validation_loss for report in trial.reports] == pytest.approx(alone, rel=1e-5)
    losses = {trial.value for trial in trained}
    assert len(losses) == len(trained)
    assert not losses & {trial.value for trial in trials}
    found = last.verdict().as_json()
    assert found["seeds"] == 2
    assert {each["number"] for each in found["candidates"]} == {trial.number for trial in again}
    assert study.search.trials() == trials
