"""Figures for Prometheus, and the Grafana dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from starlette.testclient import TestClient

from hpsearch.api.app import create_app
from hpsearch.api.metrics import Metrics
from hpsearch.api.state import Service
from hpsearch.results import Failure
from hpsearch.results.attributes import ASIDE
from hpsearch.settings import Settings
from hpsearch.shares import Need
from hpsearch.storage import Acting, Acts, Database, Endings, Outbox, Standing, Studies, optuna_storage, tables
from hpsearch.storage.figures import figures, set_aside
from tests.builders import a_spec, spec_fields
from tests.contract.test_search import Driven, spec_of

DASHBOARD = Path(__file__).parents[2] / "services/grafana/hpsearch.json"


def values(text: str) -> dict[str, float]:
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_the_figures_are_those_of_the_tables(migrated_url: str) -> None:
    database, storage = Database(migrated_url), optuna_storage(migrated_url)
    studies = Studies(database)
    for name in ("runs", "waits", "gone"):
        studies.create(a_spec(name=name))
    _, lease = studies.claim("runner", 60) or pytest.fail("nothing claimed")
    studies.renew(lease, 60, Standing("cluster", Need(3, 1), 2))
    Endings(database).cancel("gone", Acting("alice"))
    study = optuna.create_study(study_name="runs", storage=storage)
    for number in range(3):
        trial = study.ask()
        trial.set_user_attr("tokens", 1000 * (number + 1))
        trial.set_user_attr("device_seconds", 1.5)
        if number:
            study.tell(trial, 1.0)
        else:
            trial.set_user_attr("failure", "diverged")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    for number, device in enumerate(["one:gpu:0", "one:gpu:0", "two:gpu:0", None]):
        trial = study.ask()
        if device is not None:
            trial.set_user_attr("device", device)
            trial.set_user_attr("failure", "worker_lost")  # decided, by a process that died before it ended the trial
        if number == 2:
            study.tell(trial, 1.0)
    Outbox(database).claim("team", ["study.queued"], True, 60)
    found = figures(database)
    assert found.studies == {
        "queued": 1, "running": 1, "paused": 0, "finished": 0, "failed": 0, "cancelled": 1
    }  # fmt: skip
    assert found.trials == {"COMPLETE": 3, "FAIL": 1, "RUNNING": 3}
    assert found.cohorts == {"one:gpu:0": 2}  # neither a trial that has ended, nor one that no device has yet
    assert found.failures == {"diverged": 1}
    assert (found.tokens, found.device_seconds) == (6000, 4.5)
    assert 0 <= found.queue_age < 60

    def a_while_passes(seconds: float) -> None:
        with database.write() as connection:
            for column in (tables.studies.c.created_at, tables.studies.c.resumed_at, tables.events.c.at):
                connection.execute(column.table.update().values({column: column - seconds}))

    a_while_passes(1000)
    assert 1000 <= figures(database).queue_age < 1060
    Acts(database).pause("waits", Acting("alice"))
    assert figures(database).queue_age == 0
    Acts(database).resume("waits", Acting("alice"))
    a_while_passes(100)
    assert 100 <= figures(database).queue_age < 160  # paused, it did not wait for a runner
    assert (found.lease_ages.keys(), found.held, found.shares) == ({"runs"}, {"runs": 1}, {"runs": 2})
    assert found.set_aside == {}
    assert found.webhooks == {"team": 0}
    text = Metrics(database).text().decode()
    assert values(text)['hpsearch_trials{state="COMPLETE"}'] == 3
    assert values(text)['hpsearch_cohort_size{device="one:gpu:0"}'] == 2
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined]
    database.close()


def test_what_a_search_keeps_is_what_is_counted(migrated_url: str) -> None:
    database, storage = Database(migrated_url), optuna_storage(migrated_url)
    Studies(database).create(a_spec())
    assert Studies(database).claim("runner", 60)
    driven = Driven(storage, spec_of(3))
    driven.run(driven.must_ask())
    driven.search.fail(driven.must_ask().number, Failure.DIVERGED, "the loss is nan")
    driven.search.trained_on(driven.must_ask().number, "host/node/gpu0")
    driven.search.set_aside({"host/node/gpu1": {"until": time.time() + 600, "reason": "it fails"}})
    trial, found = driven.trial(0), figures(database)
    assert (found.failures, found.cohorts, found.set_aside) == ({"diverged": 1}, {"host/node/gpu0": 1}, {"tickets": 1})
    assert (found.tokens, found.device_seconds) == (trial.tokens, trial.device_seconds)
    assert found.tokens > 0
    assert found.device_seconds > 0
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined]
    database.close()


def test_a_device_counts_as_set_aside_until_its_time_is_over(migrated_url: str) -> None:
    database, storage = Database(migrated_url), optuna_storage(migrated_url)
    studies = Studies(database)
    studies.create(a_spec(name="runs"))
    assert studies.claim("runner", 60)
    study = optuna.create_study(study_name="runs", storage=storage)
    assert figures(database).set_aside == {}
    until = {"gpu-host/1a2b3c4d/gpu0": time.time() + 600, "gpu-host/1a2b3c4d/gpu1": time.time() - 600}
    aside = {device: {"until": end, "reason": "it fails"} for device, end in until.items()}
    study.set_user_attr(ASIDE, aside)
    assert figures(database).set_aside == {"runs": 1}
    assert set_aside(database, "runs").keys() == {"gpu-host/1a2b3c4d/gpu0"}
    assert set_aside(database, "waits") == {}
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined]
    database.close()


def test_requests_are_counted_by_route_and_never_by_path(api: TestClient) -> None:
    api.post("/v1/studies", json=spec_fields())
    api.request("INVENTED", "/v1/studies/tickets")
    for path in ("/v1/studies/tickets", "/v1/studies/missing", "/v1/studies/other", "/nothing/here"):
        api.get(path)
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    counted = values(answer.text)
    route = 'hpsearch_http_requests_total{method="GET",route="/v1/studies/{name}",status="%d"}'
    assert (counted[route % 200], counted[route % 404]) == (1, 2)
    assert counted['hpsearch_http_request_seconds_count{method="POST",route="/v1/studies"}'] == 1
    assert counted['hpsearch_studies{state="queued"}'] == 1
    assert "missing" not in answer.text
    assert "nothing" not in answer.text
    assert "INVENTED" not in answer.text


def test_a_request_that_fails_unexpectedly_is_counted_too(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Studies, "get", lambda *_: 1 / 0)
    assert (
        TestClient(api.app, "http://127.0.0.1", raise_server_exceptions=False).get("/v1/studies/x").status_code == 500
    )
    counted = values(api.get("/metrics").text)
    assert counted['hpsearch_http_requests_total{method="GET",route="/v1/studies/{name}",status="500"}'] == 1


def test_what_runs_is_read_before_somebody_looks(home_with_tables: Settings) -> None:
    app = create_app(home_with_tables)
    service: Service = app.state.service
    service.studies.create(a_spec())
    service.studies.claim("runner", 60)
    read: list[str] = []
    asked = service.optuna_storage.get_study_id_from_name
    service.optuna_storage.get_study_id_from_name = lambda name: (read.append(name), asked(name))[1]  # type: ignore[func-returns-value, method-assign]
    with TestClient(app, "http://127.0.0.1") as api:
        deadline = time.monotonic() + 60
        while not read and time.monotonic() < deadline:
            time.sleep(0.01)
        assert api.get("/v1/studies/tickets").json()["state"] == "running"
    assert read == ["tickets", "tickets+confirmation"], "the page finds its trials read, and looks for a confirmation"


def test_the_grafana_dashboard_asks_for_what_there_is(api: TestClient) -> None:
    api.get("/livez")
    text = api.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) | {name.partition("{")[0] for name in values(text)}
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\b(?:hpsearch|process)_\w+", expression)}
    assert names - known == set()
    own = {name for name in known if name.startswith("hpsearch_") and not name.endswith(("_created", "_count", "_sum"))}
    shown = own - names - {"hpsearch_http_requests", "hpsearch_http_request_seconds"}
    assert shown == set(), "a figure that the dashboard does not show"
