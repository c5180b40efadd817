"""What the tests stand on: a home of their own, and both databases for real."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvicorn
from starlette.testclient import TestClient
from xdist.scheduler import LoadFileScheduling

from hpsearch.api.app import create_app
from hpsearch.crash import HANG_VARIABLE
from hpsearch.service import use_utc
from hpsearch.settings import Settings
from hpsearch.storage import Database, optuna_storage
from tests.ports import free_port

# Nothing here may reach a network; the hub's client, torch and transformers are imported later.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
use_utc()
os.environ.setdefault("OMP_NUM_THREADS", "1")
# At Ray's 15, its workers wait for all tests that run beside them; at 0, trials that train until something happens take
# the time of those tests.
os.environ["RAY_worker_niceness"] = "5"  # noqa: SIM112 - Ray spells it so
for colours in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):  # with any, Rich and Typer take a pipe for a terminal
    os.environ.pop(colours, None)

# How long an example takes says more about what else this machine does. The same examples each time: what fails here
# fails again. `pytest --hypothesis-profile=default` looks for new ones.
hypothesis.settings.register_profile(
    "hpsearch", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("hpsearch")

STUDIES = Path(__file__).parent.parent / "studies"
FOLDERS = ("acceptance", "integration", "contract", "unit")


class FewRays(LoadFileScheduling):
    """In several processes (`-n`), a file's tests stay together, and those files of a folder that need Ray.

    Each process in which they come starts a cluster of its own.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return f"{file.parent} on Ray" if _needs_ray(self.config.rootpath / file) else str(file)


@functools.cache
def _needs_ray(file: Path) -> bool:
    return "ray_address" in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FewRays:
    return FewRays(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for processes first, Ray's before all; what computes fills the cores to the end."""
    places = {folder: place for place, folder in enumerate(FOLDERS)}
    items.sort(key=lambda item: (not _needs_ray(item.path), places.get(item.path.parent.name, len(places))))


@pytest.fixture(autouse=True)
def _no_settings_of_the_person_who_runs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HPSEARCH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    """The settings of a service with an empty home, which may read the bundled models and data."""
    # The library that downloads datasets is slow to load the first time, on a busy machine above all.
    settings = Settings(home=tmp_path / "home", allowed_roots=(STUDIES,), hub_timeout_seconds=250)
    settings.prepare_home()
    return settings


class Postgres:
    """A PostgreSQL server of our own, in a temporary folder, on a free port, gone with the session."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._cluster = folder / "cluster"
        self._as_postgres: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as_postgres = ["runuser", "-u", "postgres", "--"]
        self._run("initdb", "-D", self._cluster, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self._port = free_port()
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Again, after somebody killed it."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        log = self._folder / "server.log"
        self._run("pg_ctl", "-D", self._cluster, "-l", log, "-w", "-t", "200", "-o", options, "start")

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [*self._as_postgres, str(self._binaries / program), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=250)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._cluster, "-m", "immediate", "-w", "stop")

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(f"host=127.0.0.1 port={self._port} user=postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def url(self, database: str, user: str = "postgres", password: str = "") -> str:
        login = f"{user}:{password}" if password else user
        return f"postgresql+psycopg://{login}@127.0.0.1:{self._port}/{database}"


def _postgres_binaries() -> Path | None:
    on_path = shutil.which("pg_ctl")
    if on_path and shutil.which("initdb"):
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def start_postgres() -> Iterator[Callable[[], Postgres]]:
    """Start the server when a test first asks. None on this machine: skip on a laptop, fail in CI."""
    servers: list[Postgres] = []
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-postgres-"))  # not tmp_path: `postgres` can't enter those of root

    @functools.cache
    def start() -> Postgres:
        binaries = _postgres_binaries()
        if binaries is None:
            missing = "PostgreSQL is not installed here (initdb and pg_ctl)"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        servers.append(Postgres(binaries, folder))
        return servers[0]

    yield start
    for server in servers:
        server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def postgres(start_postgres: Callable[[], Postgres]) -> Postgres:
    """The session's PostgreSQL server."""
    return start_postgres()


@contextlib.contextmanager
def _new_database(server: Postgres, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server.url(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with _new_database(postgres, "template1") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind that the service runs on."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path / 'test.db'}"


def _make_tables(url: str) -> None:
    Database(url).close()
    optuna_storage(url).engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows: copying it is faster than migrating."""
    path = tmp_path_factory.mktemp("template") / "hpsearch.db"
    _make_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def start_postgres_template(start_postgres: Callable[[], Postgres]) -> Callable[[], str]:
    """A PostgreSQL database with all tables and no rows."""

    @functools.cache
    def make() -> str:
        server = start_postgres()
        server.execute("CREATE DATABASE migrated")
        _make_tables(server.url("migrated"))
        return "migrated"

    return make


@pytest.fixture(params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with all tables and no rows, once of each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "test.db")
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    template = request.getfixturevalue("start_postgres_template")()
    with _new_database(request.getfixturevalue("postgres"), template) as url:
        yield url


@pytest.fixture
def home_with_tables(home: Settings, sqlite_template: Path) -> Settings:
    """The same home, its database already migrated."""
    shutil.copy(sqlite_template, home.home / "hpsearch.db")
    return home


@pytest.fixture
def api(home_with_tables: Settings) -> TestClient:
    """The HTTP door over an empty home, as a person on this machine reaches it. No runner: nothing is searched."""
    return TestClient(create_app(home_with_tables), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def hang_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put it there, and the next device of the session's cluster that trains takes it away and hangs."""
    return tmp_path_factory.mktemp("hang") / "here"


@pytest.fixture(scope="session")
def ray_address(hang_file: Path) -> Iterator[str]:
    """The address of a real local Ray cluster; its device actors stay warm from test to test."""
    import ray

    from hpsearch.raytune.driver import connect

    os.environ[HANG_VARIABLE] = str(hang_file)  # workers have the environment that Ray was started with
    connect(None)
    del os.environ[HANG_VARIABLE]
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The application behind a real socket, on a free port, in a thread; the answer is its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def service_url(api: TestClient) -> Iterator[str]:
    """The same door behind a real socket."""
    with served(api.app) as url:
        yield url
