"""Faults injected into a running service: what was lost, what was repeated, how soon it went on.

    python benchmarks/soak.py [--times 2] [--trials 6] [--faults runner-kill,device-stop,...] [--seconds 900]
    python benchmarks/soak.py --minutes 30 --every 20 [--population 4] [--faults ...]
    python benchmarks/soak.py --nodes 2 [--times 2] [--trials 12] [--faults node-kill,node-term,node-stop]

With `--minutes`, a random fault is injected every so many seconds, whether the last one is over or not, and what must
hold at any moment (`invariants.py`) is asked of the database every 5 s. *Time to recover* is then the end of the
longest silence that began around the fault: no trial reported in it.

`hpsearch serve` on PostgreSQL, with a Ray of its own, searches with the bundled model, two trials at a time on one
device. Each fault is injected at a random moment while both report. *Time to recover* is until all trials that it
interrupted have reported anew, or the API answers. Afterwards every trial is trained again alone, from its stored
config, and the curves are compared. What is lost is a trial without its result; what is repeated is a report told
twice, or params evaluated twice without being linked as a retry.

With `--nodes`, the service drives on the head of a Ray cluster of that many nodes more, with one core each. Two devices
are in use, so one is always on a node other than the head: that node is taken away as a whole once all trials report.
Those that were on it have gone on when each has reported from another node. A frozen node is woken then. Of none may a
process stay; another joins in its place.

The disk is a small one of its own (a tmpfs, which takes root), filled to the last byte; without root that fault is left
out. Needs PostgreSQL, and the tests' helpers (`tests/conftest.py`, `tests/acceptance`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from benchmarks.invariants import Invariants, recoveries  # noqa: E402
from hpsearch.crash import HANG_VARIABLE  # noqa: E402
from hpsearch.errors import HpsearchError  # noqa: E402
from tests.acceptance.test_whole_path import STUDIES, Service, wait_for  # noqa: E402
from tests.conftest import Postgres, _postgres_binaries  # noqa: E402
from tests.nodes import NodeFault, Nodes, family  # noqa: E402
from tests.ports import free_port  # noqa: E402

DICE = random.Random(0)
PATIENCE = 240.0


class Soak:
    """One service under fire."""

    def __init__(self, folder: Path, trials: int, nodes: int = 0) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(self.disk)]
        self.has_disk = subprocess.run(mount, check=False).returncode == 0
        binaries = _postgres_binaries()
        assert binaries is not None, "PostgreSQL is not installed here"
        cluster = Path(tempfile.mkdtemp(prefix="hpsearch-soak-"))
        self.postgres = Postgres(binaries, cluster)
        self.conninfo = self.postgres.url("postgres").replace("postgresql+psycopg", "postgresql")
        self.cluster = cluster / "cluster"
        settings = {
            "HPSEARCH_DATABASE_URL": self.postgres.url("postgres"),
            "HPSEARCH_DEVICE_SILENT_SECONDS": "5",
            "HPSEARCH_LEAST_FREE_BYTES": "1000000",
            "HPSEARCH_DEVICE_STALLED_SECONDS": "10",
            HANG_VARIABLE: str(folder / "hang"),
        }
        self.nodes = Nodes(folder, free_port(), nodes) if nodes else None
        if self.nodes is not None:
            settings |= {"HPSEARCH_RAY_ADDRESS": self.nodes.address, "RAY_AUTH_MODE": "disabled"}
        self.service = Service(self.disk / "home", **settings)
        self.name, self.trials, self.at_once = "soak", trials, 4 if nodes else 2
        self.at_interruption: dict[int, int] = {}
        """Exposures of the trials that a fault has interrupted, when that was noticed."""
        self.node_fault: NodeFault | None = None
        self.on_node: dict[int, str] = {}
        """The trials that were on the node that was taken away last, and their device."""

    def submit(self, seconds: float | None = None, population: int = 0) -> None:
        """Queue the study; with a limit, it has more trials than it can train in so many seconds.

        A population of so many exchanges weights every eighth of their training.
        """
        data = {}
        for split, count in (("train", 40), ("validation", 10)):
            lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
            data[split] = str(self.folder / f"{split}.jsonl")
            Path(data[split]).write_text("\n".join(lines) + "\n")
        spec = {
            "name": self.name,
            "model": {"base": "models/pydoc-llama", "base_learning_rate": 4e-3},
            "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "search_space": {
                "epochs": 25,
                "batch_size": {"choices": [4, 8]},
                "learning_rate_multiplier": {"low": 0.1, "high": 1, "log": True},
                "dropout": {"low": 0, "high": 0.2},
            },
            "objective": {"reports_per_epoch": 4},
            "sampler": {"type": "random"},
            "pruner": {"type": "pbt", "population": population, "interval": 12} if population else {"type": "none"},
            "parallelism": {"trials_per_device": 2, "max_concurrent_trials": self.at_once},
            "budget": {"trials": self.trials} if seconds is None else {"trials": None, "wall_clock": seconds},
        }
        path = self.folder / "soak.json"
        path.write_text(json.dumps(spec))
        done = self.service.run("submit", str(path))
        assert done.returncode == 0, done.stderr

    def running(self) -> dict[int, dict[str, Any]]:
        """The trials that train now; nothing while the service does not answer."""
        with contextlib.suppress(httpx.HTTPError, HpsearchError):
            listed = self.service.client.trials(self.name)
            return {trial["number"]: trial for trial in listed if trial["state"] == "RUNNING"}
        return {}

    def is_over(self) -> bool:
        with contextlib.suppress(httpx.HTTPError, HpsearchError):
            return self.service.client.study(self.name)["state"] in ("finished", "failed", "cancelled")
        return False

    def client_state(self) -> str:
        """The study's state; empty while the service does not answer."""
        with contextlib.suppress(httpx.HTTPError, HpsearchError):
            return str(self.service.client.study(self.name)["state"])
        return ""

    def all_report(self) -> bool:
        """Whether as many trials train as may, and more than their baselines are known."""
        running = self.running()
        return len(running) == self.at_once and min(trial["exposure"] for trial in running.values()) > 0

    def has_recovered_since(self, before: dict[int, dict[str, Any]]) -> bool:
        """Whether something was interrupted, and all that was has got further or has ended since."""
        with contextlib.suppress(httpx.HTTPError, HpsearchError):
            now = {trial["number"]: trial for trial in self.service.client.trials(self.name)}
            interrupted = [number for number in before if now[number]["attempts"] > before[number]["attempts"]]
            for number in interrupted:
                self.at_interruption.setdefault(number, now[number]["exposure"])
            elsewhere = all(now[number]["device"] != device for number, device in self.on_node.items())
            return (
                bool(interrupted)
                and self.on_node.keys() <= set(interrupted)
                and elsewhere
                and all(
                    now[number]["exposure"] > self.at_interruption[number]
                    or now[number]["state"] in ("COMPLETE", "PRUNED", "FAIL")
                    for number in interrupted
                )
            )
        return False

    def descendants(self, name: str) -> list[int]:
        """Processes of the service whose program has this in its name (Ray adds what an actor is doing)."""
        return [pid for pid, args in family(self.service.process.pid) if name in args.split()[0]]

    def kill(self, name: str, number: int) -> None:
        found: list[int] = []
        wait_for(lambda: found.extend(self.descendants(name)) or found, PATIENCE)
        os.kill(DICE.choice(found), number)

    def fill_disk(self) -> None:
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as stream:
            while True:
                stream.write(b"\0" * 65536)
                stream.flush()
        try:
            wait_for(lambda: self.client_state() == "paused", PATIENCE)
            reason = self.service.client.study(self.name)["reason"]
            assert reason.startswith("disk_full"), reason
        finally:
            ballast.unlink()
        assert self.service.run("resume", self.name).returncode == 0

    def hang(self) -> None:
        """The next micro-batch of whoever trains never ends."""
        (self.folder / "hang").touch()

    def kill_postgres(self) -> None:
        os.kill(int((self.cluster / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        time.sleep(3)
        for _ in range(20):  # refused until its old processes are gone
            with contextlib.suppress(AssertionError):
                self.postgres.start()
                return
            time.sleep(1)
        raise AssertionError("PostgreSQL does not start again")

    def take_node(self, number: signal.Signals) -> None:
        """A node on which a trial trains."""
        assert self.nodes is not None
        places = {trial["number"]: trial["device"] for trial in self.running().values() if trial["exposure"]}
        node = next(node for node in map(self.nodes.of, places.values()) if node is not None)
        self.on_node = {number: device for number, device in places.items() if self.nodes.of(device) is node}
        self.node_fault = NodeFault(node, number)
        self.node_fault.inject()

    def settle(self) -> None:
        """After the trials of a node went on: wake it, see that all of it goes, and let another join."""
        if self.nodes is None or self.node_fault is None:
            return
        now = self.running()
        where = {number: (device, now[number]["device"]) for number, device in self.on_node.items() if number in now}
        self.node_fault.thaw()
        gone = self.node_fault.seconds_until_gone()
        print(f"  from and to: {where}; its processes were gone {gone:.1f} s later", flush=True)
        self.nodes.replace(self.node_fault.node)
        self.node_fault, self.on_node = None, {}

    def faults(self) -> dict[str, Callable[[], None]]:
        """By name."""
        if self.nodes is not None:
            numbers = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
            return {f"node-{name}": partial(self.take_node, number) for name, number in numbers.items()}
        return {
            "runner-kill": lambda: os.kill(self.service.child("hpsearch.runner"), signal.SIGKILL),
            "runner-term": lambda: os.kill(self.service.child("hpsearch.runner"), signal.SIGTERM),
            "api-kill": lambda: os.kill(self.service.child("hpsearch.api"), signal.SIGKILL),
            "device-kill": lambda: self.kill("ray::Device", signal.SIGKILL),
            "device-term": lambda: self.kill("ray::Device", signal.SIGTERM),
            "device-stop": lambda: self.kill("ray::Device", signal.SIGSTOP),
            "trial-kill": lambda: self.kill("ray::FinetuneTrial", signal.SIGKILL),
            "device-hang": self.hang,
            "raylet-kill": lambda: self.kill("/raylet", signal.SIGKILL),
            "gcs-kill": lambda: self.kill("/gcs_server", signal.SIGKILL),
            "postgres-kill": self.kill_postgres,
            **({"disk-full": self.fill_disk} if self.has_disk else {}),
        }

    def close(self) -> None:
        self.service.stop()
        if self.nodes is not None:
            self.nodes.stop()
        self.postgres.stop()
        if self.has_disk:
            subprocess.run(["umount", "-l", self.disk], check=False)


def check(soak: Soak, most: int | None = None) -> dict[str, Any]:
    """Every trial's outcome; beside that of the same config alone for so many of those that completed."""
    from hpsearch.finetune import finetune, prepare
    from hpsearch.spec.finetune import FinetuneConfig

    client = soak.service.client
    trials = client.trials(soak.name)
    events = list(client.events(soak.name)) if soak.is_over() else []
    told = Counter((event["number"], event["exposure"]) for event in events if event["kind"] == "trial.reported")
    first = [trial for trial in trials if trial["retry_of"] is None and trial["parent"] is None]
    params = Counter(json.dumps(trial["params"], sort_keys=True) for trial in first)
    prepared, deviation = None, 0.0
    for trial in trials:
        shown = client.trial(soak.name, trial["number"])
        if trial["state"] != "COMPLETE" or trial["cut_short"] or trial["parent"] is not None or most == 0:
            continue  # a curve that went on from another trial's is not its config's alone
        most = None if most is None else most - 1
        config = FinetuneConfig.model_validate(shown["config"])
        prepared = prepared or prepare(config)
        alone = finetune(config, prepared=prepared).reports
        assert [report["exposure"] for report in shown["curve"]] == [report.exposure for report in alone]
        for report, other in zip(shown["curve"], alone, strict=True):
            deviation = max(deviation, abs(report["validation_loss"] / other.validation_loss - 1))
    return {
        "states": dict(Counter(trial["state"] for trial in trials)),
        "retries": sum(trial["retry_of"] is not None for trial in trials),
        "reports_told_twice": sum(count - 1 for count in told.values()),
        "params_twice": sum(count - 1 for count in params.values()),
        "attempts": [trial["attempts"] for trial in trials],
        "largest_deviation": deviation,
    }


def soak_for(soak: Soak, options: argparse.Namespace) -> None:
    """Random faults for so many minutes; then the study comes to its end undisturbed, and is checked."""
    injected: list[tuple[str, float]] = []
    try:
        soak.submit(options.minutes * 60, options.population)
        wait_for(lambda: bool(soak.running()), PATIENCE)
        invariants = Invariants(soak.conninfo)
        faults = {
            name: each
            for name, each in soak.faults().items()
            if not options.faults or name in options.faults.split(",")
        }
        deck: list[str] = []
        until = time.monotonic() + options.minutes * 60
        while time.monotonic() + options.every < until and not soak.is_over():
            time.sleep(options.every)
            deck = deck or DICE.sample(sorted(faults), len(faults))  # each as often as the others
            name, at = deck.pop(), time.time()
            try:
                faults[name]()
            except (AssertionError, StopIteration, ProcessLookupError, httpx.HTTPError, HpsearchError) as error:
                print(f"{name}: not injected, the last fault is not over ({type(error).__name__})", flush=True)
                continue
            injected.append((name, at))
            print(f"{name} at {at - injected[0][1]:.0f} s, {len(invariants.violations)} violations", flush=True)
        (soak.folder / "hang").unlink(missing_ok=True)
        if soak.client_state() == "paused":
            soak.service.run("resume", soak.name)
        wait_for(soak.is_over, 1800)
        invariants.stop()
        took = recoveries(soak.conninfo, injected)
        outcome = check(soak, options.checked)
    finally:
        soak.close()
    print("\n| fault | times injected | time to recover, median (longest) |\n|---|---|---|")
    for name, times in sorted(Counter(name for name, _ in injected).items()):
        each = took.get(name)
        seen = f"{statistics.median(each):.0f} s ({max(each):.0f} s)" if each else "the study ended before"
        print(f"| {name} | {times} | {seen} |")
    print(invariants.outline)
    print(json.dumps(outcome))


def main() -> None:
    """Inject, wait, check, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--faults", default="")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--every", type=float, default=20)
    parser.add_argument("--population", type=int, default=0, help="of --minutes: as `pruner: {type: pbt}`")
    parser.add_argument("--nodes", type=int, default=0, help="besides the head; 2 are enough")
    parser.add_argument("--checked", type=int, default=5, help="trials trained again alone at the end of --minutes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-soak-"))
    soak = Soak(folder, options.trials, options.nodes)
    seconds: dict[str, list[float]] = {}
    started = time.monotonic()
    if options.minutes is not None:
        return soak_for(soak, options)
    try:
        soak.submit()
        invariants = Invariants(soak.conninfo)
        faults = soak.faults()
        names = [name for name in options.faults.split(",") if name] or list(faults)
        for name in names * options.times:
            if time.monotonic() - started > options.seconds or soak.is_over():
                break
            wait_for(lambda: soak.is_over() or soak.all_report(), PATIENCE)
            time.sleep(DICE.uniform(0, 3))
            before, at = soak.running(), time.monotonic()
            soak.at_interruption = {}
            faults[name]()
            answers, recovered = soak.service.answers, lambda since=before: soak.has_recovered_since(since)
            wait_for(answers if name == "api-kill" else recovered, PATIENCE)
            seconds.setdefault(name, []).append(time.monotonic() - at)
            print(f"{name}: went on after {seconds[name][-1]:.1f} s", flush=True)
            soak.settle()
        wait_for(soak.is_over, 1200)
        invariants.stop()
        outcome = check(soak)
    finally:
        soak.close()
    print("\n| fault | times injected | time to recover, median (longest) |\n|---|---|---|")
    for name, took in seconds.items():
        print(f"| {name} | {len(took)} | {statistics.median(took):.0f} s ({max(took):.0f} s) |")
    print(invariants.outline)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
