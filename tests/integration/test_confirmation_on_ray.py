"""The best trials again under fresh seeds, on a real Ray cluster: each is what a lone fine-tune of that seed is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpsearch.raytune.driver import drive
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop, Stop
from hpsearch.results import TrialState
from hpsearch.results.attributes import SEALED
from hpsearch.results.sealed import SealedScore
from hpsearch.search import Confirmation
from hpsearch.search.confirmation import candidates, fresh_seeds
from hpsearch.spec.defaults import default_params
from hpsearch.spec.finetune import FinetuneConfig
from tests.integration.test_raytune import STUDIES, Study, data, spec_of, storage

__all__ = ["data", "storage"]

pytestmark = pytest.mark.usefixtures("ray_address")


def test_what_confirms_is_trained_like_any_trial_and_goes_on_with_another_driver(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    from hpsearch.finetune import finetune, prepare

    sealed = tmp_path / "test.jsonl"
    sealed.write_text("".join((STUDIES / "data/tickets/test.jsonl").read_text().splitlines(keepends=True)[:25]))
    files = {**data, "test": str(sealed)}
    spec = spec_of(files, "confirmed", confirm={"top": 1, "seeds": 2}, budget={"trials": 2})
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
        alone = finetune(config, prepared=prepared)
        losses = [report.validation_loss for report in alone.reports]
        assert [report.validation_loss for report in trial.reports] == pytest.approx(losses, rel=1e-5)
        stored = SealedScore.of_json(last.frozen()[trial.number].user_attrs[SEALED])
        assert alone.sealed is not None
        assert stored.values == pytest.approx(alone.sealed.values, rel=1e-5)
        assert replace(stored, values=()) == replace(alone.sealed, values=())
        assert stored.examples == 25
    values = {trial.value for trial in trained}
    assert len(values) == len(trained)
    assert not values & {trial.value for trial in trials}
    assert all(SEALED not in frozen.user_attrs for frozen in study.search.frozen())
    found = last.verdict().as_json()
    assert found["seeds"] == 2
    assert found["test"]["examples"] == 25
    assert {each["number"] for each in found["candidates"]} == {trial.number for trial in again}
    assert study.search.trials() == trials
