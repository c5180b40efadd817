"""Datasets (and a model) by their id on the Hugging Face hub: the real libraries against a hub on this machine."""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch.api.app import create_app
from hpsearch.api.state import Service
from hpsearch.basemodel import describe
from hpsearch.settings import Settings
from tests.builders import spec_fields
from tests.conftest import STUDIES
from tests.unit.test_architecture import loaded


@dataclass
class Repository:
    """One repository of the hub: what its branches and tags hold."""

    revisions: dict[str, str] = field(default_factory=dict)
    """Branch or tag to commit."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit to files."""
    gated: bool = False


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub as its clients ask for: facts, listings and files, with ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, files: dict[str, bytes], kind: str = "datasets") -> str:
        """A new commit on the main branch; the answer is its hash."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        commit = f"{len(repository.commits) + 1:040x}"
        repository.commits[commit] = files
        repository.revisions["main"] = commit
        return commit

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Desk(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        parts = urllib.parse.unquote(address.path).strip("/").split("/")
        self.server.requests.append(f"{self.command} {address.path}")
        if parts[0] == "api" and len(parts) == 3:  # a name without an organisation
            self._api(parts[1], parts[2], [])
        elif parts[0] == "api" and len(parts) > 3:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[1:] if kind == "datasets" else parts
            if parts[2:3] == ["resolve"]:
                self._file(f"{kind}/{'/'.join(parts[:2])}", parts[3], "/".join(parts[4:]))
            else:
                self._refuse("")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = urllib.parse.unquote(self.path).strip("/").split("/")
        found = self._commit(f"{parts[1]}/{'/'.join(parts[2:4])}", parts[-1])
        if found is None:
            return
        paths = (
            json.loads(asked)["paths"]
            if asked.startswith("{")
            else [urllib.parse.unquote_plus(pair.partition("=")[2]) for pair in asked.split("&") if "paths=" in pair]
        )
        self._answer([entry for entry in listing(found[1], "", True) if entry["path"] in paths])

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            if found := self._commit(f"{kind}/{name}", rest[1]):
                entries = listing(found[1], "/".join(rest[2:]), "recursive=True" in self.path)
                self._answer(entries) if entries or not rest[2:] else self._refuse("EntryNotFound")
        elif found := self._commit(f"{kind}/{name}", rest[1] if rest[:1] == ["revision"] else "main"):
            siblings = [{"rfilename": path} for path in found[1]]
            self._answer({"id": name, "sha": found[0], "siblings": siblings, "private": False, "tags": []})

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self._refuse("RepoNotFound")
            return None
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._refuse("RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        if self.server.repositories[name].gated:
            self._refuse("GatedRepo", 403)
        elif path not in found[1]:
            self._refuse("EntryNotFound", commit=found[0])
        else:
            self._send(found[1][path], found[0])

    def _send(self, content: bytes, commit: str) -> None:
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range")
        if asked and content:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = (int(start), min(int(end or last), last)) if start else (len(content) - int(end), last)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:08x}{len(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, code: str, status: int = 404, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def listing(files: dict[str, bytes], below: str, deep: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, as the hub lists them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if below and not path.startswith(f"{below}/"):
            continue
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
        entries[path] = {"type": "file", "path": path, "size": len(content), "oid": f"{len(content):040x}"}
    depth = below.count("/") + 1 if below else 0
    return [entry for path, entry in entries.items() if path != below and (deep or path.count("/") == depth)]


def examples(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {n} plus one?", "completion": f" It is {n + 1}."} for n in range(start, start + count)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=7)
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one dataset, `org/sums`; the service's downloads go there."""
    server = Hub()
    server.push("org/sums", {"train.jsonl": lines(examples(40)), "test.jsonl": lines(examples(9, 100))})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE")  # means the same to the hub's client
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_TOKEN", "hf_forthetests")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield server
    server.close()


def a_study(train: str, validation: str | None = None, **changes: Any) -> dict[str, Any]:
    return spec_fields(data={"train": train, "validation": validation}, **changes)


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def kept_files(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.datasets_folder.rglob("*"))


