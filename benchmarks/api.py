"""What the HTTP door bears: kills while studies are created, many clients at once, a study of thousands of trials.

    python benchmarks/api.py kills      # 200 keyed POSTs from 8 clients while the API is killed with -9 at random
    python benchmarks/api.py crowd      # 64 clients at once, 5 creations each, then lists
    python benchmarks/api.py large      # a study of 10,000 trials: pages, ranking, detail, from 64 clients at once

Each starts a service of its own (the API as a process, SQLite in a temporary home) and prints times in milliseconds,
what was answered, and the API's resident memory. Exit code 1 when something was lost or answered with 5xx.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
SPACE = {"epochs": {"low": 1, "high": 3}, "learning_rate_multiplier": {"low": 0.1, "high": 10, "log": True}}


class Api:
    """The API as a process that can be killed and started again on its port."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **os.environ, "HPSEARCH_HOME": str(home), "HPSEARCH_ALLOWED_ROOTS": str(ROOT / "studies"), "TZ": "UTC"
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "hpsearch.api", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.DEVNULL)
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def mebibytes(self) -> float:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def spec(name: str) -> dict[str, Any]:
    data = {"train": "data/tickets/train.jsonl", "validation": "data/tickets/validation.jsonl"}
    return {"name": name, "model": {"base": "models/pydoc-llama"}, "data": data, "search_space": SPACE}


def told(what: str, seconds: list[float], answers: Counter[Any]) -> None:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{what:40} n {len(ordered):5}  p50 {p50 * 1e3:8.1f}  p99 {p99 * 1e3:8.1f}  {dict(answers)}", flush=True)


def at_once(clients: int, requests: int, ask: Callable[[httpx.Client, int], httpx.Response]) -> Any:
    """Seconds and answers of `clients` that each ask `requests` times."""
    seconds: list[float] = []
    answers: Counter[Any] = Counter()

    def one(client: int) -> None:
        with httpx.Client(timeout=120) as http:
            for number in range(requests):
                began = time.perf_counter()
                answer = ask(http, client * requests + number)
                seconds.append(time.perf_counter() - began)
                answers[answer.status_code] += 1

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    return seconds, answers


def kills(home: Path, wanted: int, clients: int, times: int) -> bool:
    api = Api(home)
    broken: Counter[str] = Counter()
    done = threading.Event()
    names = [f"study-{number}" for number in range(wanted)]

    http = httpx.Client(base_url=api.url, timeout=60)

    def create(number: int) -> int:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        while True:
            try:
                answer = http.post("/v1/studies", json=spec(names[number]), headers=headers)
            except httpx.TransportError as error:
                broken[type(error).__name__] += 1
                time.sleep(0.5)
                continue
            return answer.status_code

    def killer() -> None:
        for _ in range(times):
            if done.wait(random.uniform(0.2, 2.0)):
                return
            api.kill()
            api.start()

    thread = threading.Thread(target=killer)
    thread.start()
    with ThreadPoolExecutor(clients) as pool:
        answers = Counter(pool.map(create, range(wanted)))
    done.set()
    thread.join()
    found: list[str] = []
    while True:
        params = {"limit": 100} | ({"after": found[-1]} if found else {})
        page = httpx.get(f"{api.url}/v1/studies", params=params, timeout=60).json()
        found += [study["name"] for study in page["data"]]
        if not page["has_more"]:
            break
    api.kill()
    print(f"kill -9 {times} times: {len(found)} studies of {wanted}; answers {dict(answers)}; broken {dict(broken)}")
    return sorted(found) == sorted(names) and set(answers) <= {200, 201}


def crowd(home: Path, clients: int, requests: int) -> bool:
    api = Api(home)
    seconds, answers = at_once(
        clients, requests, lambda http, n: http.post(f"{api.url}/v1/studies", json=spec(f"study-{n}"))
    )
    told(f"{clients} clients create", seconds, answers)
    listed, seen = at_once(clients, requests, lambda http, _: http.get(f"{api.url}/v1/studies?limit=100"))
    told(f"{clients} clients list 100", listed, seen)
    print(f"memory {api.mebibytes():.0f} MiB")
    api.kill()
    return set(answers) == {201} and set(seen) == {200}


