"""Who may do what at the HTTP door."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch.api.app import create_app
from hpsearch.api.guard import is_loopback
from hpsearch.api.tokens import Role, Tokens, add_token
from hpsearch.errors import InvalidInput
from hpsearch.settings import Settings
from tests.builders import spec_fields
from tests.conftest import STUDIES

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
]
"""What a browser says of a request that a page of somebody else makes."""


class Guarded:
    """A service with a token of each role and one study."""

    def __init__(self, settings: Settings) -> None:
        self.tokens = {str(role.name).lower(): add_token(settings.tokens_path, role.name, role) for role in Role}
        self.client = TestClient(create_app(settings), base_url="http://search.example", raise_server_exceptions=False)
        made = self.request("POST", "/v1/studies", "submit", json=spec_fields())
        assert made.status_code == 201

    def request(self, method: str, path: str, who: str, **arguments: Any) -> Any:
        headers = {} if who == "none" else {"Authorization": f"Bearer {self.tokens.get(who, who)}"}
        return self.client.request(method, path, headers=headers, **arguments)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    settings = Settings(home=tmp_path_factory.mktemp("guarded"), allowed_roots=(STUDIES,))
    settings.prepare_home()
    return Guarded(settings)


READS = [
    ("GET", "/v1/studies"),
    ("GET", "/v1/studies/tickets"),
    ("GET", "/v1/studies/tickets/trials"),
    ("GET", "/v1/studies/tickets/trials/0"),
    ("GET", "/v1/studies/tickets/trials/0/adapter"),
    ("GET", "/v1/studies/tickets/ranking"),
    ("GET", "/v1/studies/missing/events"),
    ("GET", "/v1/datasets/ds-" + "0" * 32),
    ("POST", "/v1/studies:check"),
    ("GET", "/metrics"),
    ("GET", "/dashboard"),
    ("GET", "/api/studies"),
    ("HEAD", "/dashboard"),
]
SUBMITS = [("POST", "/v1/studies"), ("POST", "/v1/datasets"), ("POST", "/v1/studies/missing/cancel")]
ADMINS = [("DELETE", "/v1/studies/missing")]

ROLES = {"read": 1, "submit": 2, "admin": 3}


@pytest.mark.parametrize("who", ["none", "wrong", "", "read", "submit", "admin"])
@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [(*route, level) for level, routes in enumerate((READS, SUBMITS, ADMINS), start=1) for route in routes],
    ids=str,
)
def test_each_role_may_do_what_it_may_and_no_more(
    guarded: Guarded, method: str, path: str, needed: int, who: str
) -> None:
    answer = guarded.request(method, path, who)
    if who not in ROLES:
        assert answer.status_code == 401
        assert "Bearer" in answer.headers["www-authenticate"]
        assert "Basic" in answer.headers["www-authenticate"]
        assert method == "HEAD" or answer.json()["code"] == "unauthorized"
    elif ROLES[who] < needed:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert list(ROLES)[needed - 1] in answer.json()["detail"]
    else:
        assert answer.status_code not in (401, 403)
        assert answer.status_code < 500


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_watchdog_needs_no_token(guarded: Guarded, path: str) -> None:
    assert guarded.request("GET", path, "none").status_code == 200


def test_every_other_route_needs_a_token(guarded: Guarded) -> None:
    """Also one that somebody adds and forgets to guard."""
    described = guarded.client.get("/v1/openapi.json").json()["paths"]
    for path, operations in described.items():
        for method in operations:
            if path in ("/livez", "/readyz"):
                continue
            filled = path.replace("{name}", "tickets").replace("{number}", "0").replace("{dataset}", "ds-" + "0" * 32)
            assert guarded.request(method.upper(), filled, "none").status_code == 401, (method, path)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_browser_may_send_the_token_as_a_password(guarded: Guarded) -> None:
    for user in ("", "zoë"):
        header = {"Authorization": basic(user, guarded.tokens["read"])}
        assert guarded.client.get("/v1/studies", headers=header).status_code == 200
        assert guarded.client.get("/dashboard", headers=header).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic",
        "Basic !!!",
        "Basic Zm9v",
        b"Basic \xe9\xe9\xe9",
        b"Bearer \xff\xfe",
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        basic("admin", "admin"),
        basic("", ""),
        "Digest username=x",
        "Bearer hps_" + "A" * 43,
        "Bearer " + "x" * 10_000,
    ],
    ids=range(14),
)
def test_a_header_that_is_no_token_is_unauthorized(guarded: Guarded, header: Any) -> None:
    for path in ("/v1/studies", "/dashboard"):
        answer = guarded.client.get(path, headers={"Authorization": header})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_the_hash_of_a_token_is_no_token(guarded: Guarded) -> None:
    service = guarded.client.app.state.service  # type: ignore[attr-defined]
    for row in json.loads(service.settings.tokens_path.read_text()):
        assert guarded.request("GET", "/v1/studies", row["sha256"]).status_code == 401


class TestTheFile:
    def test_it_is_private_and_holds_no_token(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "tokens.json"
        tokens = [add_token(path, f"name-{number}", Role.READ) for number in range(3)]
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(set(tokens)) == 3
        assert all(token not in path.read_text() for token in tokens)
        assert [child.name for child in path.parent.iterdir()] == ["tokens.json"]

    def test_a_name_is_used_once(self, tmp_path: Path) -> None:
        add_token(tmp_path / "tokens.json", "zoë", Role.READ)
        with pytest.raises(InvalidInput, match="zoë"):
            add_token(tmp_path / "tokens.json", "zoë", Role.ADMIN)

    def test_without_a_file_there_are_no_tokens(self, tmp_path: Path) -> None:
        assert not Tokens.load(tmp_path / "missing.json", must_exist=False)

    @pytest.mark.parametrize(
        "content", ["", "{", "{}", "null", "[1]", '[{"name": "a"}]', '[{"name": "a", "role": "god", "sha256": ""}]']
    )
    def test_a_broken_file_stops_the_service_instead_of_opening_it(self, home: Settings, content: str) -> None:
        home.tokens_path.write_text(content)
        with pytest.raises(InvalidInput, match=r"tokens\.json"):
            create_app(home)


def test_no_token_is_ever_logged(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for who in ("read", "submit", "wrong-token-canary"):
        guarded.request("POST", "/v1/studies", who, json={})
        guarded.request("DELETE", "/v1/studies/tickets", who)
    assert not any(token in caplog.text for token in (*guarded.tokens.values(), "wrong-token-canary"))


class TestWithoutTokens:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.8.8.8:80"]
    )
    def test_this_machine_may_do_everything(self, api: TestClient, host: str) -> None:
        assert api.get("/v1/studies", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8000",
            "10.0.0.1",
            "",
            "127.0.0.1@e",
            "[::1",
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/studies", "/dashboard", "/livez"])
    def test_a_page_that_renamed_its_host_to_this_machine_is_refused(
        self, api: TestClient, path: str, host: str
    ) -> None:
        assert api.get(path, headers={"Host": host}).status_code == 403

    @pytest.mark.parametrize("headers", FOREIGN)
    def test_a_page_of_somebody_else_can_not_act_here(self, api: TestClient, headers: dict[str, str]) -> None:
        """A browser sends such a form without asking first; there is no token that it lacks."""
        api.post("/v1/studies", json=spec_fields())
        answer = api.post("/v1/studies/tickets/cancel", headers={**headers, "Content-Type": "text/plain"})
        assert answer.status_code == 403
        assert api.get("/v1/studies/tickets").json()["state"] == "queued"
        upload = '{"prompt": "a", "completion": "b"}\n'
        assert api.post("/v1/datasets", content=upload, headers=headers).status_code == 403


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_browser_that_knows_the_password_does_not_act_for_a_page_of_somebody_else(
    guarded: Guarded, headers: dict[str, str]
) -> None:
    password = base64.b64encode(f"me:{guarded.tokens['submit']}".encode()).decode()
    known = {"Authorization": f"Basic {password}", "Content-Type": "text/plain", **headers}
    assert guarded.client.post("/v1/studies/tickets/pause", headers=known).status_code == 403
    assert guarded.client.post("/v1/datasets", content="{}", headers=known).status_code == 403
    assert guarded.client.get("/v1/studies/tickets", headers=known).json()["state"] == "queued"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://search.example"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_its_own_pages_and_programs_may_act(guarded: Guarded, headers: dict[str, str]) -> None:
    known = {"Authorization": f"Bearer {guarded.tokens['submit']}", **headers}
    answer = guarded.client.post("/v1/studies/missing/pause", headers=known)
    assert (answer.status_code, answer.json()["code"]) == (404, "study_not_found")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/docs", "/v1/openapi.json"])
def test_what_is_open_needs_no_token(guarded: Guarded, path: str) -> None:
    assert guarded.request("GET", path, "none").status_code == 200


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.0.2.1", "search.example", "", "localhost.evil.example")],
)
def test_only_a_loopback_address_is_this_machines_own(host: str, only_here: bool) -> None:
    assert is_loopback(host) is only_here


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_service_does_not_listen_to_others_without_tokens(tmp_path: Path, host: str) -> None:
    environment = {**os.environ, "HPSEARCH_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "hpsearch.api", "--host", host, "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 1
    assert f"refusing to listen on {host} without tokens" in done.stderr
    assert "hpsearch token" in done.stderr


def test_the_service_listens_to_others_with_tokens(tmp_path: Path) -> None:
    add_token(tmp_path / "tokens.json", "zoë", Role.READ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        # The port is taken, so the service gets as far as listening and no further.
        environment = {**os.environ, "HPSEARCH_HOME": str(tmp_path)}
        probe.listen()
        command = [sys.executable, "-m", "hpsearch.api", "--host", "127.0.0.1", "--port", port]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode != 0
    assert "without tokens" not in done.stderr
    assert "address already in use" in done.stderr
