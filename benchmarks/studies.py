"""Many studies at once: does anything fail, how soon does each begin, what do the API and the memory say meanwhile?

    python benchmarks/studies.py [--studies 50] [--trials 2] [--examples 16] [--clients 8] [--postgres]

`hpsearch serve` with a Ray of its own, and real fine-tunes of the bundled model that are as small as they go. All
studies are created at once, by clients that then ask for lists, studies, rankings and trials until everything has
ended. Exit code 1 when a request was answered with 5xx, a study did not finish, params were tried twice, or a log line
speaks of a database that is locked, away or out of connections.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from tests.acceptance.test_whole_path import STUDIES, Service, wait_for  # noqa: E402
from tests.conftest import Postgres, _postgres_binaries  # noqa: E402

TROUBLE = re.compile(r"locked|QueuePool|OperationalError|InterfaceError|database is away|not renewed|Traceback")


def spec(number: int, folder: Path, trials: int) -> dict[str, Any]:
    return {
        "name": f"study-{number}",
        "seed": number,  # or the studies would take their first trials over from one another
        "model": {"base": "models/pydoc-llama", "base_learning_rate": 4e-3},
        "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
        "search_space": {"epochs": 1, "batch_size": 8, "dropout": {"low": 0.0, "high": 0.2}},
        "objective": {"reports_per_epoch": 1},
        "sampler": {"type": "random"},
        "budget": {"trials": trials},
        "parallelism": {"trials_per_device": 1},
    }


def memory(pid: int) -> tuple[float, float]:
    """MiB of a process, and of all below it together (proportional set size)."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more

    def of(one: int) -> float:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        return 0.0

    return of(pid), sum(map(of, family - {pid}))


@contextlib.contextmanager
def database(wanted: bool) -> Iterator[dict[str, str]]:
    if not wanted:
        yield {}
        return
    binaries = _postgres_binaries()
    assert binaries is not None, "PostgreSQL is not installed"
    with tempfile.TemporaryDirectory(prefix="hpsearch-benchmark-") as folder:
        server = Postgres(binaries, Path(folder))
        try:
            yield {"HPSEARCH_DATABASE_URL": server.url("postgres")}
        finally:
            server.stop()


class Load:
    """Clients that ask, and what they were answered."""

    def __init__(self, url: str, names: list[str]) -> None:
        self.url, self.names = url, names
        self.seconds: dict[str, list[float]] = {}
        self.answers: Counter[int | str] = Counter()
        self.over = threading.Event()

    def ask(self, http: httpx.Client, what: str, method: str, path: str, **body: Any) -> None:
        began = time.perf_counter()
        try:
            self.answers[http.request(method, self.url + path, **body).status_code] += 1
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)

    def keep_asking(self, number: int) -> None:
        dice = random.Random(number)
        with httpx.Client(timeout=120) as http:
            while not self.over.wait(0.2):
                name = dice.choice(self.names)
                what, path = dice.choice(
                    [
                        ("list of 100", "?limit=100"),
                        ("a study", f"/{name}"),
                        ("its ranking", f"/{name}/ranking"),
                        ("its trials", f"/{name}/trials"),
                    ]
                )
                self.ask(http, what, "GET", "/v1/studies" + path)

    def tell(self) -> None:
        for what, seconds in self.seconds.items():
            ordered = sorted(seconds)
            p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            print(f"{what:14} n {len(ordered):5}  p50 {p50 * 1e3:7.0f} ms  p99 {p99 * 1e3:7.0f} ms")
        print(f"answers {dict(self.answers)}")


def _child(service: Service, module: str) -> int | None:
    try:
        return service.child(module)
    except StopIteration:
        return None


def run(service: Service, arguments: argparse.Namespace, folder: Path) -> bool:
    for split, count in (("train", arguments.examples), ("validation", 10)):
        lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    names = [f"study-{number}" for number in range(arguments.studies)]
    load, began = Load(service.url, names), time.monotonic()

    def create(number: int) -> None:
        with httpx.Client(timeout=120) as http:
            load.ask(http, "creation", "POST", "/v1/studies", json=spec(number, folder, arguments.trials))

    most: Counter[str] = Counter()
    wait_for(lambda: _child(service, "hpsearch.runner"), 60)  # it starts after the API
    runner, api = service.child("hpsearch.runner"), service.child("hpsearch.api")
    with ThreadPoolExecutor(arguments.clients) as pool:
        list(pool.map(create, range(arguments.studies)))
        print(f"{len(names)} studies created in {time.monotonic() - began:.0f} s", flush=True)
        asking = [pool.submit(load.keep_asking, number) for number in range(arguments.clients)]
        at_once = 0
        while True:
            found = httpx.get(f"{service.url}/v1/studies?limit=100", timeout=120).json()["data"]
            states = Counter(study["state"] for study in found)
            at_once = max(at_once, states["running"])
            own, below = memory(runner)
            for what, value in (("the runner", own), ("Ray and devices", below), ("the API", memory(api)[0])):
                most[what] = max(most[what], round(value))
            if not states["running"] + states["queued"]:
                break
            if time.monotonic() - began > arguments.seconds:
                print(f"not over after {arguments.seconds} s: {dict(states)}")
                break
            time.sleep(1)
        took = time.monotonic() - began
        load.over.set()
        for each in asking:
            each.result()
    waits: list[float] = []
    trials: Counter[str] = Counter()
    repeated = 0
    for name in names:
        at = {event["kind"]: event["at"] for event in reversed(list(service.client.events(name)))}
        waits.append(at.get("trial.reported", float("inf")) - at["study.queued"])
        each = service.client.trials(name)
        trials.update(trial["state"] for trial in each)
        params = [json.dumps(trial["params"], sort_keys=True) for trial in each]
        repeated += len(params) - len(set(params))
    load.tell()
    print(f"states {dict(states)}; at most {at_once} running at once; trials {dict(trials)}, repeated {repeated}")
    print(f"first report after {min(waits):.0f} to {max(waits):.0f} s; all over after {took:.0f} s")
    print("memory at most, MiB:", ", ".join(f"{what} {value:,}" for what, value in most.items()))
    trouble = [line for line in service.log.read_text().splitlines() if TROUBLE.search(line)]
    for line in trouble[:10]:
        print("trouble:", line[:200], "...", line[-700:])
    well = set(load.answers) <= {200, 201} and set(states) == {"finished"} and not trouble and not repeated
    return well and trials == Counter(COMPLETE=arguments.studies * arguments.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--trials", type=int, default=2, help="of each study")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1800, help="at most")
    parser.add_argument("--postgres", action="store_true", help="instead of SQLite")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, database(arguments.postgres) as environment:
        folder = Path(scratch) / "home" / "data"
        folder.mkdir(parents=True)
        service = Service(Path(scratch) / "home", HPSEARCH_LEASE_SECONDS="20", **environment)
        try:
            well = run(service, arguments, folder)
        finally:
            service.stop()
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
