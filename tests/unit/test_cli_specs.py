"""From a spec file to what is sent."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from hpsearch.cli import app
from hpsearch.cli.specs import read_spec, upload_data
from hpsearch.client import Client
from hpsearch.errors import InvalidDataset, InvalidSpec, TooLarge
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec
from hpsearch.spec.study import LARGEST_SPEC
from tests.builders import spec_fields
from tests.conftest import STUDIES


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to(name: str, text: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return to


TOML = """
name = "tickets"
seed = 7
[model]
base = "m"
[data]
train = "a.jsonl"
[search_space]
epochs = { low = 1, high = 4 }
"""
YAML = """
name: tickets
seed: 7
model: {base: m}
data: {train: a.jsonl}
search_space: {epochs: {low: 1, high: 4}}
"""
JSON = json.dumps(
    {
        "name": "tickets",
        "seed": 7,
        "model": {"base": "m"},
        "data": {"train": "a.jsonl"},
        "search_space": {"epochs": {"low": 1, "high": 4}},
    }
)


def test_yaml_toml_and_json_say_the_same(write: Any) -> None:
    read = [read_spec(write(name, text)) for name, text in (("a.yaml", YAML), ("a.toml", TOML), ("a.json", JSON))]
    assert read[0] == read[1] == read[2] == json.loads(JSON)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("a.yaml", "a: &x [1]\nb: *x\n", "aliases", id="alias"),
        pytest.param("a.yaml", "a: &x {b: 1}\nc:\n  <<: *x\n", "aliases", id="merge"),
        pytest.param("a.yaml", "name: a\nname: b\n", "'name' is given twice", id="key-twice"),
        pytest.param("a.yaml", "model:\n  base: a\n  base: b\n", "'base' is given twice", id="deep-key-twice"),
        pytest.param("a.yaml", "name: a\nmodel: {base: [\n", "line 3", id="cut-off"),
        pytest.param("a.yaml", "name: a\n\tmodel: b\n", "line 2", id="tab"),
        pytest.param("a.yaml", "name: 'a\n", "line", id="open-quote"),
        pytest.param("a.yaml", "!!python/object/apply:os.system ['true']\n", "line 1", id="python-tag"),
        pytest.param("a.yaml", "a: 1\n---\nb: 2\n", "line 2", id="two-documents"),
        pytest.param("a.yaml", "? [a, b]\n: 1\n", "line 1", id="list-as-key"),
        pytest.param("a.yaml", "? {a: b}\n: 1\n", "line 1", id="mapping-as-key"),
        pytest.param("a.yaml", "[" * 50_000, "a.yaml", id="deep"),
        pytest.param("a.yaml", "a: \x00\n", "a.yaml", id="nul"),
        pytest.param("a.yaml", b"name: \xff\xfe\n", "UTF-8", id="not-utf-8"),
        pytest.param("a.yaml", "", "no study spec", id="empty"),
        pytest.param("a.yaml", "- a\n", "no study spec", id="list"),
        pytest.param("a.yaml", "just text", "no study spec", id="text"),
        pytest.param("a.toml", "name = 'a'\nmodel = \n", "line 2", id="toml"),
        pytest.param("a.toml", "name = 'a'\nname = 'b'\n", "line 2", id="toml-key-twice"),
        pytest.param("a.json", '{\n"name": \n}', "line 3", id="json"),
        pytest.param("a.json", "[1]", "no study spec", id="json-list"),
        pytest.param("a.json", '{"name": "a", "name": "b"}', "'name' is given twice", id="json-key-twice"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused_with_the_place(write: Any, name: str, text: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        read_spec(write(name, text))
    assert said in str(refused.value)


def test_a_key_that_is_given_twice_is_named_with_its_line(write: Any) -> None:
    with pytest.raises(InvalidSpec) as refused:
        read_spec(write("a.yaml", "name: a\nmodel:\n  base: a\n  method: lora\n  base: b\n"))
    assert (refused.value.field, refused.value.line) == ("base", 5)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"missing\.yaml"):
        read_spec(tmp_path / "missing.yaml")
    with pytest.raises(InvalidSpec):
        read_spec(tmp_path)


def test_a_file_that_is_no_spec_by_its_size_is_not_read(write: Any) -> None:
    with pytest.raises(TooLarge, match="is it a spec"):
        read_spec(write("a.yaml", "#" * (LARGEST_SPEC + 1)))


def test_a_number_in_scientific_notation_is_a_number_in_the_end(write: Any) -> None:
    text = YAML.replace("{epochs: {low: 1, high: 4}}", "{learning_rate_multiplier: {low: 1e-4, high: 1e-2, log: true}}")
    space = StudySpec.model_validate(read_spec(write("a.yaml", text))).search_space
    assert space.model_dump()["learning_rate_multiplier"] == {"low": 1e-4, "high": 1e-2, "log": True, "step": None}


class TestAgainstTheService:
    @pytest.fixture
    def beside(self, tmp_path: Path) -> Path:
        """A folder as `studies/` is: a spec, and its data beside it."""
        shutil.copytree(STUDIES / "data", tmp_path / "mine" / "files")
        fields = spec_fields(
            data={"train": "files/tickets/train.jsonl", "validation": "./files/tickets/validation.jsonl"}
        )
        (tmp_path / "mine" / "study.json").write_text(json.dumps(fields))
        return tmp_path / "mine"

    def run(self, *arguments: str | Path, url: str) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"HPSEARCH_URL": url})

    def test_data_beside_the_spec_is_uploaded_and_named_by_its_content(
        self, beside: Path, service_url: str, api: TestClient
    ) -> None:
        written = read_spec(beside / "study.json")
        sent = upload_data(written, beside, Client(service_url))
        assert written["data"]["train"] == "files/tickets/train.jsonl"
        for split in ("train", "validation"):
            dataset = api.get(f"/v1/datasets/{sent['data'][split].removeprefix('dataset:')}")
            assert dataset.json()["bytes"] == (STUDIES / f"data/tickets/{split}.jsonl").stat().st_size
        assert {**sent, "data": written["data"]} == written

    def test_of_large_files_it_is_said_what_takes_long(
        self, beside: Path, service_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        written = read_spec(beside / "study.json")
        upload_data(written, beside, Client(service_url))
        assert capsys.readouterr().err == "", "these are small"
        monkeypatch.setattr("hpsearch.cli.specs.LARGE_DATA", 50_000)
        upload_data(written, beside, Client(service_url), quiet=True)
        assert capsys.readouterr().err == ""
        upload_data(written, beside, Client(service_url))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("uploading and checking files/tickets/train.jsonl, about 400 examples")

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_an_upload_that_is_refused_is_told_with_its_field_and_its_file(
        self, beside: Path, service_url: str, split: str
    ) -> None:
        (beside / "files" / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
        written = read_spec(beside / "study.json")
        written["data"][split] = "files/broken.jsonl"
        with pytest.raises(InvalidDataset) as refused:
            upload_data(written, beside, Client(service_url))
        assert (refused.value.field, refused.value.line) == (f"data.{split}", 2)
        assert str(refused.value).startswith(f"data.{split} (broken.jsonl): line 2: ")

    def test_a_file_over_the_limit_is_told_with_its_field_too(self, beside: Path, service_url: str, api: Any) -> None:
        service = api.app.state.service
        api.app.state.service = replace(
            service, settings=service.settings.model_copy(update={"max_upload_bytes": 1024})
        )
        with pytest.raises(TooLarge) as refused:
            upload_data(read_spec(beside / "study.json"), beside, Client(service_url))
        assert refused.value.field == "data.train"
        assert str(refused.value) == "data.train (train.jsonl): the dataset is larger than 1,024 bytes"

    def test_what_is_not_beside_the_spec_is_the_services_business(self, beside: Path, service_url: str) -> None:
        fields = spec_fields(data={"train": "elsewhere.jsonl", "validation": "/elsewhere.jsonl"})
        assert upload_data(fields, beside, Client(service_url)) == fields

    def test_a_hub_dataset_is_the_services_business_whatever_lies_beside(self, beside: Path, service_url: str) -> None:
        (beside / "hub:org").mkdir()
        (beside / "hub:org" / "name").write_text("{}")
        fields = spec_fields(data={"train": "hub:org/name", "validation": "dataset:ds-1"})
        assert upload_data(fields, beside, Client(service_url)) == fields

    def test_a_models_folder_beside_the_spec_becomes_absolute(self, beside: Path, service_url: str) -> None:
        fields = spec_fields(model={"base": "./model"}, data={"train": "dataset:x"})
        assert upload_data(fields, beside, Client(service_url))["model"]["base"] == str(beside / "model")

    def test_submitting_twice_is_once(self, beside: Path, service_url: str) -> None:
        fields = json.loads((beside / "study.json").read_text()) | {"pruner": {"type": "median", "startup_trials": 99}}
        (beside / "study.json").write_text(json.dumps(fields))
        first = self.run("submit", beside / "study.json", url=service_url)
        again = self.run("submit", beside / "study.json", url=service_url)
        assert (first.exit_code, again.exit_code) == (0, 0), first.output
        assert "queued" in first.stderr
        assert "warning: pruner.startup_trials: " in first.stderr
        assert "is there already" in again.stderr
        assert "warning" not in again.stderr

    def test_the_same_words_that_came_to_mean_another_study_are_told_that_the_name_is_taken(
        self, beside: Path, service_url: str, home: Settings
    ) -> None:
        """Not that a key was used before: the command line sends one by itself, and nobody chose it."""
        base, models = home.home / "base", [home.home / name for name in ("one", "two")]
        for model in models:
            shutil.copytree(STUDIES / "models/pydoc-llama", model)
        (beside / "study.json").write_text(
            json.dumps({**read_spec(beside / "study.json"), "model": {"base": "base", "base_learning_rate": 0.004}})
        )
        base.symlink_to(models[0])
        assert self.run("submit", beside / "study.json", url=service_url).exit_code == 0
        base.unlink()
        base.symlink_to(models[1])
        again = self.run("submit", beside / "study.json", url=service_url)
        assert again.exit_code == 1
        assert again.stderr.startswith("error: a study named 'tickets' exists with another spec")
        assert "[name_taken]" in again.stderr

    @pytest.mark.parametrize(
        ("changes", "code", "said"),
        [
            ({"nmae": 1}, 65, "did you mean 'name'?"),
            ({"model": {"base": "models/none"}}, 65, "models/none"),
            ({"data": {"train": "files/broken.jsonl"}}, 65, "line 2"),
            ({"budget": {"trials": 3, "gpu_hours": float("inf")}}, 65, "budget.gpu_hours"),
            ({"budget": {"trials": 3, "gpu_hours": float("nan")}}, 65, "budget.gpu_hours"),
        ],
        ids=["unknown-key", "unknown-model", "broken-line", "infinite", "nan"],
    )
    def test_a_refusal_is_one_line_and_an_exit_code(
        self, beside: Path, service_url: str, changes: dict[str, Any], code: int, said: str
    ) -> None:
        (beside / "files" / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
        (beside / "study.json").write_text(json.dumps({**read_spec(beside / "study.json"), **changes}))
        for command in ("submit", "check"):
            done = self.run(command, beside / "study.json", url=service_url)
            assert done.exit_code == code, done.output
            assert said in done.stderr
            assert done.stderr.startswith("error: ")
            assert "Traceback" not in done.output

    def test_a_check_prints_what_the_study_would_be(self, beside: Path, service_url: str) -> None:
        done = self.run("check", beside / "study.json", url=service_url)
        assert done.exit_code == 0
        assert "400 training and 100 validation examples" in done.stdout
        assert "the spec is valid" in done.stdout

    def test_a_service_that_does_not_answer_is_exit_code_69(self, beside: Path) -> None:
        done = self.run("check", beside / "study.json", url="127.0.0.1:1")
        assert done.exit_code == 69
        assert "hpsearch serve" in done.stderr
