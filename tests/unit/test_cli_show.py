"""`hpsearch show`: a page for people, and JSON for programs."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from hpsearch.cli import app
from hpsearch.results import Failure
from hpsearch.results.attributes import VERDICT
from hpsearch.results.verdict import Candidate, verdict
from hpsearch.search import Search, history
from hpsearch.spec import StudySpec
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.storage.events import append
from tests.builders import a_report, spec_fields

CONTRACT = "contract"


@pytest.fixture
def searched(api: TestClient, service_url: str) -> str:
    """A study with a complete, a pruned and a failed trial, and one that waits; the address of its service."""
    fields = spec_fields(budget={"trials": 7, "wall_clock": "2h"}, tags={"owner": "[alice]"}, priority=5)
    assert api.post("/v1/studies", json=fields).status_code == 201
    service: Any = api.app.state.service  # type: ignore[attr-defined]
    spec: StudySpec = service.studies.get("tickets").spec
    search = Search(spec, service.optuna_storage, examples=400, default_params=default_params(spec, 400))
    for _ in range(4):
        asked = search.ask() or pytest.fail("no trial")
        search.start(asked.number, resolve(spec, asked.params, 400, "llama", 1_000_000))
        for exposure in (0, 200):
            search.report(asked.number, a_report(exposure, 4.0 - exposure / 100), CONTRACT)
    search.trained_on(0, "host/node/cpu0")
    search.report(0, a_report(300, 2.5), CONTRACT)
    search.complete(0, a_report(200, 2.0), CONTRACT, "artifacts/0")
    search.stopped(1, "alice")
    search.prune(1)
    search.fail(2, Failure.DIVERGED, "the loss is [nan]")
    search.interrupt(3, "paused")
    return service_url


def shown(url: str, *arguments: str) -> str:
    environment = {"HPSEARCH_URL": url, "COLUMNS": "200"}
    done = CliRunner().invoke(app, ["show", *arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def lines_of(page: str) -> dict[str, str]:
    """What is said of each thing."""
    told = [line.strip().partition("  ") for line in page.splitlines()[1:] if line.startswith("  ")]
    return {what: said.strip() for what, _, said in told}


def test_a_study_is_shown_as_a_page(searched: str) -> None:
    page = shown(searched, "tickets")

    assert page.splitlines()[0].startswith("tickets: queued")
    said = lines_of(page)
    assert said["model"].endswith("models/pydoc-llama, lora of rank 8")
    assert said["budget"] == "7 trials, 2:00:00 h"
    assert said["trials"] == "1 COMPLETE, 1 FAIL, 1 PRUNED, 1 WAITING"
    assert said["baseline"] == "validation_loss 4.0000"
    assert said["best"].startswith("trial 0, validation_loss 2.0000: epochs=")
    assert said["at once"] == "auto trials; 0 train now"
    assert said["priority"] == "5"
    assert said["tags"] == "owner=[alice]"
    assert said["created"].endswith(" UTC by local")
    assert said["version"]
    assert "started" not in said


def test_a_study_is_shown_with_its_verdict_and_its_warnings(searched: str, api: TestClient) -> None:
    service: Any = api.app.state.service  # type: ignore[attr-defined]
    assert not {"verdict", "warning"} & lines_of(shown(searched, "tickets")).keys()
    candidates = [
        Candidate(3, is_defaults=True, searched=2.0, losses={1: 2.0, 2: 2.1}),
        Candidate(4, is_defaults=False, searched=1.0, losses={1: 1.0, 2: 1.1}),
    ]
    found = verdict(candidates, "minimize", 4.0)
    history.load(service.optuna_storage, "tickets").set_user_attr(VERDICT, found.as_json())
    with service.database.write() as connection:
        for text in ("data.train: 3 of 400 examples had more than 64 tokens", "another", "another"):
            append(connection, "tickets", "study.warning", 1.0, {"text": text})
    page = shown(searched, "tickets")
    assert lines_of(page)["verdict"] == f"{found.text} (outdated)", "trial 0 is the best by now"
    assert "3 of 400 examples had more than 64 tokens" in page
    assert lines_of(page)["warning"] == "another"
    answer = api.get("/v1/studies/tickets").json()
    assert answer["verdict"]["recommended"] == found.recommended
    assert answer["warnings"] == ["data.train: 3 of 400 examples had more than 64 tokens", "another"]


def test_a_study_says_how_many_trainings_confirm_its_best(searched: str, api: TestClient) -> None:
    service: Any = api.app.state.service  # type: ignore[attr-defined]
    assert api.get("/v1/studies/tickets").json()["confirmation"] is None
    assert "trained again" not in lines_of(shown(searched, "tickets"))
    beside = optuna.create_study(study_name="tickets+confirmation", storage=service.optuna_storage)
    for _ in range(2):
        beside.enqueue_trial({})
    beside.add_trial(optuna.trial.create_trial(value=1.0))
    assert api.get("/v1/studies/tickets").json()["confirmation"] == {"WAITING": 2, "COMPLETE": 1}
    assert lines_of(shown(searched, "tickets"))["trained again"] == "2 WAITING, 1 COMPLETE"


def test_a_study_without_trials_is_a_page_too(api: TestClient, service_url: str) -> None:
    data = {"train": "data/tickets/train.jsonl"}
    assert (
        api.post("/v1/studies", json=spec_fields(data=data, budget={"trials": None, "gpu_hours": 1.5})).status_code
        == 201
    )
    said = lines_of(shown(service_url, "tickets"))
    assert (said["trials"], said["baseline"]) == ("none yet", "not evaluated yet")
    assert said["validation"] == "0.1 of training"
    assert said["budget"] == "1.5 device hours"
    assert "best" not in said


def test_a_trial_is_shown_with_its_curve_and_where_its_weights_are(searched: str) -> None:
    page = shown(searched, "tickets", "0")
    assert page.splitlines()[0] == "tickets, trial 0: COMPLETE, validation_loss 2.0000 at epoch 2"
    said = lines_of(page)
    assert said["params"].startswith("epochs=")
    assert "lr_schedule=linear" in said["the rest"]
    assert said["device"] == "host/node/cpu0"
    assert said["diagnosis"].startswith(
        "it was at its best after epoch 2; by epoch 3 its validation loss had gone from 2 to"
    )
    weights = f"{searched}/v1/studies/tickets/trials/0/adapter"
    assert said["weights"] == f"{weights}; `hpsearch export tickets --trial 0` brings them here"
    head, *rows = [line.split() for line in page.splitlines()[-4:]]
    assert head[:3] == ["epoch", "examples", "loss"]
    assert [row[:3] for row in rows] == [["0", "0", "4.0000"], ["2", "200", "2.0000"], ["3", "300", "2.5000"]]


def test_why_a_trial_has_no_value_is_shown(searched: str) -> None:
    pruned, failed = lines_of(shown(searched, "tickets", "1")), lines_of(shown(searched, "tickets", "2"))
    assert (pruned["pruned"], pruned["weights"]) == ("stopped by alice", "none are kept")
    assert failed["failure"] == "diverged: the loss is [nan]"
    waiting = shown(searched, "tickets", "3")
    assert waiting.splitlines()[0] == "tickets, trial 3: WAITING"
    assert lines_of(waiting)["origin"] == "search"


@pytest.mark.parametrize(("arguments", "path"), [([], ""), (["0"], "/trials/0")], ids=["study", "trial"])
def test_a_program_gets_what_the_service_says(searched: str, api: TestClient, arguments: list[str], path: str) -> None:
    told = json.loads(shown(searched, "tickets", *arguments, "--json"))
    assert told == api.get(f"/v1/studies/tickets{path}").json()


def test_it_fits_a_narrow_terminal(searched: str) -> None:
    done = CliRunner().invoke(app, ["show", "tickets", "0"], env={"HPSEARCH_URL": searched, "COLUMNS": "80"})
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "COMPLETE" in done.stdout
