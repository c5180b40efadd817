"""The nightly study: its script against a real service, and the cron image's entry point with Debian's real cron."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from hpsearch.api.tokens import Role, add_token
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CRON = ROOT / "services/cron"
HPSEARCH = str(Path(sys.executable).parent / "hpsearch")
PATIENCE = 150
"""Cron's next minute may begin right after it has looked, and three commands start then at once."""
TOLD = "[service_unavailable]\n"
"""The end of the line that a command says when there is no service."""


@dataclass(frozen=True)
class Service:
    """A real API process that holds no studies yet, and the file with a token for it."""

    url: str
    token_file: Path

    def studies(self) -> list[str]:
        headers = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        answer = httpx.get(f"{self.url}/v1/studies", headers=headers, timeout=PATIENCE)
        return [study["name"] for study in answer.raise_for_status().json()["data"]]


def an_environment(home: Path, **more: str) -> dict[str, str]:
    """What cron gives to a job, no more, with the command on the path."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"HOME": str(home), "LOGNAME": "somebody", "SHELL": "/bin/sh", "PATH": path, **more}


@pytest.fixture
def service(tmp_path) -> Iterator[Service]:
    home = tmp_path / "service"
    token_file = tmp_path / "token"
    token_file.write_text(add_token(home / "tokens.json", "cron", Role.SUBMIT) + "\n")
    port = free_port()
    environment = os.environ | {"HPSEARCH_HOME": str(home), "HPSEARCH_ALLOWED_ROOTS": str(ROOT / "studies")}
    for name in ("HPSEARCH_DATABASE_URL", "HPSEARCH_TOKENS_FILE", "HPSEARCH_PARENT_PID"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "hpsearch.api", f"--port={port}"]
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/readyz", timeout=PATIENCE).raise_for_status()
                break
            assert process.poll() is None, (tmp_path / "service.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield Service(url, token_file)
    finally:
        process.kill()
        process.wait()


def settings_of(home: Path, url: str, token_file: Path | str, **more: str) -> None:
    """Write ~/.config/hpsearch/cron.env, as the script's head says."""
    lines = {"HPSEARCH_URL": url, "HPSEARCH_TOKEN_FILE": str(token_file), **more}
    file = home / ".config/hpsearch/cron.env"
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{name}='{value}'\n" for name, value in lines.items()))


