"""What people do to studies, over HTTP, the Python client and the command line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from hpsearch import errors
from hpsearch.api.app import create_app
from hpsearch.api.state import Service
from hpsearch.api.tokens import Role, add_token
from hpsearch.cli.app import app as commands
from hpsearch.client import Client
from hpsearch.lifecycle import StudyState
from hpsearch.results import Failure
from hpsearch.search import Decision, Search
from hpsearch.settings import Settings
from hpsearch.shares import Need
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec
from hpsearch.storage import Acting, Endings, Standing
from hpsearch.storage.tables import studies
from tests.builders import a_report, spec_fields
from tests.conftest import served


def firsts(spec: StudySpec) -> Params:
    """Of the first trial."""
    return {**default_params(spec, 100), "epochs": 4}


def told(client: Client, name: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in client.events(name) if event["kind"] == kind]


def test_a_study_is_acted_on_through_its_whole_life(home_with_tables: Settings) -> None:
    alice = add_token(home_with_tables.tokens_path, "alice", Role.SUBMIT)
    root = add_token(home_with_tables.tokens_path, "root", Role.ADMIN)
    reader = add_token(home_with_tables.tokens_path, "reader", Role.READ)
    app = create_app(home_with_tables)
    service: Service = app.state.service
    with served(app) as url:
        client = Client(url, alice)
        first, _ = client.submit(spec_fields(budget={"trials": 4}))
        assert (first["created_by"], first["version"]) == ("alice", client.study("tickets")["version"])

        # Two people look at the same version; the second one's act is refused and changes nothing.
        changed = client.change("tickets", first["version"], priority=7)
        assert changed["spec"]["priority"] == 7
        with pytest.raises(errors.ChangedMeanwhile, match=changed["version"]):
            client.extend("tickets", first["version"], trials=10)
        assert client.study("tickets")["spec"]["budget"]["trials"] == 4

        assert client.pause("tickets")["state"] == "paused"
        assert client.resume("tickets")["state"] == "queued"
        _, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
        asked = client.pause("tickets")
        assert (asked["state"], asked["requested"]) == ("running", "paused")
        assert client.resume("tickets")["requested"] is None
        client.change("tickets", max_concurrent_trials=2)
        client.add_trial("tickets", {"epochs": 3, "learning_rate_multiplier": "1e-1"})
        orders = service.studies.renew(lease, 60)
        assert orders.spec.parallelism.max_concurrent_trials == 2
        assert [(wish.by, wish.params) for wish in orders.wishes] == [
            ("alice", {"epochs": 3, "learning_rate_multiplier": 0.1})
        ]
        for params in ({"epochs": 99}, {"epochs": True}, {"unknown": 1}, {"epochs": 10**400}):
            with pytest.raises(errors.InvalidInput):
                client.add_trial("tickets", params)
        with pytest.raises(errors.TrialNotFound):
            client.stop_trial("tickets", 0)
        assert client.extend("tickets", trials=5)["spec"]["budget"]["trials"] == 4 + 1 + 5
        service.studies.end(lease, StudyState.FINISHED, "done", service.studies.renew(lease, 60).version)
        assert client.study("tickets")["state"] == "finished"
        with pytest.raises(errors.IllegalMove):
            client.pause("tickets")
        again = client.extend("tickets", trials=1)
        assert (again["state"], again["finished_at"], again["reason"]) == ("queued", None, "")
        with pytest.raises(errors.InvalidInput, match="tokens"):
            client.extend("tickets", tokens=1)

        assert client.cancel("tickets")["state"] == "cancelled"
        with pytest.raises(errors.Forbidden):
            client.delete("tickets")
        for act in ("pause", "resume", "cancel"):
            with pytest.raises(errors.Forbidden):
                getattr(Client(url, reader), act)("tickets")
        assert [event["by"] for event in told(client, "tickets", "study.extended")] == ["alice", "alice"]
        assert told(client, "tickets", "study.trial_added")[0]["params"]["epochs"] == 3
        Client(url, root).delete("tickets")
        with pytest.raises(errors.StudyNotFound):
            client.study("tickets")


def test_a_clone_differs_in_its_changes_only(service_url: str) -> None:
    client = Client(service_url)
    first, _ = client.submit(spec_fields())
    clone, created = client.clone("tickets", "wider", {"budget": {"trials": 40}, "search_space": {"epochs": 2}})
    assert created
    assert (clone["spec"]["budget"]["trials"], clone["spec"]["search_space"]["epochs"]) == (40, 2)
    assert clone["spec"]["data"] == first["spec"]["data"]
    assert client.clone("tickets", "wider", {"budget": {"trials": 40}, "search_space": {"epochs": 2}})[1] is False
    with pytest.raises(errors.InvalidSpec, match=r"warm_start.studies"):
        client.clone("tickets", "taught", {"warm_start": {"studies": ["nowhere"]}})
    with pytest.raises(errors.InvalidSpec, match="trails"):
        client.clone("tickets", "odd", {"budget": {"trails": 40}})


def test_what_the_check_warns_of_is_told_with_a_new_study_once(service_url: str) -> None:
    client, idle = Client(service_url), {"type": "median", "startup_trials": 99}
    first, _ = client.submit(spec_fields(pruner=idle))
    assert first["warnings"] == ["pruner.startup_trials: the budget has 20 trials, so none is ever stopped"]
    assert client.submit(spec_fields(pruner=idle))[0]["warnings"] == []
    clone, _ = client.clone("tickets", "again", {"seed": 2})
    assert clone["warnings"] == first["warnings"]
    done = CliRunner().invoke(commands, ["clone", "tickets", "--name", "third"], env={"HPSEARCH_URL": service_url})
    assert (done.exit_code, done.stderr) == (0, f"warning: {first['warnings'][0]}\n")


def test_a_repeated_request_acts_once(api: TestClient) -> None:
    api.post("/v1/studies", json=spec_fields())
    key = {"Idempotency-Key": "abc"}
    answers = [api.post("/v1/studies/tickets/extend", json={"trials": 3}, headers=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert {answer.json()["spec"]["budget"]["trials"] for answer in answers} == {23}
    other = api.post("/v1/studies/tickets/extend", json={"trials": 4}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_without_a_key_an_act_is_done_as_often_as_it_is_sent(api: TestClient, service_url: str) -> None:
    """The Python client sends a key of its own with each call: it is the transport's repetitions that count once."""
    api.post("/v1/studies", json=spec_fields())
    for _ in range(2):
        assert api.post("/v1/studies/tickets/extend", json={"trials": 3}).status_code == 202
    assert api.get("/v1/studies/tickets").json()["spec"]["budget"]["trials"] == 26
    budgets = [Client(service_url).extend("tickets", trials=3)["spec"]["budget"]["trials"] for _ in range(2)]
    assert budgets == [29, 32]


