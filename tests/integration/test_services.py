"""What is deployed, as far as it can be checked without a container engine: the files agree with each other, and
every service's entry point and health check do their work as plain processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import yaml

from hpsearch.spec import StudySpec
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (SERVICES / "Dockerfile").read_text()
OURS = ("api", "dashboard", "runner", "worker", "cron")
MARK = "HPSEARCH_TEST_PROCESS"
PATIENCE = 150


def an_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HPSEARCH_", "RAY_"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TZ": "UTC", **more}


class Started:
    """An entry point as a plain process, with everything that it starts."""

    def __init__(self, script: Path, *arguments: str, log: Path, **environment: str) -> None:
        self.log, self.mark = log, uuid.uuid4().hex
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [script, *arguments],
                cwd=log.parent,  # as in the image: only what is installed is found
                env=an_environment(**environment, **{MARK: self.mark}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no '{text}' within {seconds} s: {self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def wait_for_answer(self, url: str, seconds: float = PATIENCE) -> httpx.Response:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(url, timeout=30)
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no answer from {url}: {self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def terminate(self, seconds: float = PATIENCE) -> int:
        self.process.terminate()
        return self.process.wait(seconds)

    def end(self) -> None:
        """Kill all that carry the mark, daemons too: Ray's are in nobody's hands once `ray start` has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for _ in range(50):
            marked = [pid for pid in _processes() if self.mark.encode() in _environ(pid)]
            for pid in marked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not marked:
                break
            time.sleep(0.1)
        self.process.wait()


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


# The files.


def stages() -> dict[str, str]:
    """Stage -> its text, and before it the text of the stages that it is made from."""
    found: dict[str, str] = {}
    for text in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.M)[1:]:
        origin, name = re.match(r"FROM (\S+) AS (\S+)", text).groups()
        found[name] = found.get(origin, "") + text
    return found


def test_the_compose_file_has_every_part_of_the_service():
    assert set(COMPOSE["services"]) == {"postgres", *OURS}


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_built_from_a_stage_of_its_name_that_exists(name):
    build = COMPOSE["services"][name]["build"]
    assert (ROOT / build["context"]).samefile(ROOT)
    assert (ROOT / build["context"] / build["dockerfile"]).samefile(SERVICES / "Dockerfile")
    assert build["target"] == name
    assert name in stages()


@pytest.mark.parametrize("name", OURS)
def test_the_entry_point_and_the_health_check_of_an_image_are_copied_into_it(name):
    text = stages()[name]
    copies = re.findall(r"^COPY (\S+) (\S+)$", text, re.M)
    for script in (re.findall(r'^ENTRYPOINT \["(.+)"\]', text, re.M)[-1], re.findall(r'CMD \["(.+)"\]', text)[-1]):
        sources = [
            ROOT / source / Path(script).relative_to(Path("/opt/hpsearch") / target)
            for source, target in copies
            if Path(script).is_relative_to(Path("/opt/hpsearch") / target)
        ]
        assert sources, f"nothing copied is {script}"
        assert sources[-1].is_file()
        assert sources[-1].parent == SERVICES / name


@pytest.mark.parametrize("name", OURS)
def test_what_an_entry_point_sources_or_calls_is_in_its_image(name):
    copied = [ROOT / source for source in re.findall(r"^COPY (services\S+) ", stages()[name], re.M)]
    for script in (SERVICES / name).glob("*.sh"):
        for other in re.findall(r'"\$\(dirname "\$0"\)/(\S+?)"', script.read_text()):
            path = (script.parent / other).resolve()
            assert path.is_file()
            assert any(path == place or path.is_relative_to(place) for place in copied), f"{path} is not copied"


