"""`hpsearch run`: the service for as long as one study takes, on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from hpsearch.cli.serve import START_SECONDS, STOP_SECONDS, say
from hpsearch.errors import ServiceUnavailable
from hpsearch.service import PARENT
from hpsearch.settings import Settings


@contextlib.contextmanager
def service(port: int) -> Iterator[str]:
    """A service on this machine, at the URL that is yielded: the one that answers there already, or a new one."""
    url = f"http://127.0.0.1:{port}"
    if _answers(url):
        say(f"using the service that runs at {url}")
        yield url
        return
    settings = Settings()
    settings.prepare_home()
    log = settings.home / "service.log"
    say(f"starting the service at {url} (home {settings.home}, log {log.name} there)")
    process = _start(port, log)
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()


def _start(port: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as lines:
        arguments = [sys.executable, "-m", "hpsearch", "serve", "--port", str(port)]
        environment = {**os.environ, PARENT: str(os.getpid())}
        # A session of its own: Ctrl-C ends the watching first, and the service after it, in order.
        return subprocess.Popen(arguments, env=environment, stdout=lines, stderr=lines, start_new_session=True)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(errors="replace").splitlines()[-3:]
            raise ServiceUnavailable("the service did not start; its last lines:\n" + "\n".join(last))
        time.sleep(0.1)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    return False