class TestStudies:
    def test_a_hub_id_gives_a_study_whose_data_are_the_rows(
        self, api: TestClient, hub: Hub, home_with_tables: Settings
    ) -> None:
        commit = hub.repositories["datasets/org/sums"].revisions["main"]
        answer = api.post("/v1/studies", json=a_study("hub:org/sums", "hub:org/sums?split=test"))
        assert answer.status_code == 201, answer.text
        data = api.get("/v1/studies/tickets").json()["spec"]["data"]
        assert rows_of(data["train"]) == examples(40)
        assert rows_of(data["validation"]) == examples(9, 100)
        assert data["origins"] == {
            "train": f"hub:org/sums?split=train&revision={commit}",
            "validation": f"hub:org/sums?split=test&revision={commit}",
        }
        assert len(kept_files(home_with_tables)) == 2
        upload = api.get(f"/v1/datasets/{Path(data['train']).stem}").json()
        assert upload["examples"] == 40
        assert upload["warnings"][0] == f"hub:org/sums?split=train&revision={commit}, 40 rows"

    def test_a_sealed_test_split_is_read_from_the_hub_too(self, api: TestClient, hub: Hub) -> None:
        commit = hub.repositories["datasets/org/sums"].revisions["main"]
        asked = a_study("hub:org/sums")
        answer = api.post("/v1/studies", json={**asked, "data": {**asked["data"], "test": "hub:org/sums"}})
        assert answer.status_code == 201, answer.text
        data = api.get("/v1/studies/tickets").json()["spec"]["data"]
        assert rows_of(data["test"]) == examples(9, 100)
        assert data["origins"]["test"] == f"hub:org/sums?split=test&revision={commit}"

    def test_a_check_names_the_commit_and_keeps_nothing(
        self, api: TestClient, hub: Hub, home_with_tables: Settings
    ) -> None:
        commit = hub.repositories["datasets/org/sums"].revisions["main"]
        body = api.post("/v1/studies:check", json=a_study("hub:org/sums")).json()
        assert body["warnings"][0] == f"data.train: hub:org/sums?split=train&revision={commit}, 40 rows"
        assert body["spec"]["data"]["train"] == f"hub:org/sums?split=train&revision={commit}"
        assert sum(body["examples"].values()) == 40
        assert kept_files(home_with_tables) == []

    def test_the_same_spec_again_is_the_same_study_though_the_branch_moved(self, api: TestClient, hub: Hub) -> None:
        first = api.post("/v1/studies", json=a_study("hub:org/sums"))
        hub.push("org/sums", {"train.jsonl": lines(examples(50, 500))})
        again = api.post("/v1/studies", json=a_study("hub:org/sums"))
        assert (first.status_code, again.status_code) == (201, 200), again.text
        assert again.json() == {**first.json(), "warnings": []}
        assert rows_of(again.json()["spec"]["data"]["train"]) == examples(40)
        other = api.post("/v1/studies", json=a_study("hub:org/sums?split=train[:20]"))
        assert (other.status_code, other.json()["code"]) == (409, "name_taken")

    def test_a_revision_is_what_is_read(self, api: TestClient, hub: Hub) -> None:
        old = hub.repositories["datasets/org/sums"].revisions["main"]
        hub.push("org/sums", {"train.jsonl": lines(examples(50, 500))})
        hub.repositories["datasets/org/sums"].revisions["v1.0"] = old
        answer = api.post("/v1/studies", json=a_study("hub:org/sums?revision=v1.0"))
        assert answer.json()["spec"]["data"]["origins"]["train"].endswith(f"revision={old}")
        assert rows_of(answer.json()["spec"]["data"]["train"]) == examples(40)

    def test_origins_are_not_for_people_to_write(self, api: TestClient, hub: Hub) -> None:
        spec = a_study("data/tickets/train.jsonl")
        spec["data"]["origins"] = {"train": "hub:else/where?split=train"}
        assert "origins" not in api.post("/v1/studies", json=spec).json()["spec"]["data"]

    @pytest.mark.parametrize(
        ("split", "rows"),
        [
            ("train[:12]+train[25:]+train[5:25]", examples(12) + examples(15, 25) + examples(20, 5)),
            ("train[50%:]+test+train[-11:]", examples(20, 20) + examples(9, 100) + examples(11, 29)),
        ],
    )
    def test_a_split_may_be_slices(self, api: TestClient, hub: Hub, split: str, rows: list[dict[str, Any]]) -> None:
        answer = api.post("/v1/studies", json=a_study(f"hub:org/sums?split={split}"))
        assert answer.status_code == 201, answer.text
        assert rows_of(answer.json()["spec"]["data"]["train"]) == rows


