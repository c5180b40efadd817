"""`hpsearch serve`: the API and the runner as two processes, and this one watching over both."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

from hpsearch.service import PARENT, end_with_parent

START_SECONDS = 60
STOP_SECONDS = 20
LETTING_GO_SECONDS = 10
"""A service that was killed leaves its API behind, which notices within seconds and lets the port go."""


class Process:
    """One of the two, started again when it dies."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self._arguments = arguments
        self._started = 0.0
        self._wait = 0.5
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, PARENT: str(os.getpid())}
        self._started = time.monotonic()
        # A session of its own: Ctrl-C reaches this process only, which then stops them in order.
        return subprocess.Popen([sys.executable, "-m", *self._arguments], env=environment, start_new_session=True)

    def look(self, stop: threading.Event) -> None:
        """Start it again if it died; later and later while it keeps dying, and not when all is to stop."""
        if self.process.poll() is None:
            return
        lived = time.monotonic() - self._started
        self._wait = 0.5 if lived > 30 else min(self._wait * 2, 30)
        say(f"the {self.name} ended with code {self.process.returncode}; starting it again in {self._wait:g} s")
        if not stop.wait(self._wait):
            self.process = self._start()

    def stop(self, deadline: float) -> None:
        """Ask it to end, and make it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def serve(host: str, port: int) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code is 0 unless the service could not start."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    end_with_parent()  # `hpsearch run`, whose terminal may be closed
    if fault := _cannot_listen(host, port, stop):
        say(f"error: {fault}")
        return 1
    api = Process("API", ["hpsearch.api", "--host", host, "--port", str(port)])
    url = address(host, port)
    if not _wait_until_ready(api, url, stop):
        api.stop(time.monotonic() + STOP_SECONDS)
        return 0 if stop.is_set() else 1
    runner = Process("runner", ["hpsearch.runner"])
    say(f"hpsearch is ready: API {url}/v1 (documentation {url}/v1/docs), dashboard {url}/dashboard")
    while not stop.wait(0.5):
        api.look(stop)
        runner.look(stop)
    say("stopping: running trials are kept, and go on at the next start")
    deadline = time.monotonic() + STOP_SECONDS
    runner.stop(deadline)
    api.stop(deadline)
    return 0


def address(host: str, port: int) -> str:
    """The URL at which this machine reaches a service that listens there."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _cannot_listen(host: str, port: int, stop: threading.Event) -> str:
    """Why nobody can listen there, or nothing.

    Asked before the API is started: where another service answers on the port, it would be taken for ours.
    """
    deadline = time.monotonic() + LETTING_GO_SECONDS
    while True:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API does
                ours.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f"nobody can listen on port {port} of {host}: {error.strerror}"
        else:
            return ""
        if time.monotonic() > deadline or stop.wait(0.2):
            return f"port {port} of {host} is taken, by this service perhaps: stop it, or take another with --port"


def _wait_until_ready(api: Process, url: str, stop: threading.Event) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not stop.is_set():
        if api.process.poll() is not None:
            say("the API could not start: the lines above say why")
            return False
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return True
        stop.wait(0.1)
    if not stop.is_set():
        say(f"the API at {url} is not ready after {START_SECONDS} s: the lines above may say why")
    return False
