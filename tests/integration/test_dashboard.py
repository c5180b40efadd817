"""The Optuna dashboard on our port: for looking only."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch.api.app import create_app
from hpsearch.api.tokens import Role, add_token
from hpsearch.results import Failure
from hpsearch.search import Search
from hpsearch.settings import Settings
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.storage import optuna_storage
from tests.builders import a_report, a_spec


@pytest.fixture
def study(home_with_tables: Settings) -> int:
    """Optuna's id of a study with a completed, a pruned, a failed and a running trial."""
    spec = a_spec()
    storage = optuna_storage(home_with_tables.sql_url)
    search = Search(spec, storage, examples=400, default_params=default_params(spec, 400))
    for _ in range(4):
        asked = search.ask() or pytest.fail("no trial")
        search.start(asked.number, resolve(spec, asked.params, 400, "llama", 1_000_000))
        search.report(asked.number, a_report(200, 1.5), "contract")
    search.complete(0, a_report(200, 1.5), "contract", "artifacts/0")
    search.prune(1)
    search.fail(2, Failure.DIVERGED, "nan")
    return storage.get_study_id_from_name("tickets")


@pytest.fixture
def dashboard(study: int, api: TestClient) -> TestClient:
    return api


def test_its_pages_open(dashboard: TestClient, study: int) -> None:
    for path in ("/dashboard", f"/dashboard/studies/{study}", "/api/meta", "/api/studies", "/static/bundle.js"):
        assert dashboard.get(path).status_code == 200


def test_the_address_of_the_service_leads_to_it(dashboard: TestClient) -> None:
    answer = dashboard.get("/")
    assert answer.status_code == 200
    assert answer.url.path.startswith("/dashboard")


def test_it_shows_every_trial_with_its_state_and_curve(dashboard: TestClient, study: int) -> None:
    (listed,) = dashboard.get("/api/studies").json()["study_summaries"]
    assert listed["study_name"] == "tickets"
    detail = dashboard.get(f"/api/studies/{study}", params={"after": 0}).json()
    trials = {trial["number"]: trial for trial in detail["trials"]}
    states = {number: trial["state"] for number, trial in trials.items()}
    assert states == {0: "Complete", 1: "Pruned", 2: "Fail", 3: "Running"}
    assert trials[0]["values"] == [1.5]
    assert trials[1]["intermediate_values"] == [{"step": 200, "value": 1.5}]
    assert detail["objective_names"] == ["validation_loss"]
    assert {param["name"] for param in trials[0]["params"]} == set(a_spec().search_space.varying())


WRITES = ["/api/studies/{study}", "/api/studies", "/api/studies/{study}/rename", "/api/trials/1/tell", "/dashboard"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_it_changes_nothing(dashboard: TestClient, study: int, method: str) -> None:
    body: dict[str, Any] = {"study_name": "other", "directions": ["minimize"], "state": "Fail"}
    for path in WRITES:
        answer = dashboard.request(method, path.replace("{study}", str(study)), json=body)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert len(dashboard.get("/api/studies").json()["study_summaries"]) == 1
    detail = dashboard.get(f"/api/studies/{study}", params={"after": 0}).json()
    assert [trial["state"] for trial in detail["trials"]] == ["Complete", "Pruned", "Fail", "Running"]


def test_a_verb_can_not_be_smuggled_in(dashboard: TestClient, study: int) -> None:
    for override in ("X-HTTP-Method-Override", "X-Method-Override"):
        dashboard.get(f"/api/studies/{study}", params={"after": 0, "_method": "DELETE"}, headers={override: "DELETE"})
    assert len(dashboard.get("/api/studies").json()["study_summaries"]) == 1


def test_nobody_without_a_token_sees_it(study: int, home_with_tables: Settings) -> None:
    token = add_token(home_with_tables.tokens_path, "zoë", Role.READ)
    client = TestClient(create_app(home_with_tables), follow_redirects=False)
    for path in ("/", "/dashboard", "/api/studies", f"/csv/{study}", "/static/bundle.js", "/favicon.ico"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code in (200, 302)


def test_it_serves_no_files_but_its_own(dashboard: TestClient) -> None:
    for path in ("/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/_app.py", "/static//etc/passwd"):
        assert dashboard.get(path).status_code >= 400
