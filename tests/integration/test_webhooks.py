"""Webhooks are told at least once, in order, signed, and only at addresses of the operator."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from hpsearch.api.app import create_app
from hpsearch.api.webhooks import ATTEMPTS, Webhook, signature
from hpsearch.errors import InvalidInput
from hpsearch.lifecycle import StudyState
from hpsearch.settings import Settings
from hpsearch.storage import Acting, Database, Delivery, Endings, Outbox, Studies
from tests.builders import a_spec, spec_fields

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@contextmanager
def receiver(answer: Callable[[int], int]) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A webhook's address, and what it was sent; `answer` gives the status of each request, 0 hangs up."""
    heard: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((dict(self.headers), body))
            status = answer(len(heard))
            if status == 0:
                self.connection.close()
                return
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", heard
    finally:
        server.shutdown()
        server.server_close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the Standard Webhooks specification."""
    signed = signature(SecretStr(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_with_hiccups_is_told_everything_in_order(home_with_tables: Settings) -> None:
    hiccups = {1: 0, 2: 302}
    with receiver(lambda count: hiccups.get(count, 204)) as (url, heard):
        hooks = {"team": {"url": url, "secret": SECRET, "events": ["study.queued", "study.cancelled"]}}
        home_with_tables.webhooks_path.write_text(json.dumps(hooks))
        with TestClient(create_app(home_with_tables), base_url="http://127.0.0.1") as api:
            wait_for(lambda: "team" in told_places(home_with_tables))
            assert api.post("/v1/studies", json=spec_fields(name="unnamed")).status_code == 201
            assert api.post("/v1/studies", json=spec_fields(name="tickets", notify=["team"])).status_code == 201
            assert api.post("/v1/studies/tickets/cancel").status_code == 202
            wait_for(lambda: len(heard) >= 4)
            unknown = api.post("/v1/studies", json=spec_fields(name="other", notify=["theirs"]))
            assert (unknown.status_code, unknown.json()["field"]) == (422, "notify")
            assert "whsec" not in api.get("/v1/studies").text
    told = [json.loads(body) for _, body in heard]
    assert [event["kind"] for event in told] == ["study.queued"] * 3 + ["study.cancelled"]
    assert {event["study"] for event in told} == {"tickets"}
    assert told[-1]["text"] == "hpsearch: tickets: study cancelled: cancelled"
    assert [headers["webhook-id"] for headers, _ in heard] == [f"evt_{event['id']}" for event in told]
    for headers, body in heard:
        expected = signature(SecretStr(SECRET), headers["webhook-id"], headers["webhook-timestamp"], body)
        assert headers["webhook-signature"] == expected


def told_places(settings: Settings) -> dict[str, int]:
    database = Database(settings.sql_url)
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT name, last_event FROM hpsearch_webhooks").all()
    database.close()
    return {row[0]: row[1] for row in rows}


def test_one_event_is_claimed_by_one_process_and_a_dead_one_s_turn_passes(migrated_url: str) -> None:
    database = Database(migrated_url)
    outboxes = [Outbox(database), Outbox(database)]
    kinds = ["study.queued", "study.cancelled"]

    def claim(who: int, seconds: float = 60) -> Any:
        return outboxes[who].claim("team", kinds, True, seconds)

    Studies(database).create(a_spec(name="before"))
    assert claim(0) is None  # seen for the first time: it is told what happens from now on
    Studies(database).create(a_spec())
    Endings(database).cancel("tickets", Acting("alice"))
    first = claim(0, seconds=0)
    assert (first.event.kind, first.event.study, first.attempt) == ("study.queued", "tickets", 1)
    second = claim(1)
    assert (second.event, second.attempt) == (first.event, 1), "a process that died is no fault of the receiver"
    assert claim(0) is None
    outboxes[1].done(second)
    outboxes[0].done(first)  # told twice: at least once is what is promised
    last = claim(0)
    assert (last.event.kind, last.attempt) == ("study.cancelled", 1)
    outboxes[0].again(last, 0)
    again = claim(0)
    assert again.attempt == 2
    assert ATTEMPTS > 2
    outboxes[1].again(last, 3600)  # the first attempt ends late: the second's is another's turn
    outboxes[0].again(again, 0)
    assert claim(0).attempt == 3
    outboxes[0].done(last)
    assert claim(0) is None
    database.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"team": {"url": "file:///etc/passwd"}},
        {"team": {"url": "http://user:password@host/"}},
        {"team": {"url": "https://host/", "secret": "whsec_short"}},
        {"team": {"url": "https://host/", "sekret": "x"}},
        [],
    ],
    ids=["scheme", "password", "secret", "key", "shape"],
)
def test_a_wrong_file_is_refused_at_the_start(home_with_tables: Settings, wrong: Any) -> None:
    home_with_tables.webhooks_path.write_text(json.dumps(wrong))
    with pytest.raises(InvalidInput, match=r"webhooks\.json"):
        create_app(home_with_tables)


def test_the_file_counts_as_it_was_when_the_service_started(home_with_tables: Settings) -> None:
    path = home_with_tables.webhooks_path
    path.write_text(json.dumps({"team": {"url": "http://127.0.0.1:9/"}}))
    api = TestClient(create_app(home_with_tables), base_url="http://127.0.0.1")
    path.write_text(json.dumps({"late": {"url": "http://127.0.0.1:9/"}}))
    unheard = api.post("/v1/studies", json=spec_fields(notify=["late"]))
    assert (unheard.status_code, unheard.json()["field"]) == (422, "notify"), "nobody would be told"
    assert "there are: team" in unheard.json()["detail"]
    path.write_text('{"team": {"url": ')
    assert api.post("/v1/studies", json=spec_fields(notify=["team"])).status_code == 201


def test_failed_attempts_are_published_of_webhooks_that_are_told(home_with_tables: Settings) -> None:
    home_with_tables.webhooks_path.write_text(json.dumps({"team": {"url": "http://127.0.0.1:9/"}}))
    database = Database(home_with_tables.sql_url)
    outbox = Outbox(database)

    def published() -> dict[str, float]:
        text = TestClient(create_app(home_with_tables), base_url="http://127.0.0.1").get("/metrics").text
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("hpsearch_webhook_attempts")]
        return {name: float(value) for name, value in rows}

    def claimed(webhook: str) -> Delivery | None:
        return outbox.claim(webhook, ["study.queued"], True, 60)

    for webhook in ("team", "taken-out"):
        claimed(webhook)
    Studies(database).create(a_spec())
    outbox.again(claimed("taken-out") or pytest.fail("nothing to tell"), 0)
    first = claimed("team") or pytest.fail("nothing to tell")
    assert published() == {'hpsearch_webhook_attempts{webhook="team"}': 0}, "on its way: not failed"
    outbox.again(first, 0)
    assert published() == {'hpsearch_webhook_attempts{webhook="team"}': 1}
    outbox.done(claimed("team") or pytest.fail("nothing to tell"))
    assert published() == {'hpsearch_webhook_attempts{webhook="team"}': 0}
    database.close()


def test_by_default_a_webhook_is_told_how_studies_end() -> None:
    told = set(Webhook(url="https://host/").events)
    assert told == {f"study.{state}" for state in StudyState if state.is_over} | {"study.paused", "study.verdict"}