def test_a_taken_name_is_refused_before_anything_is_downloaded(
    api: TestClient, hub: Hub, home_with_tables: Settings
) -> None:
    assert api.post("/v1/studies", json=spec_fields()).status_code == 201
    refused = api.post("/v1/studies", json=a_study("hub:org/sums"))
    assert (refused.status_code, refused.json()["code"]) == (409, "name_taken")
    assert hub.requests == []
    assert kept_files(home_with_tables) == []


class TestContents:
    def train(self, api: TestClient, named: str = "hub:org/other", **changes: Any) -> list[dict[str, Any]]:
        answer = api.post("/v1/studies", json=a_study(named, **changes))
        assert answer.status_code == 201, answer.text
        return rows_of(answer.json()["spec"]["data"]["train"])

    def test_parquet_is_read_and_columns_that_json_can_not_hold_are_left_out(self, api: TestClient, hub: Hub) -> None:
        import datetime as dt

        rows = examples(30)
        times = [dt.datetime(2024, 1, 1)] * 30
        more = {"id": list(range(30)), "picture": [b"\xff"] * 30, "at": times, "score": [None, 0.5, 1.0] * 10}
        columns = {key: [row[key] for row in rows] for key in ("prompt", "completion")}
        hub.push("org/other", {"data/train-00000-of-00001.parquet": parquet(**columns, **more)})
        found = self.train(api)
        assert found == [row | {"id": n, "score": more["score"][n]} for n, row in enumerate(rows)]
        warnings = api.post("/v1/studies:check", json=a_study("hub:org/other")).json()["warnings"]
        assert warnings[0].endswith("30 rows; left out, for JSON can't hold them: at, picture")

    def test_csv_is_read(self, api: TestClient, hub: Hub) -> None:
        table = "instruction,input,output\n" + "".join(f"say {n},,it is {n}\n" for n in range(20))
        hub.push("org/other", {"train.csv": table.encode()})
        assert self.train(api)[19] == {"instruction": "say 19", "input": None, "output": "it is 19"}

    def test_conversations_keep_their_shape(self, api: TestClient, hub: Hub) -> None:
        rows: list[dict[str, Any]] = []
        for n in range(15):
            call = {"name": "add", "arguments": {"to": n} if n % 2 else {"of": "x", "list": [1, "a"]}}
            asked = {"role": "user", "content": f"What is {n}?"}
            rows.append({"messages": [asked, {"role": "assistant", "content": "é" * n + "!", "calls": [call]}]})
        hub.push("org/other", {"train.jsonl": lines(rows)})
        found = self.train(api)
        for row, asked in zip(found, rows, strict=True):
            for message, written in zip(row["messages"], asked["messages"], strict=True):
                assert {key: message[key] for key in ("role", "content")} == {
                    key: written[key] for key in ("role", "content")
                }

    def test_a_configuration_is_chosen_by_its_name(self, api: TestClient, hub: Hub) -> None:
        small, large = "- config_name: small\n  data_files: a/*.jsonl", "- config_name: large\n  data_files: b.jsonl"
        card = f"---\nconfigs:\n{small}\n{large}\n---\n"
        files = {"README.md": card.encode(), "a/x.jsonl": lines(examples(11)), "b.jsonl": lines(examples(12))}
        hub.push("org/other", files)
        assert self.train(api, "hub:org/other?config=small") == examples(11)
        assert self.train(api, "hub:org/other?config=large", name="large") == examples(12)
        for query in ("", "?config=none"):
            body = api.post("/v1/studies:check", json=a_study(f"hub:org/other{query}")).json()
            assert (body["code"], body["field"]) == ("unknown_dataset", "data.train")
            assert "['small', 'large']" in body["detail"]

    @pytest.mark.parametrize(
        ("files", "code", "said"),
        [
            pytest.param({"train.jsonl": lines(examples(9))}, "too_few_examples", "9 examples", id="few"),
            pytest.param(
                {"train.jsonl": lines([{"conversations": [{"from": "human", "value": "a"}]}] * 20)},
                "invalid_dataset", "keys: conversations", id="sharegpt",
            ),
            pytest.param(
                {"train.jsonl": lines([{"prompt": "a", "completion": "2024-01-01 00:00:00"}] * 20)},
                "invalid_dataset", "its column 'completion' holds timestamp", id="times",
            ),
            pytest.param({"train.jsonl": b'{"prompt": "a\n' * 20}, "unknown_dataset", "can't be read", id="broken"),
            pytest.param({"train.jsonl": lines(examples(5000))}, "too_large", "200,000 bytes", id="large"),
            pytest.param({"notes.md": b"# nothing"}, "unknown_dataset", "", id="no-table"),
            pytest.param({"train.txt": b"text\n" * 20}, "unknown_dataset", "only JSON, CSV and parquet", id="text"),
            pytest.param({"other.py": b"raise SystemExit"}, "unknown_dataset", "scripts", id="script"),
            pytest.param({}, "unknown_dataset", "no files", id="empty"),
        ],
    )  # fmt: skip
    def test_what_can_not_be_learned_from_is_refused(
        self, hub: Hub, home_with_tables: Settings, files: dict[str, bytes], code: str, said: str
    ) -> None:
        settings = home_with_tables.model_copy(update={"max_upload_bytes": 200_000})
        api = TestClient(create_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False)
        hub.push("org/other", files)
        body = api.post("/v1/studies", json=a_study("hub:org/other")).json()
        assert (body["code"], body["field"]) == (code, "data.train"), body
        assert said in body["detail"]
        assert kept_files(settings) == []

    @pytest.mark.parametrize(
        ("card", "pattern"),
        [
            ("README.md", "{local}"),
            ("README.md", "file://{local}"),
            ("README.md", "zip://x::{local}"),
            ("README.md", "../../org/sums/train.jsonl"),
            ("README.md", "{elsewhere}"),
            (".huggingface.yaml", "{elsewhere}"),
        ],
    )
    def test_a_repository_can_not_name_data_outside_itself(
        self, api: TestClient, hub: Hub, *, tmp_path: Path, home_with_tables: Settings, pattern: str, card: str
    ) -> None:
        (tmp_path / "secret.jsonl").write_bytes(lines(examples(20)))
        named = pattern.format(local=tmp_path / "secret.jsonl", elsewhere=f"{hub.url}/elsewhere.jsonl")
        text = f"configs:\n- config_name: default\n  data_files: '{named}'\n"
        hub.push("org/other", {card: (f"---\n{text}---\n" if card == "README.md" else text).encode()})
        body = api.post("/v1/studies", json=a_study("hub:org/other")).json()
        assert (body["code"], body["field"]) == ("unknown_dataset", "data.train")
        assert "outside the repository" in body["detail"]
        assert "GET /elsewhere.jsonl" not in hub.requests
        assert kept_files(home_with_tables) == []


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _nothing_is_left_behind(self, api: TestClient, home_with_tables: Settings, tmp_path: Path) -> Iterator[None]:
        before = sorted(tmp_path.glob("*"))
        yield
        service: Service = api.app.state.service  # type: ignore[attr-defined]
        assert service.studies.page(1).rows == ()
        assert kept_files(home_with_tables) == []
        assert {path for path in tmp_path.glob("*") if path not in before} <= {tmp_path / "huggingface"}

    @pytest.mark.parametrize(
        ("train", "validation", "wrong", "said"),
        [
            ("hub:org/none", None, "data.train", "no such dataset"),
            ("hub:none", None, "data.train", "no such dataset"),
            ("hub:json", None, "data.train", "(org/name)"),
            ("hub:org/sums?revision=v9", None, "data.train", "not this revision"),
            ("hub:org/sums?split=tset", None, "data.train", "no split 'tset' (splits: train, test)"),
            ("hub:org/sums?split=train[80%:120%]", None, "data.train", ""),
            ("hub:org/sums?config=none", None, "data.train", "['default']"),
            ("hub:org/sums", "hub:org/sums", "data.validation", "no split 'validation' (splits: train, test)"),
            ("hub:org/gated", None, "data.train", "accept its terms"),
        ],
    )
    def test_what_the_hub_does_not_have_is_refused_with_its_field(
        self, api: TestClient, hub: Hub, *, train: str, validation: str | None, wrong: str, said: str
    ) -> None:
        hub.push("org/gated", {"README.md": b"# terms", "train.jsonl": lines(examples(20))})
        hub.push("json", {"train.jsonl": lines(examples(20))})
        hub.repositories["datasets/org/gated"].gated = True
        answer = api.post("/v1/studies", json=a_study(train, validation))
        body = answer.json()
        assert (answer.status_code, body["code"], body["field"]) == (422, "unknown_dataset", wrong), body
        assert said in body["detail"]

    def test_a_hub_that_is_down_is_said(self, api: TestClient, hub: Hub) -> None:
        hub.close()
        body = api.post("/v1/studies", json=a_study("hub:org/sums")).json()
        assert (body["code"], body["field"]) == ("unknown_dataset", "data.train")
        assert "the hub can't be reached" in body["detail"]
        assert api.post("/v1/studies:check", json=a_study("hub:org/sums")).json() == body

    def test_a_service_that_is_offline_says_so(
        self, api: TestClient, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        body = api.post("/v1/studies", json=a_study("hub:org/sums")).json()
        assert body["field"] == "data.train"
        assert "HF_HUB_OFFLINE" in body["detail"]
        assert hub.requests == []

    def test_without_the_extra_it_is_named(
        self, api: TestClient, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        (hidden := tmp_path_factory.mktemp("hidden")).joinpath("datasets.py").write_text(
            "raise ModuleNotFoundError(\"No module named 'datasets'\", name='datasets')"
        )
        monkeypatch.setenv("PYTHONPATH", str(hidden))
        body = api.post("/v1/studies", json=a_study("hub:org/sums")).json()
        assert (body["code"], body["field"]) == ("unknown_dataset", "data.train")
        assert "pip install 'hpsearch[datasets]'" in body["detail"]

    def test_a_download_that_takes_too_long_is_ended(self, hub: Hub, home_with_tables: Settings) -> None:
        settings = home_with_tables.model_copy(update={"hub_timeout_seconds": 0.05})
        api = TestClient(create_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False)
        body = api.post("/v1/studies", json=a_study("hub:org/sums")).json()
        assert (body["code"], body["field"]) == ("unknown_dataset", "data.train")
        assert "HPSEARCH_HUB_TIMEOUT_SECONDS" in body["detail"]

    def test_the_same_rows_on_both_sides_are_refused(self, api: TestClient, hub: Hub) -> None:
        body = api.post("/v1/studies", json=a_study("hub:org/sums", "hub:org/sums?split=train")).json()
        assert (body["code"], body["field"]) == ("invalid_spec", "data")
        body = api.post("/v1/studies", json=a_study("hub:org/sums", "hub:org/sums?split=train[:40]")).json()
        assert (body["code"], body["field"]) == ("invalid_spec", "data.validation")

    @pytest.mark.parametrize("named", ["hub:/etc", "hub:../..", "hub:./x", "hub:a/b/c", "hub:~/x", "hub:", "hub:a b"])
    def test_a_path_is_no_hub_id(self, api: TestClient, hub: Hub, named: str) -> None:
        answer = api.post("/v1/studies", json=a_study(named))
        assert (answer.status_code, answer.json()["field"]) == (422, "data.train")
        assert hub.requests == []


def test_the_library_stays_out_of_the_service() -> None:
    assert loaded("import hpsearch.api.app, hpsearch.dataset.hub") & {"datasets", "pyarrow", "pandas"} == set()


def described(hub: Hub, cache: Path, base: str, revision: str | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its address once, when it is imported."""
    script = (
        "import dataclasses, json, sys\n"
        "from hpsearch.basemodel import describe\n"
        "print(json.dumps(dataclasses.asdict(describe(*json.loads(sys.argv[1])))))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", script, json.dumps([base, revision])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_model_of_the_hub_is_described_as_its_folder_is(hub: Hub, tmp_path: Path) -> None:
    folder = STUDIES / "models" / "pydoc-llama"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    commit = hub.push("org/model", files, "models")
    found, local = json.loads(described(hub, tmp_path, "org/model").stdout), describe(str(folder))
    assert found["fingerprint"] == commit
    for fact in ("model_type", "layers", "parameters", "max_positions"):
        assert found[fact] == getattr(local, fact)
    assert tuple(found["linear_layers"]) == local.linear_layers != ()
    assert "not this revision" in described(hub, tmp_path, "org/model", "v9").stderr
    assert "no such model" in described(hub, tmp_path, "org/none").stderr