def test_everything_that_the_dockerfile_copies_exists_and_is_sent_to_the_builder():
    sent = [line[1:] for line in (SERVICES / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")]
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), f"COPY {source}"
            assert Path(source).parts[0] in sent, f"{source} is ignored"


def test_secrets_are_not_sent_to_the_builder():
    lines = (SERVICES / "Dockerfile.dockerignore").read_text().split("\n")
    assert lines.index("services/secrets") > lines.index("!services")


@pytest.mark.parametrize("name", ["api", "dashboard", "runner", "worker"])
def test_an_image_does_not_run_as_root(name):
    assert re.findall(r"^USER (\S+)$", stages()[name], re.M)[-1] == "hpsearch"


@pytest.mark.parametrize("script", sorted(SERVICES.rglob("*.sh")), ids=lambda path: str(path.relative_to(SERVICES)))
def test_a_script_is_plain_shell(script):
    subprocess.run(["sh", "-n", script], check=True)
    if script.parent != SERVICES:  # those are sourced
        assert script.stat().st_mode & stat.S_IXUSR
        assert script.read_text().startswith("#!/bin/sh\n")


def test_ports_are_published_on_this_machine_only():
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_published_ports_are_those_that_the_images_listen_on():
    for name in ("api", "dashboard"):
        inside = COMPOSE["services"][name]["ports"][0].split(":")[-1]
        assert re.findall(r"^EXPOSE (\d+)$", stages()[name], re.M)[-1] == inside
        assert f"--port {inside}" in (SERVICES / name / "entrypoint.sh").read_text()
        assert f"http://127.0.0.1:{inside}" in (SERVICES / name / "health.sh").read_text()


def test_every_volume_network_secret_and_dependency_that_is_named_is_there():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for name, value in service.get("environment", {}).items():
            if value.startswith("/run/secrets/"):
                assert value.removeprefix("/run/secrets/") in service["secrets"], name


def test_everybody_who_reads_models_and_data_sees_them_at_the_same_place():
    volumes = [COMPOSE["services"][name]["volumes"] for name in ("api", "runner", "worker")]
    assert volumes[0] == volumes[1] == volumes[2]
    assert any(volume.split(":")[1] == "/var/lib/hpsearch" for volume in volumes[0])
    assert "HPSEARCH_HOME=/var/lib/hpsearch" in stages()["python"]


def test_the_worker_reserves_the_gpus():
    devices = COMPOSE["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_the_database_and_ray_are_on_networks_of_their_own():
    on = {
        network: {name for name, service in COMPOSE["services"].items() if network in service["networks"]}
        for network in COMPOSE["networks"]
    }
    assert on["ray"] == {"runner", "worker"}
    assert on["database"] == {"postgres", "api", "dashboard", "runner"}
    assert COMPOSE["networks"]["database"]["internal"] is True


def test_the_nightly_spec_is_valid_and_starts_from_the_models_own_learning_rate():
    spec = StudySpec.model_validate(yaml.safe_load((ROOT / "studies/nightly.yaml").read_text()))
    assert len(spec.search_space.varying()) == 6
    for path in (spec.data.train, spec.data.validation):
        assert (ROOT / "studies" / path).is_file()
    readme = (ROOT / "studies" / spec.model.base / "README.md").read_text()
    assert spec.model.base_learning_rate == float(re.search(r"\| peak learning rate \| (\S+) \|", readme)[1])


# The secrets.


@pytest.fixture(scope="module")
def secrets(tmp_path_factory) -> Path:
    """What the page about secrets makes, in a folder of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "services/secrets").mkdir(parents=True)
    block = re.search(r"```sh\n(.+?)```", (SERVICES / "secrets/README.md").read_text(), re.S)[1]
    environment = an_environment(HPSEARCH_HOME=str(folder / "unused"))
    subprocess.run(["sh", "-eu", "-c", block], cwd=folder, env=environment, check=True)
    return folder / "services/secrets"


def test_the_page_about_secrets_makes_every_secret_of_the_compose_file(secrets):
    for secret in COMPOSE["secrets"].values():
        made = secrets / Path(secret["file"]).relative_to("services/secrets")
        assert made.stat().st_size > 0
        assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_the_dashboard_knows_read_tokens_only(secrets):
    assert COMPOSE["services"]["dashboard"]["environment"]["HPSEARCH_TOKENS_FILE"] == "/run/secrets/readers"
    assert {row["role"] for row in json.loads((secrets / "readers.json").read_text())} == {"read"}


def test_a_password_with_any_characters_reaches_the_database_url(tmp_path):
    password = "p@ss:w/rd %41?#&'é"
    (tmp_path / "password").write_text(password + "\n")
    environment = an_environment(DATABASE_HOST="postgres", DATABASE_PASSWORD_FILE=str(tmp_path / "password"))
    command = f'. {SERVICES}/database-url.sh; printf %s "$HPSEARCH_DATABASE_URL"'
    printed = subprocess.run(["sh", "-eu", "-c", command], env=environment, check=True, capture_output=True, text=True)
    url = sa.make_url(printed.stdout)
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg", "postgres", 5432, "hpsearch")
    assert (url.username, url.password) == ("hpsearch", password)


def test_a_service_without_its_password_file_does_not_start(tmp_path):
    environment = an_environment(DATABASE_HOST="postgres", DATABASE_PASSWORD_FILE=str(tmp_path / "none"))
    ended = subprocess.run(
        [SERVICES / "api/entrypoint.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "No such file" in ended.stderr


# The API and the dashboard.


def healthy(service: str, *arguments: str, **environment: str) -> bool:
    command = [SERVICES / service / "health.sh", *arguments]
    return subprocess.run(command, env=an_environment(**environment), capture_output=True, check=False).returncode == 0


def gets_healthy(service: str, *arguments: str, **environment: str) -> bool:
    """A check gives the service some seconds, and is made again when they were too few, as by a container engine."""
    deadline = time.monotonic() + PATIENCE
    while not (found := healthy(service, *arguments, **environment)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_the_api_starts_answers_and_stops(tmp_path, secrets):
    url = f"http://127.0.0.1:{(port := free_port())}"
    assert not healthy("api", url)
    # On every address, as in the container: only a tokens file makes that possible.
    api = Started(
        SERVICES / "api/entrypoint.sh",
        f"--port={port}",
        log=tmp_path / "log",
        HPSEARCH_HOME=str(tmp_path / "home"),
        HPSEARCH_TOKENS_FILE=str(secrets / "tokens.json"),
    )
    try:
        assert api.wait_for_answer(f"{url}/readyz").status_code == 200
        assert gets_healthy("api", url)
        assert httpx.get(f"{url}/v1/studies", timeout=PATIENCE).status_code == 401
        token = (secrets / "cron_token").read_text().strip()
        assert (
            httpx.get(f"{url}/v1/studies", headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE).status_code
            == 200
        )
        assert api.terminate() in (0, -signal.SIGTERM)
    finally:
        api.end()


def test_the_api_does_not_start_on_every_address_without_tokens(tmp_path):
    environment = an_environment(HPSEARCH_HOME=str(tmp_path))
    command = [SERVICES / "api/entrypoint.sh", f"--port={free_port()}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert "without tokens" in ended.stderr


def test_the_dashboard_shows_studies_and_refuses_changes(tmp_path, secrets):
    url = f"http://127.0.0.1:{(port := free_port())}"
    dashboard = Started(
        SERVICES / "dashboard/entrypoint.sh",
        f"--port={port}",
        log=tmp_path / "log",
        HPSEARCH_HOME=str(tmp_path / "home"),
        HPSEARCH_TOKENS_FILE=str(secrets / "readers.json"),
    )
    try:
        assert dashboard.wait_for_answer(f"{url}/readyz").status_code == 200
        assert gets_healthy("dashboard", url)
        login = ("anybody", (secrets / "read_token").read_text().strip())
        assert httpx.get(f"{url}/dashboard", auth=login, follow_redirects=True, timeout=PATIENCE).status_code == 200
        assert httpx.get(f"{url}/dashboard", follow_redirects=True, timeout=PATIENCE).status_code == 401
        spec = json.loads(json.dumps(yaml.safe_load((ROOT / "studies/nightly.yaml").read_text())))
        assert httpx.post(f"{url}/v1/studies", json=spec, auth=login, timeout=PATIENCE).status_code == 403
        assert (
            httpx.post(f"{url}/api/studies", json={"study_name": "x"}, auth=login, timeout=PATIENCE).status_code == 405
        )
        assert httpx.get(f"{url}/v1/studies", auth=login, timeout=PATIENCE).json()["data"] == []
    finally:
        dashboard.end()


# Ray.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """A Ray head with a runner, and a worker that joined it. Nothing of it is left, and no other Ray is touched."""
    folder = Path(tempfile.mkdtemp(prefix="hps", dir="/tmp"))  # Ray's sockets don't fit into a longer path
    logs = tmp_path_factory.mktemp("cluster")
    token = folder / "token"
    token.write_text(uuid.uuid4().hex + "\n")
    environment = {
        "HPSEARCH_HOME": str(folder / "home"),
        "RAY_HEAD": f"localhost:{free_port()}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    head = Started(SERVICES / "runner/entrypoint.sh", f"--temp-dir={folder}/h", log=logs / "runner", **environment)
    started = [head]
    try:
        head.wait_for("runner ready")
        script = SERVICES / "worker/entrypoint.sh"
        worker = Started(script, f"--temp-dir={folder}/w", "--num-cpus=1", log=logs / "worker", **environment)
        started.append(worker)
        worker.wait_for("Ray runtime started")
        yield {"runner": head, "worker": worker, "environment": environment, "folder": folder}
    finally:
        for process in reversed(started):
            process.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_worker_joins_the_head_and_brings_its_cores(cluster):
    program = (
        "import json, time, ray; ray.init(log_to_driver=False)\n"
        "def found(): return [sum(node['Alive'] for node in ray.nodes()), ray.cluster_resources().get('CPU')]\n"
        f"end = time.monotonic() + {PATIENCE}\n"
        "while found() != [2, 1.0] and time.monotonic() < end: time.sleep(0.1)\n"  # nodes tell each other by and by
        "print(json.dumps(found()))"
    )
    environment = an_environment(**cluster["environment"], RAY_ADDRESS=cluster["environment"]["RAY_HEAD"])
    command = [sys.executable, "-c", program]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(asked.stdout.splitlines()[-1]) == [2, 1.0]


@pytest.mark.parametrize("service", ["runner", "worker"])
def test_a_node_is_healthy_while_the_head_answers(cluster, service):
    assert gets_healthy(service, **cluster["environment"])


def test_nobody_joins_without_the_clusters_token(cluster):
    (cluster["folder"] / "other").write_text(uuid.uuid4().hex)
    other = cluster["environment"] | {"RAY_AUTH_TOKEN_PATH": str(cluster["folder"] / "other")}
    assert not healthy("worker", **other)


def test_the_runner_and_the_worker_stop_when_they_are_told_to(cluster):
    assert cluster["worker"].terminate() in (0, 1, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert cluster["runner"].terminate() == 0
