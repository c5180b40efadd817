"""Insight over HTTP, on the command line and on the dashboard; what was borrowed, seen and taken away."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from hpsearch.api.app import create_app
from hpsearch.api.state import Service
from hpsearch.cli import app
from hpsearch.errors import StudyNotFound
from hpsearch.lifecycle import StudyState
from hpsearch.results import Failure
from hpsearch.search.memory import BORROWED
from hpsearch.settings import Settings
from hpsearch.storage import Acting, events_after
from hpsearch.storage.tables import studies
from tests.contract.test_search import Driven
from tests.contract.test_search_memory import Learning, a_study


@pytest.fixture
def searched(api: TestClient, tmp_path: Path) -> Driven:
    service = api.app.state.service  # type: ignore[attr-defined]
    for spec in (a_study(12), a_study(2, "second", warm_start={"studies": ["first"]})):
        service.studies.create(spec)
        driven = Learning(service.optuna_storage, spec, tmp_path)
        driven.run_all()
        driven.search.note()
    return driven


def test_insight_is_the_same_everywhere(
    api: TestClient, service_url: str, searched: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_URL", service_url)
    found = api.get("/v1/studies/first/insight").json()
    assert found["trials"] == 12
    assert sum(effect["importance"] for effect in found["effects"]) == pytest.approx(1)
    assert [axis["parameter"] for axis in found["axes"]] == [
        "epochs", "learning_rate_multiplier", "dropout", "weight_decay",
    ]  # fmt: skip
    ranked = api.get("/v1/studies/first/ranking").json()["ranking"]
    assert [(line["number"], line["value"]) for line in found["lines"]] == [(r["number"], r["value"]) for r in ranked]
    trial = api.get("/v1/studies/first/trials/3").json()
    (curve,) = (curve for curve in found["curves"] if curve["number"] == 3)
    assert curve["exposures"] == [report["exposure"] for report in trial["curve"]]
    assert curve["values"] == [report["validation_loss"] for report in trial["curve"]]
    few = api.get("/v1/studies/first/insight", params={"most": 2}).json()
    newest = [curve for curve in found["curves"] if curve["number"] >= 10]
    assert few == {**found, "lines": found["lines"][:2], "curves": newest}
    shown = CliRunner().invoke(app, ["insight", "first"])
    assert shown.exit_code == 0
    told = CliRunner().invoke(app, ["insight", "first", "--json"])
    assert json.loads(told.stdout) == found
    (study,) = (one for one in api.get("/api/studies").json()["study_summaries"] if one["study_name"] == "first")
    note = api.get(f"/api/studies/{study['study_id']}").json()["note"]["body"]
    for sentence in found["advice"]:
        assert f"advice: {sentence}" in shown.stdout.splitlines()
        assert f"- {sentence}" in note
    for effect in found["effects"]:
        assert f"| {effect['parameter']} | {effect['importance']:.0%} |" in note


def test_a_study_without_trials_has_no_insight_and_no_error(
    api: TestClient, service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_URL", service_url)
    service = api.app.state.service  # type: ignore[attr-defined]
    service.studies.create(a_study(4, "young"))
    found = api.get("/v1/studies/young/insight").json()
    assert (found["trials"], found["advice"], found["lines"], found["curves"]) == (0, [], [], [])
    assert {effect["importance"] for effect in found["effects"]} == {None}
    assert api.get("/v1/studies/young/borrowed").json() == {"data": []}
    assert api.delete("/v1/studies/young/borrowed").status_code == 204
    for options, said in (
        ([], "no earlier study lends 'young' anything\n"),
        (["--json"], "[]\n"),
        (["--forget"], "study 'young' forgets 0 borrowed trials\n"),
    ):
        told = CliRunner().invoke(app, ["borrowed", "young", *options])
        assert (told.exit_code, told.stdout) == (0, said)
    assert api.get("/v1/studies/missing/insight").status_code == 404


def test_what_was_borrowed_is_seen_and_taken_away(
    api: TestClient, service_url: str, searched: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_URL", service_url)
    lent = api.get("/v1/studies/second/borrowed").json()["data"]
    assert {one["study"] for one in lent} == {"first"}
    assert [one["value"] for one in lent] == sorted(one["value"] for one in lent)
    trials = api.get("/v1/studies/second/trials").json()["data"]
    assert trials[1]["origin"] == "borrowed"
    assert trials[1]["reused_from"] == {"study": "first", "number": lent[0]["number"]}
    ranked = api.get("/v1/studies/second/ranking").json()["ranking"]
    assert {row["number"] for row in ranked} == {trial["number"] for trial in trials if trial["state"] == "COMPLETE"}
    assert len(CliRunner().invoke(app, ["borrowed", "second"]).stdout.splitlines()) == len(lent)
    assert CliRunner().invoke(app, ["borrowed", "second", "--forget"]).exit_code == 0
    assert api.get("/v1/studies/second/borrowed").json() == {"data": []}
    assert api.delete("/v1/studies/second/borrowed").status_code == 204
    service = api.app.state.service  # type: ignore[attr-defined]
    told = [event for event in events_after(service.database, "second", 0) if event.kind == "study.borrowed_forgotten"]
    assert [event.details for event in told] == [{"by": "local", "trials": len(lent), "state": "queued"}]


def test_forgetting_is_an_act_with_its_conditions(migrated_url: str, tmp_path: Path) -> None:
    home = Settings(home=tmp_path / "home", database_url=migrated_url)
    api = TestClient(create_app(home), "http://127.0.0.1", raise_server_exceptions=False)
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    service.studies.create(a_study(2, "warm", warm_start={"studies": "similar"}))
    study = optuna.create_study(study_name="warm", storage=service.optuna_storage)
    study.set_user_attr(BORROWED, [{"study": "first"}])

    def forget(**headers: str) -> tuple[int, str | None]:
        answer = api.delete(
            "/v1/studies/warm/borrowed", headers={key.replace("_", "-"): headers[key] for key in headers}
        )
        return answer.status_code, None if answer.status_code == 204 else answer.json()["code"]

    def told() -> int:
        return [event.kind for event in events_after(service.database, "warm", 0)].count("study.borrowed_forgotten")

    assert forget(If_Match='"never"') == (412, "changed_meanwhile")
    assert len(study.user_attrs[BORROWED]) == 1, "what is refused forgets nothing"
    seen = service.studies.get("warm").tag
    assert forget(If_Match=f'"{seen}"', Idempotency_Key="once") == (204, None)
    assert service.studies.get("warm").tag != seen
    study.set_user_attr(BORROWED, [{"study": "first"}, {"study": "second"}])
    assert forget(If_Match=f'"{seen}"', Idempotency_Key="once") == (204, None)
    assert told() == 1, "repeated with its key, it is no second act"
    assert forget(If_Match=f'"{seen}"') == (412, "changed_meanwhile")
    study.set_user_attr(BORROWED, [{"study": "first"}])
    with service.database.write() as connection:
        connection.execute(studies.update().values(state=StudyState.CANCELLED))
    assert forget() == (409, "illegal_move")
    assert study.user_attrs[BORROWED] == [{"study": "first"}]
    assert told() == 1


def test_what_a_deleted_study_forgets_is_not_told_of_its_namesake(api: TestClient) -> None:
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    gone = service.studies.create(a_study(2, "warm"))[0]
    service.cancel("warm", Acting("alice"))
    service.delete("warm", Acting("alice"))
    for forget in (0, 3):
        with pytest.raises(StudyNotFound):
            service.acts.forget_borrowed(gone, forget, Acting("alice"))
    service.studies.create(a_study(2, "warm"))
    with pytest.raises(StudyNotFound, match="another"):
        service.acts.forget_borrowed(gone, 3, Acting("alice"))
    assert [event.kind for event in events_after(service.database, "warm", 0)] == ["study.queued"]


def test_a_study_that_should_teach_must_be_there(api: TestClient) -> None:
    spec = json.loads(a_study(4, "warm", warm_start={"studies": ["missing"]}).model_dump_json())
    for path in ("/v1/studies", "/v1/studies:check"):
        answer = api.post(path, json=spec)
        assert (answer.status_code, answer.json()["field"]) == (422, "warm_start.studies")
        assert "missing" in answer.json()["detail"]


def test_failed_trials_have_curves_too(api: TestClient) -> None:
    service = api.app.state.service  # type: ignore[attr-defined]
    spec = a_study(4, "failing")
    service.studies.create(spec)
    driven = Driven(service.optuna_storage, spec)
    driven.search.fail(driven.must_ask().number, Failure.DIVERGED, "nan")
    assert api.get("/v1/studies/failing/insight").json()["curves"] == []
