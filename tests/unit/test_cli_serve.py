"""`hpsearch serve`, before anything of it runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hpsearch.cli.serve import Process, address
from tests.ports import free_port


class _Ready(BaseHTTPRequestHandler):
    """Answers as a service that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def serve(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpsearch", "serve", *arguments]
    environment = {"HPSEARCH_HOME": str(home), "PATH": "", **settings}
    return subprocess.run(
        command, env=environment, cwd=Path.cwd(), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_port_where_another_service_answers_is_not_taken_for_ours(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Ready) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        ended = serve(tmp_path, "--port", str(other.server_port))
        other.shutdown()
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        f"error: port {other.server_port} of 127.0.0.1 is taken, by this service perhaps: stop it, or take another "
        "with --port"
    )


def test_an_address_that_is_not_of_this_machine_is_named(tmp_path: Path) -> None:
    ended = serve(tmp_path, "--host", "192.0.2.1")
    assert ended.returncode == 1
    assert "nobody can listen on port 8000 of 192.0.2.1" in ended.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param(
            {"HPSEARCH_STUDIES_AT_ONCE": "many"}, "HPSEARCH_STUDIES_AT_ONCE: Input should be a valid", id="setting"
        ),
        pytest.param({"HPSEARCH_TOKENS_FILE": "/typo.json"}, "TOKENS_FILE: there is no file /typo.json", id="tokens"),
        pytest.param({"HPSEARCH_HOME": "/dev/null/home"}, "/dev/null/home can't be made: Not a directory", id="home"),
        pytest.param({"HPSEARCH_DATABASE_URL": "sqlite:////nowhere/at.all"}, "unable to open database", id="sqlite"),
        pytest.param({"HPSEARCH_DATABASE_URL": "postgres://host/db"}, "it looks like postgresql+psycopg", id="url"),
        pytest.param(
            {"HPSEARCH_DATABASE_URL": "postgresql+psycopg://me:secret@127.0.0.1:9/db"}, "refused", id="postgresql"
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line_and_no_traceback(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    ended = serve(tmp_path, "--port", str(free_port()), **settings)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr
    assert ended.stderr.strip().endswith("the API could not start: the lines above say why")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("search.example", "http://search.example:8000"),
    ],
)
def test_it_is_told_where_this_machine_reaches_it(host: str, url: str) -> None:
    assert address(host, 8000) == url


def test_a_part_that_died_is_not_started_again_when_all_is_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    stop, part = threading.Event(), Process("part", ["hpsearch.no_such_module"])
    part.process.wait()
    dead = part.process
    stop.set()
    part.look(stop)
    assert part.process is dead
    stop.clear()
    part.look(stop)
    assert part.process is not dead
    part.process.wait()
    assert "the part ended with code 1" in capsys.readouterr().err
