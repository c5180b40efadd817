"""The HTTP door, over a real database, real data and a real model; only the runner is missing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import io
import json
import logging
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import optuna
import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from starlette.types import Message

from hpsearch import __version__
from hpsearch.api import preflight, trials
from hpsearch.api.app import create_app
from hpsearch.api.linted import Linted
from hpsearch.api.state import Service
from hpsearch.lifecycle import StudyState
from hpsearch.results import Failure
from hpsearch.search import Search
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec
from hpsearch.spec.defaults import default_params, resolve
from hpsearch.storage import Acting, Lease, StudyRow, optuna_storage
from hpsearch.storage.events import append
from tests.builders import a_report, spec_fields
from tests.conftest import STUDIES

PROBLEM = "application/problem+json"
INVALID = "invalid_spec"
JSON = {"content-type": "application/json"}


def examples(count: int) -> str:
    lines = [{"prompt": f"What is {n} plus one?", "completion": f" It is {n + 1}."} for n in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Settings:
    """One home for all requests that must leave nothing behind."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "data").mkdir()
    settings = Settings(home=folder / "home", allowed_roots=(STUDIES, folder / "data"), max_upload_bytes=200_000)
    settings.prepare_home()
    shutil.copy(sqlite_template, settings.home / "hpsearch.db")
    (folder / "secret.jsonl").write_text(examples(20))
    data = folder / "data"
    (data / "good.jsonl").write_text(examples(20))
    (data / "few.jsonl").write_text(examples(9))
    (data / "broken.jsonl").write_text(examples(13) + '{"prompt": "half\n' + examples(5))
    (data / "empty.jsonl").write_text("")
    (data / "out.jsonl").symlink_to(folder / "secret.jsonl")
    (data / "up").symlink_to(folder)
    (data / "again.jsonl").symlink_to(data / "good.jsonl")
    (data / "no-model").mkdir()
    deep = data.joinpath(*["d" * 200] * 5)
    deep.mkdir(parents=True)
    (deep / "good.jsonl").write_text(examples(20))
    return settings


@pytest.fixture(scope="module")
def door(shared_home: Settings) -> TestClient:
    """The door of the shared home."""
    return TestClient(create_app(shared_home), base_url="http://127.0.0.1", raise_server_exceptions=False)


