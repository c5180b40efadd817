"""Ray nodes of their own processes on this machine, which can be killed, told to end or frozen as a whole."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 180.0


def family(root: int) -> list[tuple[int, str]]:
    """A process and all that descend from it and live: their numbers and command lines."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    fields = [line.split(None, 3) for line in listed.splitlines()]
    rows = [(int(pid), int(parent), args) for pid, parent, state, args in fields if not state.startswith("Z")]
    members = {root}
    for _ in rows:
        grown = members | {pid for pid, parent, _ in rows if parent in members}
        if grown == members:
            break
        members = grown
    return [(pid, args) for pid, _, args in rows if pid in members]


def signal_all(processes: list[int], number: signal.Signals) -> None:
    """To those that are there still."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(frozen=True)
class Node:
    """One `ray start --block` with one core."""

    process: subprocess.Popen[bytes]
    id: str
    """Ray's."""

    @classmethod
    def start(cls, log: Path, *arguments: str, **environment: str) -> Node:
        """It has joined its cluster, or is the head of one; arguments are those of `ray start`."""
        common = ["--block", "--disable-usage-stats", "--object-store-memory=134217728", "--num-cpus=1"]
        command = [str(Path(sys.executable).parent / "ray"), "start", *arguments, *common]
        environment = {**os.environ, **environment}
        with log.open("ab") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            for _, args in family(process.pid):
                if "/raylet " in args and (named := re.search(r"--node_id=(\w+)", args)):
                    return cls(process, named[1])
            time.sleep(0.2)
        signal_all([pid for pid, _ in family(process.pid)], signal.SIGKILL)
        raise AssertionError(f"no Ray node: {log.read_text()[-2000:]}")

    def processes(self) -> list[int]:
        """All that live, with what descends from them."""
        return [pid for pid, _ in family(self.process.pid)]

    def kill(self) -> None:
        """End what is left of it."""
        signal_all(self.processes(), signal.SIGKILL)
        self.process.wait()


class Nodes:
    """A cluster: a head, on which the service drives its studies too, and so many nodes besides."""

    def __init__(self, folder: Path, port: int, count: int) -> None:
        self._log = folder / "nodes.log"
        self.address = f"127.0.0.1:{port}"
        own = f"--temp-dir={folder}/ray"  # what others run on this machine finds no address there
        self._head = self._start("--head", f"--port={port}", "--include-dashboard=false", own)
        self._others = [self._join() for _ in range(count)]

    def _start(self, *arguments: str) -> Node:
        return Node.start(self._log, *arguments, RAY_AUTH_MODE="disabled")

    def _join(self) -> Node:
        return self._start(f"--address={self.address}")

    def of(self, device: str) -> Node | None:
        """The node, other than the head, that has this device; its label is host, node and core."""
        short = device.split("/")[1]
        return next((node for node in self._others if node.id.startswith(short)), None)

    def replace(self, node: Node) -> None:
        """End what is left of it; another joins in its place."""
        node.kill()
        self._others.remove(node)
        self._others.append(self._join())

    def stop(self) -> None:
        """End all of it."""
        for node in [*self._others, self._head]:
            node.kill()


class NodeFault:
    """What happens to a whole node, and whether all of it is gone afterwards."""

    def __init__(self, node: Node, number: signal.Signals) -> None:
        self.node, self._number = node, number
        self._processes = node.processes()

    def inject(self) -> None:
        """To all of its processes at once, as if the machine went; to end is asked of its `ray start` alone."""
        asked = self._number == signal.SIGTERM
        signal_all([self.node.process.pid] if asked else self._processes, self._number)

    def thaw(self) -> None:
        """Frozen processes go on: the cluster has given them up long ago, and they don't know it yet."""
        if self._number == signal.SIGSTOP:
            signal_all(self._processes, signal.SIGCONT)

    def seconds_until_gone(self) -> float:
        """How long its processes are there still, unasked; those that stay are an error."""
        began = time.monotonic()
        while any(_lives(pid) for pid in self._processes):
            left = [args for pid, args in family(1) if pid in self._processes]
            assert time.monotonic() - began < PATIENCE, f"still there {PATIENCE:.0f} s after their node went: {left}"
            time.sleep(0.1)
        return time.monotonic() - began


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