def test_a_late_repetition_does_not_undo_what_others_did_since(api: TestClient) -> None:
    api.post("/v1/studies", json=spec_fields())
    study = "/v1/studies/tickets"
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    requests: list[tuple[str, str, Any]] = [
        ("POST", f"{study}/pause", None),
        ("POST", f"{study}/resume", None),
        ("PATCH", study, {"priority": 3}),
        ("PATCH", study, {"priority": 5}),
    ]

    def send(number: int) -> None:
        method, path, body = requests[number]
        assert api.request(method, path, json=body, headers={"Idempotency-Key": f"key-{number}"}).is_success

    for number in range(len(requests)):
        send(number)
    service.studies.claim("runner", 60)
    service.acts.pause("tickets", Acting("bob"))
    before = service.studies.get("tickets")
    for number in range(len(requests)):
        send(number)
    assert service.studies.get("tickets") == before
    other = api.patch(study, json={"priority": 4}, headers={"Idempotency-Key": "key-2"})
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_a_study_that_is_being_deleted_is_not_queued_again(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its runner would search on while its trials and weights go, with a key even without a refusal."""
    app = create_app(home_with_tables)
    service: Service = app.state.service
    api = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)
    api.post("/v1/studies", json=spec_fields())
    _, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
    service.studies.end(lease, StudyState.FINISHED, "done")
    version = api.get("/v1/studies/tickets").headers["ETag"]
    weights = home_with_tables.artifacts_folder / "tickets/0/adapter.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("x")
    headers = {"If-Match": version, "Idempotency-Key": "once"}
    with monkeypatch.context() as broken:
        broken.setattr("hpsearch.api.state.history.delete", lambda *_: 1 / 0)  # the process dies here
        assert api.delete("/v1/studies/tickets", headers=headers).status_code == 500
    assert weights.exists()
    assert api.get("/v1/studies/tickets").json()["requested"] is None, "it is over, and will not be cancelled"
    for act, body in (("extend", {"trials": 1}), ("trials", {"params": {}}), ("resume", None)):
        refused = api.post(f"/v1/studies/tickets/{act}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "illegal_move")
    assert service.studies.claim("runner", 60) is None
    assert api.delete("/v1/studies/tickets", headers=headers).status_code == 204
    assert list(home_with_tables.artifacts_folder.iterdir()) == []
    assert api.post("/v1/studies", json=spec_fields()).status_code == 201
    assert api.delete("/v1/studies/tickets", headers={"Idempotency-Key": "once"}).status_code == 409


@pytest.mark.parametrize(
    ("value", "status"), [("*", 202), ('"never"', 412), ("never", 422), ('W/"never"', 422)], ids=str
)
def test_if_match_is_an_etag(api: TestClient, value: str, status: int) -> None:
    tag = api.post("/v1/studies", json=spec_fields()).headers["ETag"]
    assert tag == api.get("/v1/studies/tickets").headers["ETag"]
    assert api.post("/v1/studies/tickets/pause", headers={"If-Match": value}).status_code == status
    if status != 202:
        listed = f'W/"other", {tag}'
        assert api.post("/v1/studies/tickets/pause", headers={"If-Match": listed}).status_code == 202


def test_a_pruned_trial_is_continued_once_also_after_the_studys_end(api: TestClient) -> None:
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    fields = spec_fields(pruner={"type": "threshold", "worst": 0.1, "min_reports": 1})
    api.post("/v1/studies", json=fields)
    study, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")

    def search() -> Search:
        orders = service.studies.renew(lease, 60)
        heard = {"orders": lambda: orders, "fulfilled": lambda wish: service.studies.fulfil(lease, wish)}
        return Search(study.spec, service.optuna_storage, examples=100, default_params=firsts(study.spec), **heard)

    def begin(searching: Search) -> int:
        asked = searching.ask() or pytest.fail("no trial")
        searching.start(asked.number, resolve(study.spec, asked.params, 100, "llama", 1_000_000))
        return asked.number

    path = "/v1/studies/tickets/trials/0/continue"
    assert api.post(path).json()["code"] == "trial_not_found"
    first = search()
    assert begin(first) == 0
    assert api.post(path).json()["code"] == "illegal_move"
    assert first.report(0, a_report(50), "contract") is Decision.PRUNE
    first.prune(0)
    service.studies.end(lease, StudyState.FINISHED, "done", service.studies.renew(lease, 60).version)

    trials = study.spec.budget.trials or 0
    asked = api.post(path).json()
    assert (asked["state"], asked["spec"]["budget"]["trials"]) == ("queued", trials + 1)
    assert api.post(path).json()["spec"]["budget"]["trials"] == trials + 1
    study, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
    assert begin(search()) == 1
    shown = api.get("/v1/studies/tickets/trials/1").json()
    assert (shown["origin"], shown["continues"], shown["exposure"]) == ("continued", 0, 50)
    refused = api.post(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_move")
    assert "as trial 1" in refused.json()["detail"]


def test_the_command_line_acts(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPSEARCH_URL", service_url)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(spec_fields()))

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(commands, arguments)
        return done.exit_code, done.output

    assert run("submit", str(spec), "--quiet")[0] == 0
    assert run("pause", "tickets") == (0, "study 'tickets' is paused\n")
    assert run("resume", "tickets") == (0, "study 'tickets' is queued\n")
    assert run("extend", "tickets", "--trials", "5") == (0, "study 'tickets' is queued; budget now: trials 25\n")
    assert run("extend", "tickets")[0] == 2
    assert run("confirm", "tickets", "--seeds", "4")[1].startswith("study 'tickets' is queued; `hpsearch watch")
    assert run("confirm", "tickets", "--seeds", "1")[0] == 2
    assert run("add", "tickets", "epochs=2", "learning_rate_multiplier=1e-1")[0] == 0
    assert run("add", "tickets", "epochs")[0] == 65
    assert run("change", "tickets", "--priority", "3", "--max-concurrent-trials", "auto")[0] == 0
    assert run("change", "tickets", "--priority", "4", "--if-version", "1-1")[0] == 1
    code, shown = run("clone", "tickets", "--name", "wider", "--set", "budget.trials=40", "--set", "seed=3", "--json")
    assert (code, json.loads(shown)["spec"]["budget"]["trials"], json.loads(shown)["spec"]["seed"]) == (0, 40, 3)
    assert run("stop", "tickets", "0")[0] == 1
    assert run("continue", "tickets", "0")[0] == 1
    assert run("cancel", "tickets") == (0, "study 'tickets' is cancelled\n")
    assert run("delete", "tickets") == (0, "study 'tickets' is deleted\n")


def test_a_study_that_cannot_be_read_hides_no_other_and_can_be_deleted(api: TestClient) -> None:
    for name in ("unread", "fine"):
        assert api.post("/v1/studies", json=spec_fields(name=name)).status_code == 201
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    with service.database.write() as connection:
        unread = studies.update().where(studies.c.name == "unread")
        connection.execute(unread.values(spec='{"name": "unread", "invented": 1}'))
    listed = api.get("/v1/studies").json()["data"]
    assert {study["name"]: study["spec"] is None for study in listed} == {"unread": True, "fine": False}
    answer = api.get("/v1/studies/unread")
    assert (answer.status_code, answer.json()["code"]) == (500, "study_unreadable")
    assert "invented" in answer.json()["detail"]
    assert api.get("/v1/studies/fine").status_code == 200
    service.read_ahead()
    Endings(service.database).cancel("unread", Acting("alice"))
    assert api.delete("/v1/studies/unread").status_code == 204


@pytest.mark.parametrize(("limit", "amount"), [("wall_clock", 0.001), ("tokens", 100), ("gpu_hours", 0.0001)])
def test_what_a_spent_budget_leaves_no_room_for_is_refused_until_it_is_extended(
    api: TestClient, limit: str, amount: float
) -> None:
    """Else the study is queued, and ends without having done it."""
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    fields = spec_fields(
        pruner={"type": "threshold", "worst": 0.1, "min_reports": 1}, budget={"trials": 5, limit: amount}
    )
    assert api.post("/v1/studies", json=fields).status_code == 201
    study, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
    search = Search(study.spec, service.optuna_storage, examples=100, default_params=firsts(study.spec))
    asked = search.ask() or pytest.fail("no trial")
    search.start(asked.number, resolve(study.spec, asked.params, 100, "llama", 1_000_000))
    service.studies.renew(lease, 60, Standing("here", Need(1, 1), 1))
    for exposure in (0, 100):
        search.report(asked.number, a_report(exposure), "contract")
    search.prune(asked.number)
    time.sleep(0.01)
    service.studies.end(lease, StudyState.FAILED, "something that was mended")
    before = service.studies.get("tickets")
    acts: list[tuple[str, Any]] = [("trials", {"params": {}}), ("trials/0/continue", None), ("resume", None)]
    for path, body in acts:
        refused = api.post(f"/v1/studies/tickets/{path}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "budget_spent")
        assert refused.json()["field"] == f"budget.{limit}"
        assert f"hpsearch extend tickets --{limit.replace('_', '-')}" in refused.json()["detail"]
    assert service.studies.get("tickets") == before
    assert api.post("/v1/studies/tickets/extend", json={limit: 10_000}).status_code == 202
    for path, body in acts:
        assert api.post(f"/v1/studies/tickets/{path}", json=body).status_code == 202


@pytest.mark.parametrize(
    ("failure", "is_refused"), [(Failure.DIVERGED, True), (Failure.ERROR, False)], ids=["its params", "its GPU"]
)
def test_a_failed_study_that_has_used_all_its_trials_is_not_resumed_for_nothing(
    api: TestClient, failure: Failure, is_refused: bool
) -> None:
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    api.post("/v1/studies", json=spec_fields(budget={"trials": 1}))
    study, lease = service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
    search = Search(study.spec, service.optuna_storage, examples=100, default_params=firsts(study.spec))
    asked = search.ask() or pytest.fail("no trial")
    search.fail(asked.number, failure, "it did not go well")
    service.studies.end(lease, StudyState.FAILED, "it did not go well")
    resumed = api.post("/v1/studies/tickets/resume")
    if not is_refused:
        assert resumed.status_code == 202
        return
    assert (resumed.status_code, resumed.json()["code"]) == (409, "budget_spent")
    assert "extend tickets --trials" in resumed.json()["detail"]
    assert api.post("/v1/studies/tickets/trials", json={"params": {}}).status_code == 202, "the budget grows by it"
