"""The HTTP client: the service's errors, retries, and events over a line that breaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch import errors
from hpsearch.api.problems import of_error
from hpsearch.client import Client
from tests.builders import spec_fields
from tests.unit.test_errors import KINDS

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def scripted(answers: dict[str, list[Answer]]) -> Iterator[str]:
    """A server that answers each path with the next line of its script, and with the last one for ever."""

    class Scripted(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script = answers[self.path.partition("?")[0]]
            (script.pop(0) if len(script) > 1 else script[0])(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status: int, body: bytes, kind: str = "application/json") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def hang_up(request: BaseHTTPRequestHandler) -> None:
    """The connection breaks before anything was answered."""
    request.close_connection = True
    request.connection.close()


def stream(*ids: int, broken: bool = False, seen: list[str] | None = None) -> Answer:
    """Events of these ids, then the end, or a broken connection."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if seen is not None:
            seen.append(request.path)
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for number in ids:
            text = f"id: {number}\nevent: x\ndata: {json.dumps({'id': number, 'kind': 'x'})}\n\n: ping\n\n".encode()
            request.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        if not broken:
            request.wfile.write(b"0\r\n\r\n")
        request.close_connection = True

    return answer


def study(state: str) -> Answer:
    return reply(200, json.dumps({"name": "tickets", "state": state}).encode())


EVENTS, STUDY = "/v1/studies/tickets/events", "/v1/studies/tickets"


class TestErrors:
    @pytest.mark.parametrize(
        "kind",
        [kind for kind in KINDS if kind not in (errors.HpsearchError, errors.ServiceUnavailable)],
        ids=lambda kind: kind.__name__,
    )
    def test_an_error_of_the_service_comes_back_as_itself(self, kind: type[errors.HpsearchError]) -> None:
        sent = of_error(kind("what happened", "data.train", 7))
        with scripted({STUDY: [reply(sent.status_code, bytes(sent.body), "application/problem+json")]}) as url:
            with pytest.raises(errors.HpsearchError) as raised:
                Client(url).study("tickets")
            assert type(raised.value) is kind
            assert (raised.value.detail, raised.value.field, raised.value.line) == ("what happened", "data.train", 7)

    def test_an_error_in_general_is_not_taken_for_a_failed_trial(self) -> None:
        sent = of_error(errors.HpsearchError("what happened"))
        with scripted({STUDY: [reply(500, bytes(sent.body))]}) as url, pytest.raises(errors.HpsearchError) as raised:
            Client(url).study("tickets")
        assert type(raised.value) is errors.HpsearchError

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (502, b"<html>Bad Gateway</html>", errors.HpsearchError),
            (500, b'{"code": "internal_error", "detail": "x"}', errors.HpsearchError),
            (422, b'{"code": "from_the_future", "detail": "x", "field": "f"}', errors.InvalidInput),
            (404, b"[]", errors.HpsearchError),
            (404, b'"text"', errors.HpsearchError),
            (404, b'{"code": "x", "detail": "x", "line": null, "field": null}', errors.HpsearchError),
            (503, b'{"code": "database_unavailable", "detail": "x"}', errors.HpsearchError),
        ],
        ids=["gateway", "internal", "future", "list", "text", "nulls", "unready"],
    )
    def test_an_answer_of_any_shape_becomes_an_error(
        self, status: int, body: bytes, kind: type[errors.HpsearchError]
    ) -> None:
        with scripted({STUDY: [reply(status, body)]}) as url, pytest.raises(kind) as raised:
            Client(url).study("tickets")
        assert type(raised.value) is kind

    def test_a_download_that_is_refused_writes_no_file(self, tmp_path: Path) -> None:
        sent = of_error(errors.AdapterNotFound())
        path = "/v1/studies/tickets/trials/0/adapter"
        with scripted({path: [reply(404, bytes(sent.body))]}) as url, pytest.raises(errors.AdapterNotFound):
            Client(url).download_adapter("tickets", 0, tmp_path / "weights.tar")
        assert list(tmp_path.iterdir()) == []


class TestTheConnection:
    def test_nothing_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hpsearch.client.RETRIES", 1)  # each waits twice as long as the one before
        with scripted({}) as url:
            pass  # the port was free a moment ago and nobody listens any more
        with pytest.raises(errors.ServiceUnavailable) as raised:
            Client(url).study("tickets")
        assert url in str(raised.value)
        assert "hpsearch serve" in str(raised.value)

    def test_an_address_that_is_none_is_unavailable_at_once(self) -> None:
        with pytest.raises(errors.ServiceUnavailable):
            Client("127.0.0.1:8000").study("tickets")

    def test_a_request_is_repeated_when_the_connection_breaks(self) -> None:
        with scripted({STUDY: [hang_up, hang_up, study("queued")]}) as url:
            assert Client(url).study("tickets")["state"] == "queued"

    def test_address_and_token_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def answer(request: BaseHTTPRequestHandler) -> None:
            seen.append(request.headers["Authorization"])
            study("queued")(request)

        with scripted({STUDY: [answer]}) as url:
            monkeypatch.setenv("HPSEARCH_URL", f"{url}/")
            monkeypatch.setenv("HPSEARCH_TOKEN", "hps_secret")
            assert Client().study("tickets")["state"] == "queued"
        assert seen == ["Bearer hps_secret"]


class TestEvents:
    def test_events_go_on_behind_the_last_one_when_the_line_breaks(self) -> None:
        seen: list[str] = []
        script = {
            EVENTS: [stream(1, 2, broken=True, seen=seen), hang_up, stream(3, seen=seen), stream(4, seen=seen)],
            STUDY: [study("running"), study("finished")],
        }
        with scripted(script) as url:  # type: ignore[arg-type]
            told = [event["id"] for event in Client(url).events("tickets")]
        assert told == [1, 2, 3, 4]
        assert [path.partition("after=")[2] for path in seen] == ["0", "2", "3"]

    @pytest.mark.parametrize("state", ["finished", "failed", "cancelled"])
    def test_events_end_when_the_study_is_over(self, state: str) -> None:
        with scripted({EVENTS: [stream(1)], STUDY: [study(state)]}) as url:
            assert [event["id"] for event in Client(url).events("tickets")] == [1]

    def test_events_of_a_study_that_is_not_there_are_an_error(self) -> None:
        sent = of_error(errors.StudyNotFound())
        with scripted({EVENTS: [reply(404, bytes(sent.body))]}) as url, pytest.raises(errors.StudyNotFound):
            next(Client(url).events("tickets"))


def test_the_client_speaks_with_the_real_service(service_url: str, tmp_path: Path, api: TestClient) -> None:
    client = Client(service_url)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    assert client.upload(tmp_path / "data.jsonl")["examples"] == 12
    assert client.check(spec_fields())["examples"]["train"] == 400
    first, created = client.submit(spec_fields(), "key")
    assert created
    assert client.submit(spec_fields(), "key") == (first, False)
    assert [row["name"] for row in client.studies()["data"]] == ["tickets"]
    assert client.trials("tickets") == []
    assert client.ranking("tickets")["ranking"] == []
    with pytest.raises(errors.NameTaken):
        client.submit(spec_fields(seed=4))
    with pytest.raises(errors.TrialNotFound):
        client.trial("tickets", 0)
    with pytest.raises(errors.IllegalMove):
        client.delete("tickets")
    assert client.cancel("tickets")["state"] == "cancelled"
    kinds = ["study.queued", "study.cancel_requested", "study.cancelled"]
    assert [event["kind"] for event in client.events("tickets")] == kinds
    client.delete("tickets")
    with pytest.raises(errors.StudyNotFound):
        client.study("tickets")