def fill(home: Path, name: str, trials: int) -> None:
    """A study with so many trials of ten reports each, as a runner would have left it.

    The first is written by Optuna; the others are its rows again with other values, which is faster by hours.
    """
    import datetime as dt
    import json

    import optuna
    import sqlalchemy as sa
    from optuna.distributions import FloatDistribution

    from hpsearch.settings import Settings
    from hpsearch.storage import optuna_storage

    url = Settings(home=home).sql_url
    study = optuna.create_study(study_name=name, storage=optuna_storage(url))
    study.set_user_attr("baseline", {"validation_loss": 4.6, "evaluation_contract": "contract"})
    drawn = random.Random(0)
    curve = [
        {
            "exposure": 40 * place,
            "epoch": place / 10,
            "validation_loss": 3 / (place + 1),
            "validation_bits_per_byte": 1.0,
            "validation_token_accuracy": 0.5,
            "validation_prompt_loss": 2.0,
            "training_loss": 2.0,
            "tokens": 4000 * place,
            "seconds": 1.0 * place,
        }
        for place in range(10)
    ]
    attributes = {"evaluation_contract": "contract", "best_epoch": 0.9, "device_seconds": 9.0, "tokens": 36_000}
    trial = optuna.trial.create_trial(
        params={"learning_rate_multiplier": 1.0},
        distributions={"learning_rate_multiplier": FloatDistribution(0.1, 10, log=True)},
        value=0.5,
        user_attrs={"curve": curve, **attributes},
        intermediate_values={int(report["exposure"]): float(report["validation_loss"]) for report in curve},
    )
    trial.datetime_start = trial.datetime_complete = dt.datetime.now()
    study._storage.create_new_trial(study._study_id, template_trial=trial)
    engine = sa.create_engine(url)
    tables = sa.MetaData()
    with engine.begin() as connection:
        tables.reflect(connection)
        rows = tables.tables["trials"]
        first = connection.execute(sa.select(rows)).mappings().one()
        numbers = range(1, trials)
        key = first["trial_id"]
        connection.execute(rows.insert(), [{**first, "trial_id": key + n, "number": n} for n in numbers])
        for kind in ("trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes"):
            table = tables.tables[kind]
            (own,) = table.primary_key.columns
            copied = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for row in copied:
                del row[own.name]
            lot = []
            for number in numbers:
                for row in copied:
                    changes = {"trial_id": key + number}
                    if kind == "trial_values":
                        changes["value"] = drawn.random()
                    if row.get("key") == "curve":
                        again = [{**r, "validation_loss": r["validation_loss"] + drawn.random()} for r in curve]
                        changes["value_json"] = json.dumps(again)
                    lot.append({**row, **changes})
            connection.execute(table.insert(), lot)
    engine.dispose()


def large(home: Path, trials: int, clients: int, requests: int) -> bool:
    api = Api(home)
    name = "large"
    assert httpx.post(f"{api.url}/v1/studies", json=spec(name), timeout=60).status_code == 201
    fill(home, name, trials)
    print(f"memory before {api.mebibytes():.0f} MiB")
    study = f"{api.url}/v1/studies/{name}"
    well = True
    for what, path in (
        ("the first ranking (reads all trials)", "/ranking?top=10"),
        ("ranking, top 10", "/ranking?top=10"),
        ("the study", ""),
        ("a page of 100 trials", "/trials?limit=100"),
        ("a page of 100 in the middle", f"/trials?limit=100&after={trials // 2}"),
        ("one trial", f"/trials/{trials // 2}"),
    ):
        one = what.startswith("the first")
        for count in (1,) if one else (1, clients):
            ask = lambda http, _, path=path: http.get(study + path)  # noqa: E731
            seconds, answers = at_once(count, 1 if one else requests, ask)
            told(f"{what}, {count} at once", seconds, answers)
            well = well and set(answers) == {200}
    print(f"memory after {api.mebibytes():.0f} MiB")
    api.kill()
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kills", "crowd", "large"])
    parser.add_argument("--clients", type=int)
    parser.add_argument("--requests", type=int, default=5, help="of each client")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--home", type=Path, help="instead of a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.home or Path(scratch) / "home"
        if arguments.part == "kills":
            well = kills(home, arguments.studies, arguments.clients or 8, arguments.kills)
        elif arguments.part == "crowd":
            well = crowd(home, arguments.clients or 64, arguments.requests)
        else:
            well = large(home, arguments.trials, arguments.clients or 64, arguments.requests)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
