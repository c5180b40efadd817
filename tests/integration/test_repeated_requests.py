"""A request that is sent again with its key does nothing more and answers as before, whatever has happened since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch import errors
from hpsearch.api.state import Service
from hpsearch.client import Client
from hpsearch.lifecycle import StudyState
from hpsearch.search import Decision, Search
from hpsearch.settings import Settings
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.storage import Acting
from tests.builders import a_report, spec_fields
from tests.conftest import STUDIES

KEY = {"Idempotency-Key": "once"}
ALICE = Acting("alice")


class Runner:
    """Claims the study, and does what its search and its people want, one step at a time."""

    def __init__(self, api: TestClient) -> None:
        self.service: Service = api.app.state.service  # type: ignore[attr-defined]
        self.study, self.lease = self.service.studies.claim("runner", 60) or pytest.fail("nothing to claim")
        orders = self.service.studies.renew(self.lease, 60)
        self.search = Search(
            self.study.spec,
            self.service.optuna_storage,
            examples=100,
            default_params={**default_params(self.study.spec, 100), "epochs": 4},
            orders=lambda: orders,
            fulfilled=lambda wish: self.service.studies.fulfil(self.lease, wish),
        )

    def begin(self) -> int:
        asked = self.search.ask() or pytest.fail("no trial")
        self.search.start(asked.number, resolve(self.study.spec, asked.params, 100, "llama", 1_000_000))
        return asked.number

    def prune(self, number: int) -> None:
        assert self.search.report(number, a_report(50), "contract") is Decision.PRUNE
        self.search.prune(number)

    def end(self) -> None:
        version = self.service.studies.renew(self.lease, 60).version
        self.service.studies.end(self.lease, StudyState.FINISHED, "done", version)


def submit(api: TestClient) -> None:
    fields = spec_fields(pruner={"type": "threshold", "worst": 0.1, "min_reports": 1})
    assert api.post("/v1/studies", json=fields).status_code == 201


def test_a_trial_that_was_stopped_is_stopped_once(api: TestClient) -> None:
    submit(api)
    runner = Runner(api)
    path = f"/v1/studies/tickets/trials/{runner.begin()}/stop"
    assert api.post(path, headers=KEY).status_code == 202
    runner.prune(0)
    assert api.post(path, headers=KEY).status_code == 202
    refused = api.post(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "trial_finished")
    refused = api.post("/v1/studies/tickets/trials/1/stop", headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (404, "trial_not_found")


def test_a_trial_that_was_continued_is_continued_once(api: TestClient) -> None:
    submit(api)
    first = Runner(api)
    first.prune(first.begin())
    first.end()
    path = "/v1/studies/tickets/trials/0/continue"
    asked = api.post(path, headers=KEY)
    assert asked.status_code == 202
    assert Runner(api).begin() == 1
    again = api.post(path, headers=KEY)
    assert (again.status_code, again.json()["spec"]) == (202, asked.json()["spec"])
    refused = api.post(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_move")


def claimed(service: Service) -> None:
    service.studies.claim("runner", 60)


def deleted(service: Service) -> None:
    service.cancel("tickets", ALICE)
    service.delete("tickets", ALICE)


@pytest.mark.parametrize("happens", [claimed, deleted])
def test_a_clone_is_made_once(api: TestClient, happens: Callable[[Service], object]) -> None:
    submit(api)
    version = api.get("/v1/studies/tickets").headers["ETag"]
    body: dict[str, Any] = {"name": "second", "changes": {"seed": 3}}
    first = api.post("/v1/studies/tickets/clone", json=body, headers={**KEY, "If-Match": version})
    assert first.status_code == 201
    happens(api.app.state.service)  # type: ignore[attr-defined]
    again = api.post("/v1/studies/tickets/clone", json=body, headers={**KEY, "If-Match": version})
    assert (again.status_code, again.json()["name"]) == (200, "second")
    body["changes"]["seed"] = 4
    other = api.post("/v1/studies/tickets/clone", json=body, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


def test_a_source_that_was_extended_makes_the_same_clone_once(api: TestClient) -> None:
    submit(api)
    body = {"name": "second"}
    assert api.post("/v1/studies/tickets/clone", json=body, headers=KEY).status_code == 201
    assert api.post("/v1/studies/tickets/extend", json={"trials": 9}).status_code == 202
    assert api.post("/v1/studies/tickets/clone", json=body, headers=KEY).status_code == 200


def test_what_was_queued_is_not_checked_again(home_with_tables: Settings, api: TestClient) -> None:
    train = home_with_tables.home / "train.jsonl"
    train.write_text((STUDIES / "data/tickets/train.jsonl").read_text())
    fields = spec_fields(data={"train": str(train)})
    first = api.post("/v1/studies", json=fields, headers=KEY)
    assert first.status_code == 201
    train.unlink()
    again = api.post("/v1/studies", json=fields, headers=KEY)
    assert (again.status_code, again.json()) == (200, first.json())
    other = api.post("/v1/studies", json={**fields, "seed": 1}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
    assert api.post("/v1/studies", json=fields).status_code == 422


def test_the_client_repeats_what_it_creates_with_a_key(service_url: str) -> None:
    client = Client(service_url)
    seen: list[tuple[str, str | None]] = []
    client._http.event_hooks["request"] = [
        lambda request: seen.append((request.url.path, request.headers.get("Idempotency-Key")))
    ]
    study, _ = client.submit(spec_fields())
    client.clone("tickets", "second", version=study["version"])
    with pytest.raises(errors.ChangedMeanwhile):
        client.clone("tickets", "third", version="never")
    client.forget_borrowed("tickets", study["version"])
    assert all(key for _, key in seen)
    assert len({key for _, key in seen}) == len(seen)