def belongings(client: TestClient, settings: Settings) -> dict[str, Any]:
    """What a home holds: rows, trials, files."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    files = [path.relative_to(settings.home) for path in settings.home.rglob("*")]
    return {
        "studies": [row.name for row in service.studies.page(100).rows],
        "optuna": [study.study_name for study in service.optuna_storage.get_all_studies()],
        "files": sorted(str(path) for path in files if not path.name.startswith("hpsearch.db")),
    }


NOTHING = {"studies": [], "optuna": [], "files": ["artifacts", "datasets"]}


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The answer is this problem, in RFC 9457's form."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text[:500]
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:hpsearch:problem:{code}")
    assert body["title"]
    assert body["detail"]
    return body


def good_data(**changes: Any) -> dict[str, Any]:
    return spec_fields(data={"train": "good.jsonl"}, **changes)


class TestRefusals:
    """Whatever is refused, is refused with its reason, and nothing is left behind."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left_behind(self, door: TestClient, shared_home: Settings) -> Iterator[None]:
        yield
        assert belongings(door, shared_home) == NOTHING

    @pytest.fixture(params=["/v1/studies", "/v1/studies:check"])
    def path(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize(
        ("changes", "field", "said"),
        [
            pytest.param({"nmae": 1}, "nmae", "did you mean 'name'?", id="unknown-key"),
            pytest.param(
                {"search_space": {"epochs": {"low": 1, "hgih": 2}}}, "search_space.epochs.hgih", "'high'", id="deep-key"
            ),
            pytest.param({"name": "A"}, "name", "lower-case letters", id="name"),
            pytest.param({"name": "a\x00"}, "name", "lower-case letters", id="nul-in-name"),
            pytest.param({"search_space": {"epochs": 2}}, "", "nothing varies", id="nothing-varies"),
            pytest.param({"search_space": {"epochs": {"low": 3, "high": 1}}}, "search_space.epochs", "above", id="low"),
            pytest.param({"budget": {"wall_clock": "soon"}}, "budget.wall_clock", "such as 90m", id="duration"),
            pytest.param({"tags": {"a": "\ud800"}}, "tags.a", "", id="half-a-character"),
            pytest.param({"\ud800": 1}, None, "unknown key", id="half-a-character-as-key"),
            pytest.param(
                {"search_space": {"frozen_layers": {"low": 0, "high": 500}}}, "search_space.frozen_layers", "layers",
                id="more-frozen-layers-than-layers",
            ),
            pytest.param(
                {"search_space": {"dropout": {"low": 0, "high": 0.5}}, "pruner": {"type": "pbt", "interval": 1000}},
                "pruner.interval", "nothing would ever be exchanged", id="a-population-without-exchanges",
            ),
        ],
    )  # fmt: skip
    def test_a_malformed_spec_is_refused_with_its_field(
        self, door: TestClient, path: str, changes: dict[str, Any], field: str | None, said: str
    ) -> None:
        body = assert_problem(door.post(path, content=json.dumps(good_data(**changes)), headers=JSON), 422, INVALID)
        assert field is None or body.get("field", "") == field
        assert said in body["detail"]

    @pytest.mark.parametrize(
        ("written", "field"),
        [
            ('{"low": 1, "high": NaN}', "search_space.learning_rate_multiplier.high"),
            ('{"low": 1, "high": Infinity}', "search_space.learning_rate_multiplier.high"),
            ('{"low": -Infinity, "high": 1}', "search_space.learning_rate_multiplier.low"),
            ('{"low": 1, "high": 1e999}', "search_space.learning_rate_multiplier.high"),
            ("1e999", "search_space.learning_rate_multiplier"),
            ("NaN", "search_space.learning_rate_multiplier"),
            ("1" * 5000, ""),
        ],
        ids=["nan", "inf", "-inf", "1e999", "bare-1e999", "bare-nan", "5000-digits"],
    )
    def test_numbers_that_are_not_finite_are_refused(
        self, door: TestClient, path: str, written: str, field: str
    ) -> None:
        fields = good_data(search_space={"learning_rate_multiplier": "HERE"})
        text = json.dumps(fields).replace('"HERE"', written)
        answer = door.post(path, content=text, headers=JSON)
        assert answer.headers["content-type"] == PROBLEM
        assert answer.status_code in ((422,) if field else (400, 422))
        assert answer.json().get("field", "") == field

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("", id="empty"),
            pytest.param("{", id="cut-off"),
            pytest.param("null", id="null"),
            pytest.param("[]", id="list"),
            pytest.param('"text"', id="text"),
            pytest.param("[" * 100_000, id="deep-list"),
            pytest.param('{"a":' * 100_000, id="deep-object"),
            pytest.param("[" * 100_000 + "]" * 100_000, id="deep-list-closed"),
            pytest.param(b"\xff\xfe{}", id="not-utf-8"),
        ],
    )
    def test_a_body_that_is_no_spec_is_a_problem(self, door: TestClient, path: str, text: Any) -> None:
        answer = door.post(path, content=text, headers=JSON)
        assert answer.status_code in (400, 422)
        assert_problem(answer, answer.status_code, answer.json()["code"])

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-yaml", None])
    def test_only_json_is_taken(self, door: TestClient, path: str, kind: str | None) -> None:
        headers = {} if kind is None else {"content-type": kind}
        answer = door.post(path, content=json.dumps(good_data()), headers=headers)
        assert answer.status_code in (415, 422)
        assert_problem(answer, answer.status_code, answer.json()["code"])

    def test_a_body_over_a_mebibyte_is_too_large(self, door: TestClient, path: str) -> None:
        text = json.dumps(good_data(tags={"a": "x" * 2**20}))
        assert_problem(door.post(path, content=text, headers=JSON), 413, "too_large")

    def test_a_body_over_a_mebibyte_in_pieces_of_unknown_number_is_too_large(self, door: TestClient) -> None:
        pieces = (b" " * 2**16 for _ in range(17))
        assert_problem(door.post("/v1/studies", content=pieces, headers=JSON), 413, "too_large")

    @pytest.mark.parametrize(
        ("data", "code", "field", "said"),
        [
            ({"train": "broken.jsonl"}, "invalid_dataset", "data.train", "line 14"),
            (
                {"train": "good.jsonl", "validation": "broken.jsonl"},
                "invalid_dataset",
                "data.validation",
                "line 14",
            ),
            ({"train": "few.jsonl"}, "too_few_examples", "data.train", "9 examples"),
            ({"train": "empty.jsonl"}, "too_few_examples", "data.train", "0 examples"),
            (
                {"train": "good.jsonl", "validation": "empty.jsonl"},
                "too_few_examples",
                "data.validation",
                "no examples",
            ),
            ({"train": "missing.jsonl"}, "unknown_dataset", "data.train", "missing.jsonl"),
            ({"train": "."}, "unknown_dataset", "data.train", "there is no file"),
            ({"train": "x" * 900}, "unknown_dataset", "data.train", "there is no file"),
            ({"train": "dataset:ds-" + "0" * 32}, "unknown_dataset", None, "no uploaded dataset"),
            ({"train": "dataset:../../secret"}, "unknown_dataset", None, "no uploaded dataset"),
            ({"train": "good.jsonl", "format": "chat"}, "invalid_dataset", "data.train", "lines 1"),
            ({"train": "good.jsonl", "validation": "./good.jsonl"}, "invalid_spec", None, "same file"),
            ({"train": "good.jsonl", "validation": "again.jsonl"}, "invalid_spec", None, "same file"),
            ({"train": "good.jsonl", "test": "again.jsonl"}, "invalid_spec", None, "same file"),
            ({"train": "good.jsonl", "test": "missing.jsonl"}, "unknown_dataset", "data.test", "missing.jsonl"),
            ({"train": "good.jsonl", "test": "broken.jsonl"}, "invalid_dataset", "data.test", "line 14"),
            ({"train": "good.jsonl", "test": "empty.jsonl"}, "too_few_examples", "data.test", "no examples"),
        ],
        ids=[
            "broken-line",
            "broken-validation",
            "too-few",
            "empty",
            "empty-validation",
            "missing",
            "folder",
            "long-name",
            "unknown-upload",
            "upload-that-climbs",
            "wrong-format",
            "same-file-twice",
            "same-file-by-a-link",
            "test-same-as-train",
            "missing-test",
            "broken-test",
            "empty-test",
        ],
    )
    def test_data_that_can_not_be_used_is_refused_with_its_line(  # noqa: PLR0917
        self, door: TestClient, path: str, data: dict[str, Any], code: str, field: str | None, said: str
    ) -> None:
        body = assert_problem(door.post(path, json=spec_fields(data=data)), 422, code)
        assert field is None or body["field"] == field
        assert said in body["detail"]
        told = said.replace("lines", "line")
        assert f"line {body['line']}" == told if "line" in body else not told.startswith("line")

    def test_a_base_model_that_is_nowhere_is_told_with_the_folders_that_were_looked_in(
        self, door: TestClient, shared_home: Settings, path: str
    ) -> None:
        body = assert_problem(door.post(path, json=good_data(model={"base": "models/typo"})), 422, "unknown_model")
        roots = ", ".join(map(str, shared_home.roots))
        beside = "one beside the spec is written './models/typo'"
        nowhere = f"there is no such folder below the allowed roots ({roots}; {beside}), and the hub can't be reached"
        assert body["detail"].startswith(f"base model 'models/typo': {nowhere}")

    @pytest.mark.parametrize("asked", ["qproj", "proj", "self_atn.q_proj", "attn.q_proj", "c_attn"])
    def test_a_target_that_the_model_lacks_is_refused_with_those_it_has(
        self, door: TestClient, path: str, asked: str
    ) -> None:
        model = {"base": "models/pydoc-llama", "lora": {"target_modules": ["q_proj", asked]}}
        body = assert_problem(door.post(path, json=good_data(model=model)), 422, INVALID)
        assert body["field"] == "model.lora.target_modules"
        kinds = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        assert f"no linear layer's name ends in '{asked}'; the model's are: {kinds}" in body["detail"]

    @pytest.mark.parametrize(
        "model",
        [
            {"lora": {"target_modules": "all-linear"}},
            {"lora": {"target_modules": ["q_proj", "mlp.up_proj", "0.self_attn.v_proj"]}},
            {"lora": {"target_modules": ["model.layers.1.self_attn.k_proj"]}},
            {"method": "full", "lora": {"target_modules": ["qproj"]}},
        ],
        ids=["all", "ends", "one-layer", "of-no-use"],
    )
    def test_targets_that_the_model_has_are_not_refused(self, door: TestClient, model: dict[str, Any]) -> None:
        asked = good_data(model={"base": "models/pydoc-llama"} | model)
        assert door.post("/v1/studies:check", json=asked).status_code == 200

    @pytest.mark.parametrize(
        ("base", "code"),
        [
            ("models/none", "unknown_model"),
            ("./models/none", "unknown_model"),
            ("no-model", "unknown_model"),
            ("some-org/some-model", "unknown_model"),
            ("not a model", "unknown_model"),
            ("x" * 900, "unknown_model"),
            ("good.jsonl", "unknown_model"),
            ("/etc", "path_not_allowed"),
            ("../secret", "path_not_allowed"),
            ("https://huggingface.co/gpt2", "path_not_allowed"),
        ],
        ids=["missing", "missing-dot", "no-config", "hub-offline", "no-id", "long", "file", "etc", "up", "url"],
    )
    def test_a_base_model_that_is_not_here_is_refused(self, door: TestClient, path: str, base: str, code: str) -> None:
        assert assert_problem(door.post(path, json=good_data(model={"base": base})), 422, code)["field"] == "model.base"

    @pytest.mark.parametrize(
        "named",
        [
            "../secret.jsonl",
            "../../../../etc/passwd",
            "./../secret.jsonl",
            "up/secret.jsonl",
            "out.jsonl",
            "{folder}/secret.jsonl",
            "{folder}/data/../secret.jsonl",
            "/etc/passwd",
            "/proc/self/environ",
            "//etc/passwd",
            "~/secret.jsonl",
            "~root/.ssh/id_rsa",
            "good.jsonl\x00.txt",
            "file:///etc/passwd",
            "http://127.0.0.1:1/x.jsonl",
            "s3://bucket/x.jsonl",
            "%2e%2e/secret.jsonl",
            "..%2fsecret.jsonl",
            "..\\secret.jsonl",
            "loop" * 200,
        ],
    )
    def test_a_path_outside_the_roots_is_never_read(self, door: TestClient, shared_home: Settings, named: str) -> None:
        named = named.replace("{folder}", str(shared_home.home.parent))
        for data in ({"train": named}, {"train": "good.jsonl", "validation": named}):
            answer = door.post("/v1/studies", json=spec_fields(data=data))
            assert answer.status_code == 422
            assert_problem(answer, 422, answer.json()["code"])
            assert answer.json()["code"] in ("path_not_allowed", "unknown_dataset")
            assert answer.json()["field"] == f"data.{list(data)[-1]}"

    @pytest.mark.parametrize(
        ("body", "kind", "said"),
        [
            (b'{"name": "x"}', "application/x-www-form-urlencoded", "'Content-Type: application/json'"),
            (b'{"name": ', "application/json", "the body is not JSON: Expecting value, character 10"),
            (b"", "application/json", "the body is missing"),
            (b'["x"]', "application/json", "the body is a JSON object"),
        ],
        ids=["curls-default-type", "cut-off", "nothing", "list"],
    )
    def test_a_body_that_is_no_object_is_told_what_is_wrong_with_it(
        self, door: TestClient, body: bytes, kind: str, said: str
    ) -> None:
        answer = door.post("/v1/studies", content=body, headers={"Content-Type": kind})
        assert said in assert_problem(answer, 422, "invalid_spec")["detail"]

    @pytest.mark.parametrize(
        ("content", "code", "said"),
        [
            (examples(3) + "{\n", "invalid_dataset", "line 4"),
            ("", "too_few_examples", "the file has no examples"),
            ("not json", "invalid_dataset", "line 1"),
            (b"\xff\xff\n", "invalid_dataset", "UTF-8"),
            ('{"messages": []}\n', "invalid_dataset", "line 1"),
        ],
        ids=["cut-off", "empty", "text", "not-utf-8", "no-messages"],
    )
    def test_an_upload_with_faults_is_refused(self, door: TestClient, content: Any, code: str, said: str) -> None:
        body = assert_problem(door.post("/v1/datasets", content=content), 422, code)
        assert body["detail"].startswith("dataset: ")
        assert said in body["detail"]
        assert body["field"] == "dataset"

    def test_an_upload_over_the_limit_is_too_large(self, door: TestClient) -> None:
        assert_problem(door.post("/v1/datasets", content=examples(10_000)), 413, "too_large")

    def test_an_upload_whose_sender_hangs_up_leaves_no_part_behind(
        self, door: TestClient, shared_home: Settings
    ) -> None:
        received: Iterator[dict[str, Any]] = iter(
            [
                {"type": "http.request", "body": examples(20).encode(), "more_body": True},
                {"type": "http.disconnect"},
            ]
        )
        parts: list[int] = []

        async def receive() -> dict[str, Any]:
            parts.append(len(list(shared_home.datasets_folder.glob("*.part"))))
            return next(received)

        async def send(_: Any) -> None:
            pass

        scope = {
            "type": "http", "method": "POST", "path": "/v1/datasets", "raw_path": b"/v1/datasets", "root_path": "",
            "query_string": b"", "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        with contextlib.suppress(ClientDisconnect):
            asyncio.run(door.app(scope, receive, send))  # type: ignore[arg-type]
        assert parts == [1, 1]

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/nothing", {404}),
            ("POST", "/v1/nothing", {404}),
            ("DELETE", "/v1/nothing/at/all", {404}),
            ("GET", "/v1/studies/missing", {404}),
            ("GET", "/v1/studies/missing/trials", {404}),
            ("GET", "/v1/studies/missing/trials/0", {404}),
            ("GET", "/v1/studies/missing/trials/0/adapter", {404}),
            ("GET", "/v1/studies/missing/ranking", {404}),
            ("GET", "/v1/studies/missing/events", {404}),
            ("POST", "/v1/studies/missing/cancel", {404}),
            ("DELETE", "/v1/studies/missing", {404}),
            ("GET", "/v1/datasets/ds-" + "0" * 32, {404, 422}),
            ("GET", "/v1/datasets/..%2f..%2fhpsearch", {404, 422}),
            ("GET", "/v1/studies/UPPER", {404, 422}),
            ("GET", "/v1/studies/%00", {404, 422}),
            ("DELETE", "/v1/studies/..%2f..", {404, 422}),
            ("GET", "/v1/studies?limit=0", {422}),
            ("GET", "/v1/studies?limit=1000000", {422}),
            ("GET", "/v1/studies?state=lost", {422}),
            ("GET", "/v1/studies?after=missing", {422}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_not_there_is_a_problem_too(
        self, door: TestClient, method: str, path: str, status: set[int]
    ) -> None:
        answer = door.request(method, path)
        assert answer.status_code in status
        assert_problem(answer, answer.status_code, answer.json()["code"])


def test_a_path_that_grows_too_long_when_it_is_located_poisons_nothing(door: TestClient, shared_home: Settings) -> None:
    long = "/".join(["d" * 200] * 5) + "/good.jsonl"
    answer = door.post("/v1/studies", json=spec_fields(data={"train": long}))
    listed = door.get("/v1/studies")
    assert listed.status_code == 200
    if answer.status_code == 201:
        assert door.get("/v1/studies/tickets").status_code == 200
        door.post("/v1/studies/tickets/cancel")
        door.delete("/v1/studies/tickets")
    else:
        assert_problem(answer, 422, answer.json()["code"])


class TestSubmitting:
    def test_a_study_is_queued_with_its_paths_located(self, api: TestClient, home: Settings) -> None:
        answer = api.post("/v1/studies", json=spec_fields())
        assert answer.status_code == 201
        assert answer.headers["location"] == "/v1/studies/tickets"
        study = answer.json()
        assert (study["name"], study["state"], study["requested"]) == ("tickets", "queued", None)
        assert study["spec"]["data"]["train"] == str(STUDIES / "data/tickets/train.jsonl")
        assert study["spec"]["model"]["base"] == str(STUDIES / "models/pydoc-llama")
        assert study["created_at"].endswith("Z")
        detail = api.get(answer.headers["location"]).json()
        assert detail | study == detail
        assert (detail["trials"], detail["best"], detail["baseline"]) == ({}, None, None)
        assert belongings(api, home)["studies"] == ["tickets"]

    def test_a_stored_spec_can_be_submitted_again(self, api: TestClient) -> None:
        study = api.post("/v1/studies", json=spec_fields(budget={"wall_clock": "1h", "trials": 3})).json()
        again = api.post("/v1/studies", json=study["spec"])
        assert (again.status_code, again.json()) == (200, study)

    def test_the_same_study_twice_is_once(self, api: TestClient) -> None:
        first = api.post("/v1/studies", json=spec_fields())
        second = api.post("/v1/studies", json=spec_fields())
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.json() == second.json()

    def test_a_taken_name_is_a_conflict(self, api: TestClient, home: Settings) -> None:
        api.post("/v1/studies", json=spec_fields())
        body = assert_problem(api.post("/v1/studies", json=spec_fields(seed=2)), 409, "name_taken")
        assert body["field"] == "name"
        assert belongings(api, home)["studies"] == ["tickets"]

    def test_a_check_says_that_the_name_is_taken_but_not_by_the_same_study(self, api: TestClient) -> None:
        api.post("/v1/studies", json=spec_fields())
        same, other = (api.post("/v1/studies:check", json=spec_fields(seed=seed)).json() for seed in (0, 2))
        assert not any(warning.startswith("name:") for warning in same["warnings"])
        assert other["warnings"][0].startswith("name: a study named 'tickets' exists with another spec")
        assert other["cost"] == same["cost"], "and all the rest is told"

    def test_a_key_repeats_its_answer_and_refuses_another_request(self, api: TestClient) -> None:
        key = {"Idempotency-Key": "nightly/2024-05-01"}
        first = api.post("/v1/studies", json=spec_fields(), headers=key)
        again = api.post("/v1/studies", json=spec_fields(), headers=key)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()
        other = api.post("/v1/studies", json=spec_fields(name="other"), headers=key)
        assert_problem(other, 409, "idempotency_mismatch")
        assert api.get("/v1/studies/other").status_code == 404

    def test_a_key_that_is_too_long_is_refused(self, api: TestClient) -> None:
        answer = api.post("/v1/studies", json=spec_fields(), headers={"Idempotency-Key": "k" * 256})
        assert_problem(answer, 422, "invalid_request")

    def test_one_key_at_once_makes_one_study(self, api: TestClient, home: Settings) -> None:
        barrier = threading.Barrier(8)

        def post(_: int) -> int:
            barrier.wait()
            return api.post("/v1/studies", json=spec_fields(), headers={"Idempotency-Key": "k"}).status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(post, range(8))) == [200] * 7 + [201]
        assert belongings(api, home)["studies"] == ["tickets"]

    def test_a_check_says_what_a_study_would_be_and_queues_nothing(self, api: TestClient, home: Settings) -> None:
        answer = api.post("/v1/studies:check", json=spec_fields())
        assert answer.status_code == 200
        check = answer.json()
        assert check["examples"] == {"train": 400, "validation": 100}
        assert check["model"]["type"] == "llama"
        assert check["model"]["layers"] > 0
        assert check["defaults"]["epochs"] == 4
        cost = check["cost"]
        assert (cost["defaults"], cost["search"]) == (4 * cost["epoch"], 20 * 4 * cost["epoch"])
        assert (cost["confirmation"], cost["rate"], cost["device_hours"]) == (0, None, None)
        assert belongings(api, home) == NOTHING

    def test_what_a_study_costs_is_told_by_the_last_trials_on_its_model(self, api: TestClient) -> None:
        others = {"model": {"base": "models/pydoc-llama", "method": "full"}}
        for name, changes in (("older", {}), ("newest", {}), ("unfinished", {}), ("other-method", others)):
            assert api.post("/v1/studies", json=spec_fields(name=name, **changes)).status_code == 201
        completed = [
            ("newest", {"tokens": 9000, "device_seconds": 3.0}),
            ("newest", {"reused_from": {"study": "older", "number": 0}}),
            ("newest", {}),  # as earlier versions told it
            ("older", {"tokens": 1000, "device_seconds": 2.0}),
            ("other-method", {"tokens": 5000, "device_seconds": 1.0}),
        ]
        service = api.app.state.service  # type: ignore[attr-defined]
        for name, spent in completed:
            with service.database.write() as connection:
                append(connection, name, "trial.completed", time.time(), {"number": 0, **spent})
        cost = api.post("/v1/studies:check", json=spec_fields(name="next")).json()["cost"]
        assert cost["rate"] == {"study": "older", "trials": 2, "tokens_per_second": 2000.0}
        assert cost["device_hours"] == pytest.approx(cost["search"] / 2000 / 3600)

    def test_a_check_warns_of_what_can_be_trained_on_but_should_not(self, door: TestClient) -> None:
        check = door.post("/v1/studies:check", json=good_data()).json()
        assert any("only 20 examples" in warning for warning in check["warnings"])

    def test_a_check_says_what_a_test_split_has_and_that_nothing_reads_it(self, api: TestClient) -> None:
        data = {**spec_fields()["data"], "test": "data/tickets/test.jsonl"}
        check = api.post("/v1/studies:check", json=spec_fields(data=data)).json()
        assert check["examples"] == {"train": 400, "validation": 100, "test": 100}
        assert set(check["lint"]) == {"train", "validation", "test"}
        assert [warning for warning in check["warnings"] if "data.test" in warning] == [preflight.NOT_TESTED]
        confirmed = api.post("/v1/studies:check", json=spec_fields(data=data, confirm={})).json()
        assert not any("test" in warning for warning in confirmed["warnings"])
        shared = {"train": "data/tickets/train.jsonl", "test": "data/tickets/validation.jsonl"}
        held_back = api.post("/v1/studies:check", json=spec_fields(data=shared, confirm={})).json()
        assert set(held_back["examples"]) == {"train", "validation", "test"}


class TestUploading:
    def test_an_upload_is_known_by_its_content(self, api: TestClient, home: Settings) -> None:
        first = api.post("/v1/datasets", content=examples(20))
        again = api.post("/v1/datasets", content=examples(20))
        assert (first.status_code, first.headers["location"]) == (201, f"/v1/datasets/{first.json()['id']}")
        assert again.json() == first.json()
        assert api.post("/v1/datasets", content=examples(21)).json()["id"] != first.json()["id"]
        assert api.get(first.headers["location"]).json() == first.json()
        assert first.json()["examples"] == 20
        assert len(list(home.datasets_folder.iterdir())) == 2

    def test_a_spec_may_name_an_upload(self, api: TestClient, home: Settings) -> None:
        identifier = api.post("/v1/datasets", content=examples(20)).json()["id"]
        study = api.post("/v1/studies", json=spec_fields(data={"train": f"dataset:{identifier}"}))
        assert study.status_code == 201
        assert study.json()["spec"]["data"]["train"] == str(home.datasets_folder / f"{identifier}.jsonl")

    def test_an_upload_may_be_larger_than_a_spec(self, api: TestClient) -> None:
        content = examples(30_000)
        assert len(content) > 2**20
        assert api.post("/v1/datasets", content=content).json()["examples"] == 30_000


def claimed(api: TestClient) -> tuple[StudyRow, Lease]:
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    return service.studies.claim("runner", 60) or pytest.fail("nothing to claim")


class TestLifecycle:
    def test_a_queued_study_is_cancelled_and_then_deleted(self, api: TestClient, home: Settings) -> None:
        api.post("/v1/studies", json=spec_fields())
        assert_problem(api.delete("/v1/studies/tickets"), 409, "illegal_move")
        cancelled = api.post("/v1/studies/tickets/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
        assert api.post("/v1/studies/tickets/cancel").status_code == 202
        assert api.delete("/v1/studies/tickets").status_code == 204
        assert_problem(api.get("/v1/studies/tickets"), 404, "study_not_found")
        assert belongings(api, home) == NOTHING

    def test_a_running_study_is_asked_to_stop(self, api: TestClient) -> None:
        api.post("/v1/studies", json=spec_fields())
        _, lease = claimed(api)
        answer = api.post("/v1/studies/tickets/cancel").json()
        assert (answer["state"], answer["requested"]) == ("running", "cancelled")
        assert_problem(api.delete("/v1/studies/tickets"), 409, "illegal_move")
        api.app.state.service.studies.end(lease, StudyState.FINISHED, "done")  # type: ignore[attr-defined]
        finished = api.get("/v1/studies/tickets").json()
        assert (finished["state"], finished["reason"]) == ("finished", "done")

    def test_a_finished_study_can_not_be_cancelled(self, api: TestClient) -> None:
        api.post("/v1/studies", json=spec_fields())
        _, lease = claimed(api)
        api.app.state.service.studies.end(lease, StudyState.FINISHED, "done")  # type: ignore[attr-defined]
        assert_problem(api.post("/v1/studies/tickets/cancel"), 409, "illegal_move")

    def test_a_delete_that_breaks_off_can_be_repeated(self, api: TestClient) -> None:
        class Unreachable:
            def __getattr__(self, name: str) -> Any:
                raise OSError("the trials can't be reached")

        api.post("/v1/studies", json=spec_fields())
        api.post("/v1/studies/tickets/cancel")
        service: Service = api.app.state.service  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="reached"):
            replace(service, optuna_storage=Unreachable()).delete("tickets", Acting("alice"))  # type: ignore[arg-type]
        assert api.get("/v1/studies/tickets").status_code == 200
        assert api.delete("/v1/studies/tickets").status_code == 204

    @pytest.mark.parametrize(
        "place",
        [
            *("", "x", "[]", "7", "null", "[1.5]", '[1.5, "a", 2]', '["a", 1.5]', '[[1.5], "a"]'),
            *('[NaN, "a"]', '[1e999, "a"]', '[1.5, "\\ud800"]', '[1.5, "\\u0000"]'),
        ],
        ids=repr,
    )
    def test_what_no_page_has_given_is_refused_as_a_cursor(self, door: TestClient, place: str) -> None:
        for after in ("~" + place, "~" + base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")):
            answer = door.get("/v1/studies", params={"after": after})
            assert assert_problem(answer, 422, "invalid_input")["field"] == "after"

    def test_studies_are_listed_by_page_newest_first(self, api: TestClient) -> None:
        names = [f"study-{number}" for number in range(5)]
        for name in names:
            api.post("/v1/studies", json=spec_fields(name=name))
        seen: list[str] = []
        more = True
        while more:
            page = api.get("/v1/studies", params={"limit": 2} | ({"after": seen[-1]} if seen else {})).json()
            seen += [study["name"] for study in page["data"]]
            more = page["has_more"]
        assert sorted(seen) == names
        assert len(seen) == 5
        first = api.get("/v1/studies", params={"limit": 2}).json()
        api.post(f"/v1/studies/{seen[1]}/cancel")
        assert api.delete(f"/v1/studies/{seen[1]}").status_code == 204
        rest = api.get("/v1/studies", params={"limit": 9, "after": first["next"]}).json()
        assert [study["name"] for study in rest["data"]] == seen[2:], "the list goes on where the page ended"
        assert (rest["has_more"], rest["next"]) == (False, None)
        gone = api.get("/v1/studies", params={"after": seen[1]})
        assert assert_problem(gone, 422, "invalid_input")["field"] == "after"
        api.post("/v1/studies", json=spec_fields(name=seen[1]))
        api.post("/v1/studies/study-3/cancel")
        cancelled = api.get("/v1/studies", params={"state": "cancelled"}).json()
        assert [study["name"] for study in cancelled["data"]] == ["study-3"]


@pytest.fixture
def lease(api: TestClient) -> Lease:
    """The right to drive a study that was just submitted."""
    api.post("/v1/studies", json=spec_fields(pruner={"type": "none"}, sampler={"type": "random"}))
    return claimed(api)[1]


@pytest.fixture
def searched(api: TestClient, home: Settings, lease: Lease) -> TestClient:
    """A running study of five trials: 0 and 1 completed (1 is better), 2 pruned, 3 diverged, 4 running."""
    service: Service = api.app.state.service  # type: ignore[attr-defined]
    spec: StudySpec = service.studies.get(lease.study).spec
    search = Search(
        spec,
        optuna_storage(home.sql_url),
        examples=400,
        default_params=default_params(spec, 400),
        event=lambda kind, details: service.studies.append_event(lease, kind, details),
    )
    for loss in (2.0, 1.0, 1.5, 9.0, 3.0):
        asked = search.ask() or pytest.fail("no trial")
        search.start(asked.number, resolve(spec, asked.params, 400, "llama", 1_000_000))
        search.report(asked.number, a_report(0, 4.0), "contract")
        search.report(asked.number, a_report(200, loss), "contract")
        if asked.number < 2:
            folder = home.artifacts_folder / "tickets" / str(asked.number)
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text('{"r": 8}')
            search.complete(asked.number, a_report(200, loss), "contract", str(folder))
    search.prune(2)
    search.fail(3, Failure.DIVERGED, "the loss is nan at step 7")
    return api


class TestTrials:
    def test_a_study_shows_its_progress(self, searched: TestClient) -> None:
        study = searched.get("/v1/studies/tickets").json()
        assert study["trials"] == {"COMPLETE": 2, "FAIL": 1, "PRUNED": 1, "RUNNING": 1}
        assert (study["best"]["number"], study["best"]["value"]) == (1, 1.0)
        assert study["baseline"]["validation_loss"] == 4.0

    def test_the_ranking_has_completed_trials_only_best_first(self, searched: TestClient) -> None:
        ranking = searched.get("/v1/studies/tickets/ranking").json()
        assert [(row["rank"], row["number"], row["value"]) for row in ranking["ranking"]] == [(1, 1, 1.0), (2, 0, 2.0)]
        assert ranking["baseline"]["validation_loss"] == 4.0
        assert ranking["objective"] == {"metric": "validation_loss", "direction": "minimize"}
        assert len(ranking["ranking"][0]["hyperparameters"]) == 10
        top = searched.get("/v1/studies/tickets/ranking", params={"top": 1}).json()
        assert top["ranking"] == ranking["ranking"][:1]

    def test_trials_are_listed_by_number_page_and_state(self, searched: TestClient) -> None:
        page = searched.get("/v1/studies/tickets/trials", params={"limit": 3}).json()
        rest = searched.get("/v1/studies/tickets/trials", params={"after": page["data"][-1]["number"]}).json()
        trials = page["data"] + rest["data"]
        assert (page["has_more"], rest["has_more"]) == (True, False)
        assert [trial["number"] for trial in trials] == [0, 1, 2, 3, 4]
        assert [trial["state"] for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING"]
        assert [trial["value"] for trial in trials] == [2.0, 1.0, None, None, None]
        assert [trial["last_value"] for trial in trials] == [2.0, 1.0, 1.5, 9.0, 3.0]
        assert [trial["origin"] for trial in trials] == ["defaults", *["search"] * 4]
        assert [trial["adapter"] for trial in trials] == [True, True, False, False, False]
        assert (trials[3]["failure"], trials[3]["failure_text"]) == ("diverged", "the loss is nan at step 7")
        pruned = searched.get("/v1/studies/tickets/trials", params={"state": "PRUNED"}).json()
        assert [trial["number"] for trial in pruned["data"]] == [2]

    def test_a_trial_says_that_it_is_alone_on_its_device_until_it_gets_further(
        self, searched: TestClient, home: Settings
    ) -> None:
        storage = optuna_storage(home.sql_url)
        running = optuna.load_study(study_name="tickets", storage=storage).trials[4]
        for reached, alone in ((200, True), (100, False)):
            for name, value in (("suspect", True), ("reached", reached)):
                storage.set_trial_user_attr(running._trial_id, name, value)
            trials = searched.get("/v1/studies/tickets/trials").json()["data"]
            assert [trial["alone"] for trial in trials] == [False, False, False, False, alone]

    def test_a_trial_has_its_config_and_its_curve(self, searched: TestClient) -> None:
        trial = searched.get("/v1/studies/tickets/trials/1").json()
        assert [report["exposure"] for report in trial["curve"]] == [0, 200]
        assert trial["config"]["hyperparameters"].items() >= trial["params"].items()
        assert trial["config"]["model"]["base"] == str(STUDIES / "models/pydoc-llama")

    @pytest.mark.parametrize("number", ["99", "2147483648"])
    def test_a_trial_that_is_not_there_is_not_found(self, searched: TestClient, number: str) -> None:
        assert_problem(searched.get(f"/v1/studies/tickets/trials/{number}"), 404, "trial_not_found")

    @pytest.mark.parametrize("number", ["-1", "one", "1.5", "99999999999999999999"])
    def test_a_number_that_no_trial_can_have_is_refused(self, searched: TestClient, number: str) -> None:
        assert_problem(searched.get(f"/v1/studies/tickets/trials/{number}"), 422, "invalid_request")

    def test_the_weights_of_a_completed_trial_are_a_tar_file(self, searched: TestClient) -> None:
        answer = searched.get("/v1/studies/tickets/trials/1/adapter")
        assert answer.status_code == 200
        assert 'filename="tickets-1.tar"' in answer.headers["content-disposition"]
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            assert archive.getnames() == ["tickets-1", "tickets-1/adapter_config.json"]
            assert archive.extractfile("tickets-1/adapter_config.json").read() == b'{"r": 8}'  # type: ignore[union-attr]

    def test_a_download_leaves_no_file_whether_it_is_sent_or_not(
        self, searched: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither on a disk that is full, nor behind a client that went away."""
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        path = "/v1/studies/tickets/trials/1/adapter"
        assert searched.get(path).status_code == 200
        assert list(folder.iterdir()) == []
        answer = trials.get_adapter("tickets", 1, searched.app.state.service)  # type: ignore[attr-defined]
        assert len(list(folder.iterdir())) == 1

        async def receive() -> Message:
            await asyncio.Event().wait()
            return {}

        async def gone(_: Message) -> None:
            raise OSError("the client went away")

        with pytest.raises(OSError, match="went away"):
            asyncio.run(answer({"type": "http", "method": "GET", "headers": []}, receive, gone))
        assert list(folder.iterdir()) == []
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(tarfile.TarFile, "add", lambda *_, **__: (_ for _ in ()).throw(full))
        client = TestClient(searched.app, "http://127.0.0.1", raise_server_exceptions=False)
        assert_problem(client.get(path), 500, "internal_error")
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("number", [2, 3, 4])
    def test_other_trials_have_no_weights(self, searched: TestClient, number: int) -> None:
        assert_problem(searched.get(f"/v1/studies/tickets/trials/{number}/adapter"), 404, "adapter_not_found")

    def test_deleting_a_study_deletes_its_trials_and_weights(
        self, searched: TestClient, lease: Lease, home: Settings
    ) -> None:
        searched.app.state.service.studies.end(lease, StudyState.FINISHED, "done")  # type: ignore[attr-defined]
        assert searched.delete("/v1/studies/tickets").status_code == 204
        assert belongings(searched, home) == NOTHING


def events_of(answer: Any) -> list[dict[str, str]]:
    """A stream's events: their fields by name."""
    blocks = [block for block in answer.text.split("\n\n") if block.strip() and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


class TestEvents:
    @pytest.fixture
    def over(self, searched: TestClient, lease: Lease) -> TestClient:
        searched.app.state.service.studies.end(lease, StudyState.FINISHED, "done")  # type: ignore[attr-defined]
        return searched

    def test_the_stream_tells_all_and_ends_when_the_study_is_over(self, over: TestClient) -> None:
        answer = over.get("/v1/studies/tickets/events")
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer)
        kinds = [event["event"] for event in events]
        assert kinds[:3] == ["study.queued", "study.started", "trial.started"]
        assert kinds[-1] == "study.finished"
        assert kinds.count("study.baseline") == 1
        assert kinds.count("trial.reported") == 10
        for event in events:
            told = json.loads(event["data"])
            assert (str(told["id"]), told["kind"], told["study"]) == (event["id"], event["event"], "tickets")

    def test_a_reader_goes_on_behind_the_last_event_it_saw(self, over: TestClient) -> None:
        every = events_of(over.get("/v1/studies/tickets/events"))
        for place in range(len(every)):
            last = every[place]["id"]
            by_header = events_of(over.get("/v1/studies/tickets/events", headers={"Last-Event-ID": last}))
            assert by_header == every[place + 1 :]
        by_query = events_of(over.get("/v1/studies/tickets/events", params={"after": every[3]["id"]}))
        assert by_query == every[4:]

    @pytest.mark.parametrize("after", ["-1", "x", str(2**63), str(10**30)])
    def test_a_cursor_that_can_not_be_is_refused(self, over: TestClient, after: str) -> None:
        for answer in (
            over.get("/v1/studies/tickets/events", params={"after": after}),
            over.get("/v1/studies/tickets/events", headers={"Last-Event-ID": after}),
        ):
            assert_problem(answer, 422, "invalid_request")


class TestTheUnexpected:
    CANARY = "canary-that-must-not-leave-the-house"

    @pytest.fixture
    def broken(self, api: TestClient) -> TestClient:
        canary = self.CANARY

        class Broken:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError(canary)

        service = replace(api.app.state.service, studies=Broken(), endings=Broken())  # type: ignore[attr-defined]
        api.app.state.service = service  # type: ignore[attr-defined]
        return api

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/studies"),
            ("GET", "/v1/studies/a"),
            ("DELETE", "/v1/studies/a"),
            ("GET", "/v1/studies/a/events"),
        ],
    )
    def test_an_unexpected_error_is_logged_and_not_told(
        self, broken: TestClient, caplog: pytest.LogCaptureFixture, method: str, path: str
    ) -> None:
        caplog.set_level(logging.INFO)
        answer = broken.request(method, path)
        assert_problem(answer, 500, "internal_error")
        assert self.CANARY not in answer.text + str(answer.headers)
        assert self.CANARY in caplog.text


class TestAddresses:
    def test_the_index_leads_to_what_is_there(self, door: TestClient) -> None:
        for path in ("/v1", "/v1/"):
            index = door.get(path).json()
            assert index["version"] == __version__
            assert index["links"] == {
                "studies": "/v1/studies",
                "datasets": "/v1/datasets",
                "alive": "/livez",
                "ready": "/readyz",
                "metrics": "/metrics",
                "openapi": "/v1/openapi.json",
                "docs": "/v1/docs",
                "dashboard": "/dashboard",
            }
        for name, path in index["links"].items():
            assert door.get(path).status_code == (200 if name != "datasets" else 405), path

    @pytest.mark.parametrize(
        ("path", "known"),
        [
            ("/v1", "GET"),
            ("/v1/studies", "GET, POST"),
            ("/v1/studies:check", "POST"),
            ("/v1/studies/tickets", "GET, PATCH, DELETE"),
            ("/v1/studies/tickets/trials", "GET, POST"),
            ("/v1/studies/tickets/borrowed", "GET, DELETE"),
            ("/v1/studies/tickets/pause", "POST"),
            ("/v1/datasets", "POST"),
            ("/livez", "GET"),
            ("/metrics", "GET"),
            ("/v1/openapi.json", "GET, HEAD"),
            ("/dashboard", "GET, HEAD"),
        ],
    )
    def test_another_method_is_refused_with_those_there_are(self, door: TestClient, path: str, known: str) -> None:
        for method in {"PUT", "POST", "DELETE", "OPTIONS", "PROPFIND"} - set(known.split(", ")):
            answer = door.request(method, path)
            assert_problem(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == known

    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PROPFIND"])
    def test_what_is_nowhere_below_v1_is_not_found_whatever_the_method(self, door: TestClient, method: str) -> None:
        for path in ("/v1/nothing", "/v1/studies/", "/v1/studies/tickets/nothing", "/v1/dashboard"):
            assert_problem(door.request(method, path), 404, "not_found")

    def test_without_the_dashboard_the_rest_is_as_it_was(
        self, shared_home: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpsearch.api.app.dashboard", lambda _storage: None)
        bare = TestClient(create_app(shared_home), base_url="http://127.0.0.1")
        assert "dashboard" not in bare.get("/v1").json()["links"]
        assert_problem(bare.get("/dashboard"), 404, "not_found")
        assert bare.put("/v1/studies").headers["allow"] == "GET, POST"


class TestTheDescription:
    @pytest.fixture(scope="class")
    def openapi(self, door: TestClient) -> dict[str, Any]:
        described: dict[str, Any] = door.get("/v1/openapi.json").json()
        return described

    def operations(self, openapi: dict[str, Any]) -> list[dict[str, Any]]:
        return [operation for path in openapi["paths"].values() for operation in path.values()]

    def test_every_operation_has_a_name_of_its_own_and_a_summary(self, openapi: dict[str, Any]) -> None:
        names = [operation["operationId"] for operation in self.operations(openapi)]
        assert len(set(names)) == len(names) >= 13
        assert all(operation.get("description") for operation in self.operations(openapi))

    def test_a_spec_has_examples_that_are_valid(self, openapi: dict[str, Any], door: TestClient) -> None:
        body = openapi["paths"]["/v1/studies"]["post"]["requestBody"]["content"]["application/json"]
        schema = openapi["components"]["schemas"]["StudySpec"]
        examples = [example["value"] for example in body.get("examples", {}).values()]
        examples += schema.get("examples", []) + ([body["example"]] if "example" in body else [])
        assert examples
        for example in examples:
            assert StudySpec.model_validate(example)

    def test_problems_are_described_as_they_are_sent(self, openapi: dict[str, Any], door: TestClient) -> None:
        described = openapi["paths"]["/v1/studies/{name}"]["get"]["responses"]["404"]["content"]
        assert PROBLEM in described

    def test_the_interactive_description_opens(self, door: TestClient) -> None:
        assert door.get("/v1/docs").status_code == 200


class TestHealth:
    def test_the_service_is_alive_and_ready(self, api: TestClient) -> None:
        assert api.get("/livez").json()["status"] == "ok"
        assert api.get("/readyz").json() == {"status": "ok"}

    def test_it_is_not_ready_when_its_database_is_gone(self, api: TestClient, home: Settings) -> None:
        for path in home.home.glob("hpsearch.db*"):
            path.unlink()
        api.app.state.service.database.close()  # type: ignore[attr-defined]
        assert_problem(api.get("/readyz"), 503, "database_unavailable")
        assert api.get("/livez").status_code == 200


def test_a_baseline_without_prompts_is_shown(searched: TestClient) -> None:
    """Its prompt loss is null: the data had no prompt tokens."""
    assert searched.get("/v1/studies/tickets").json()["baseline"]["validation_prompt_loss"] is None
    assert searched.get("/v1/studies/tickets/ranking").json()["baseline"]["validation_prompt_loss"] is None


def test_a_name_and_a_key_are_free_again_after_a_delete(api: TestClient) -> None:
    for _ in range(2):
        answer = api.post("/v1/studies", json=spec_fields(), headers={"Idempotency-Key": "k"})
        assert (answer.status_code, answer.json()["state"]) == (201, "queued")
        api.post("/v1/studies/tickets/cancel")
        assert api.delete("/v1/studies/tickets").status_code == 204


def test_a_check_that_takes_long_keeps_nobody_waiting_and_is_not_repeated(
    service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred thousand examples it takes most of a minute."""
    real, begun, may_end, checked = preflight.lint, threading.Event(), threading.Event(), []

    def slow(path: Path, *terms: Any, **more: Any) -> Any:
        checked.append(path.name)
        begun.set()
        assert may_end.wait(120)
        return real(path, *terms, **more)

    monkeypatch.setattr(preflight, "lint", slow)
    monkeypatch.setattr(preflight, "LINTED", Linted())
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(httpx.post, f"{service_url}/v1/studies", json=spec_fields(), timeout=250)
        assert begun.wait(60)
        for path in ("/livez", "/readyz", "/v1/studies"):
            assert httpx.get(service_url + path, timeout=60).status_code == 200
        assert not submitting.done()
        may_end.set()
        assert submitting.result().status_code == 201
    again = httpx.post(f"{service_url}/v1/studies:check", json=spec_fields(), timeout=60)
    assert again.status_code == 200
    assert checked == ["train.jsonl", "validation.jsonl"]
