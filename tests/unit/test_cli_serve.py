"""`hpsearch serve`, before anything of it runs."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Ready(BaseHTTPRequestHandler):
    """Answers as a service that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def serve(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpsearch", "serve", *arguments]
    environment = {"HPSEARCH_HOME": str(home), "PATH": ""}
    return subprocess.run(command, env=environment, cwd=Path.cwd(), capture_output=True, text=True, timeout=60)


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
