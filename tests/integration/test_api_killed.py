"""kill -9 of the API in the middle of whatever it does: what was answered is there, once, and is told once at least."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from hpsearch.settings import Settings
from tests.builders import spec_fields
from tests.conftest import STUDIES
from tests.integration.test_webhooks import receiver, wait_for
from tests.ports import free_port

WANTED, CLIENTS, KILLS = 200, 8, 3


class Api:
    """The API as a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        own = {"HPSEARCH_HOME": str(settings.home), "HPSEARCH_ALLOWED_ROOTS": f"{STUDIES}:{settings.home}"}
        self._environment = {**os.environ, **own}
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "hpsearch.api", "--port", str(self._port)]
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)

        with httpx.Client() as http:

            def is_ready() -> bool:
                try:
                    return http.get(f"{self.url}/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(is_ready)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_keyed_creations_survive_kills_exactly_once_and_are_told(home_with_tables: Settings) -> None:
    examples = [f'{{"prompt": "what is {number}?", "completion": "{number}"}}\n' for number in range(30)]
    for role, lines in (("train", examples[:20]), ("validation", examples[20:])):
        (home_with_tables.home / f"{role}.jsonl").write_text("".join(lines))
    data = {role: str(home_with_tables.home / f"{role}.jsonl") for role in ("train", "validation")}
    names = [f"study-{number}" for number in range(WANTED)]
    with receiver(lambda _: 204) as (hook, heard):
        told = {"all": {"url": hook, "studies": "all", "events": ["study.queued"]}}
        home_with_tables.webhooks_path.write_text(json.dumps(told))
        api = Api(home_with_tables)
        wait_for(lambda: places(home_with_tables.home))
        answered = 0

        http = httpx.Client(base_url=api.url, timeout=60)  # one for all: each would make a TLS context of its own

        def create(name: str) -> int:
            nonlocal answered
            headers = {"Idempotency-Key": f"key of {name}"}
            while True:
                try:
                    answer = http.post("/v1/studies", json=spec_fields(name=name, data=data), headers=headers)
                except httpx.TransportError:
                    time.sleep(0.5)
                    continue
                answered += 1
                return answer.status_code

        def kill_now_and_then() -> None:
            for kill in range(1, KILLS + 1):
                wait_for(lambda kill=kill: answered >= WANTED * kill // (KILLS + 1))  # type: ignore[misc]
                api.kill()
                api.start()

        try:
            with ThreadPoolExecutor(CLIENTS + 1) as pool:
                killed = pool.submit(kill_now_and_then)
                answers = Counter(pool.map(create, names))
                killed.result()
            assert set(answers) <= {200, 201}
            found: list[str] = []
            has_more = True
            while has_more:
                after = {"after": found[-1]} if found else {}
                page = http.get("/v1/studies", params={"limit": 100, **after}).json()
                found += [study["name"] for study in page["data"]]
                has_more = page["has_more"]
            assert sorted(found) == sorted(names)
            wait_for(lambda: {json.loads(body)["study"] for _, body in heard} == set(names))
        finally:
            http.close()
            api.kill()
    identifiers = [headers["webhook-id"] for headers, _ in heard]
    assert len(set(identifiers)) == WANTED
    assert len(identifiers) <= WANTED + KILLS


def places(home: Path) -> bool:
    """Whether the webhook has its place in the events: it is told what happens from then on."""
    import sqlite3

    with sqlite3.connect(home / "hpsearch.db") as connection:
        return bool(connection.execute("SELECT count(*) FROM hpsearch_webhooks").fetchone()[0])