def fire(home: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [CRON / "nightly.sh"],
        env=an_environment(home, **environment),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def names_of_the_day() -> set[str]:
    """Of now, and of a minute ago: midnight may have passed."""
    now = datetime.datetime.now(datetime.UTC)
    return {f"nightly-{(now - datetime.timedelta(minutes=late)):%Y-%m-%d}" for late in (0, 1)}


def test_firing_twice_at_once_is_one_study_and_says_nothing(tmp_path, service):
    settings_of(tmp_path, service.url, service.token_file)
    firings = [fire(tmp_path) for _ in range(2)]
    outputs = [firing.communicate(timeout=PATIENCE)[0] for firing in firings]
    assert outputs == ["", ""]
    assert [firing.returncode for firing in firings] == [0, 0]
    assert len(service.studies()) == 1
    assert set(service.studies()) <= names_of_the_day()


def test_without_flock_the_service_alone_keeps_it_one_study(tmp_path, service):
    settings_of(tmp_path, service.url, service.token_file)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cat", "date", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    given = {"PATH": str(tools), "HPSEARCH_BIN": HPSEARCH}
    firings = [fire(tmp_path, **given) for _ in range(3)]
    assert [firing.communicate(timeout=PATIENCE)[0] for firing in firings] == ["", "", ""]
    assert [firing.returncode for firing in firings] == [0, 0, 0]
    assert len(service.studies()) == 1


def test_a_checkout_that_make_installed_needs_no_settings(tmp_path):
    checkout = tmp_path / "hpsearch"
    for folder in ("services/cron", ".venv/bin"):
        (checkout / folder).mkdir(parents=True)
    shutil.copy(CRON / "nightly.sh", checkout / "services/cron")
    command = checkout / ".venv/bin/hpsearch"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    given = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    night = subprocess.run(
        [checkout / "services/cron/nightly.sh"], env=given, capture_output=True, text=True, check=True
    )
    assert night.stdout.startswith("submit ")
    assert night.stdout.split()[2:4] in [["--name", name] for name in names_of_the_day()]


def test_another_spec_is_another_study_named_after_its_file(tmp_path, service):
    settings_of(tmp_path, service.url, service.token_file)
    shutil.copytree(ROOT / "studies/data", tmp_path / "studies/data")
    shutil.copy(ROOT / "studies/nightly.yaml", tmp_path / "studies/wide.yaml")
    for environment in ({}, {"HPSEARCH_NIGHTLY_SPEC": str(tmp_path / "studies/wide.yaml")}):
        firing = fire(tmp_path, **environment)
        assert firing.communicate(timeout=PATIENCE)[0] == ""
    assert {name.split("-")[0] for name in service.studies()} == {"nightly", "wide"}


def test_a_service_that_is_down_is_told_in_one_line_with_an_exit_code_of_its_own(tmp_path):
    (tmp_path / "token").write_text("anything\n")
    settings_of(tmp_path, "http://127.0.0.1:9", tmp_path / "token")
    firing = fire(tmp_path)
    output, _ = firing.communicate(timeout=PATIENCE)
    assert firing.returncode == 69
    assert output.startswith("error: no hpsearch service answers at http://127.0.0.1:9")
    assert output.count("\n") == 1


def test_a_wrong_token_is_told_and_never_shown(tmp_path, service):
    (tmp_path / "wrong").write_text("hps_something-secret\n")
    settings_of(tmp_path, service.url, tmp_path / "wrong")
    firing = fire(tmp_path)
    output, _ = firing.communicate(timeout=PATIENCE)
    assert firing.returncode == 77
    assert output.startswith("error: ")
    assert "something-secret" not in output


def test_output_goes_to_the_log_when_there_is_one(tmp_path):
    (tmp_path / "token").write_text("anything\n")
    log = tmp_path / "nightly.log"
    settings_of(tmp_path, "http://127.0.0.1:9", tmp_path / "token", HPSEARCH_CRON_LOG=str(log))
    firing = fire(tmp_path)
    assert firing.communicate(timeout=PATIENCE)[0] == ""
    assert "no hpsearch service answers" in log.read_text()


def test_the_crontab_fires_the_script_of_a_checkout_once_a_night():
    lines = [line for line in (CRON / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        '17 2 * * * "$HOME/hpsearch/services/cron/nightly.sh"',
    ]


# The real cron, in a container of the poorest kind: a mount and a process namespace.

LOG = "/run/hpsearch-cron.log"

NAMESPACE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]

CONTAINER = """
set -eu
mount --bind "$HOUSE/passwd" /etc/passwd
mount --bind "$HOUSE/shadow" /etc/shadow
mount --bind /dev/null /etc/crontab      # nothing of this machine is to run
mount -t tmpfs tmpfs /etc/cron.d
mount -t tmpfs tmpfs /var/spool/cron
install -d -m 1730 -g crontab /var/spool/cron/crontabs
mount -t tmpfs tmpfs /run
exec "$ENTRYPOINT"
"""


def need_a_container_for_cron() -> None:
    if shutil.which("cron", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Debian's cron is not installed, and CI must have it")
        pytest.skip("cron is not installed")
    if os.geteuid() != 0 or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("cron needs root and namespaces of its own, so that it does not meet the cron of this machine")


@pytest.fixture
def house(service) -> Iterator[Path]:
    """A folder with the home of the user `hpsearch`, whose checkout is this one, and with the file that makes him."""
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-cron-"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    (home / "hpsearch").symlink_to(ROOT)
    # He is not root, as in the image, unless only root can reach the command and its interpreter.
    command = ["setpriv", "--reuid=64123", "--regid=64123", "--clear-groups", "sh", "-c", '"$0" --version', HPSEARCH]
    allowed = subprocess.run(command, capture_output=True, check=False).returncode == 0
    user = 64123 if allowed else 0
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + f"hpsearch:x:{user}:{user}::{home}:/bin/sh\n")
    (folder / "shadow").write_text("root:*:19000:0:99999:7:::\nhpsearch:*:19000:0:99999:7:::\n")
    shutil.copy(service.token_file, folder / "token")
    for path in (home, folder / "token"):
        os.chown(path, user, user)
    yield folder
    shutil.rmtree(folder)


def test_the_real_cron_submits_the_study_and_failures_reach_the_log(tmp_path, service, request):
    need_a_container_for_cron()
    house: Path = request.getfixturevalue("house")
    settings_of(tmp_path, "http://127.0.0.1:9", house / "token", HPSEARCH_BIN=HPSEARCH, HPSEARCH_CRON_LOG=LOG)
    shutil.copytree(tmp_path / ".config", house / "down")
    (house / "down").chmod(0o755)
    # Every minute instead of every night, twice at once, and a third whose service is down.
    nightly = (CRON / "crontab").read_text().replace("17 2 * * *", "* * * * *")
    line = nightly.splitlines()[-1]
    (house / "crontab").write_text(
        f"{nightly}{line}\n" + line.replace('* "', f'* HPSEARCH_CRON_ENV={house}/down/hpsearch/cron.env "') + "\n"
    )
    environment = {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOUSE": str(house),
        "ENTRYPOINT": str(CRON / "entrypoint.sh"),
        "CRONTAB_FILE": str(house / "crontab"),
        "HPSEARCH_URL": service.url,
        "HPSEARCH_TOKEN_FILE": str(house / "token"),
        "HPSEARCH_BIN": HPSEARCH,
        "HPSEARCH_NIGHTLY_SPEC": str(ROOT / "studies/nightly.yaml"),
    }
    log = tmp_path / "cron.log"
    with log.open("wb") as output:
        cron = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", CONTAINER], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not service.studies() or not (said := log.read_text()).endswith(TOLD):
            assert cron.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"studies: {service.studies()}, log: {log.read_text()}"
            time.sleep(0.5)
    finally:
        # The namespace's first process: its end ends cron and the jobs, and `unshare`, which buries it.
        for child in Path(f"/proc/{cron.pid}/task/{cron.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        cron.wait(30)
    assert len(service.studies()) == 1
    assert set(service.studies()) <= names_of_the_day()
    assert set(said.splitlines()) == {
        "error: no hpsearch service answers at http://127.0.0.1:9 (ConnectError): start one with `hpsearch serve`, "
        "or set HPSEARCH_URL [service_unavailable]"
    }
    written = house / "home/.config/hpsearch/cron.env"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert written.stat().st_uid == (house / "home").stat().st_uid
