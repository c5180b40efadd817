"""The service as its users run it: real processes, the command line, kill -9."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from hpsearch.client import Client
from tests.ports import free_port

STUDIES = Path(__file__).parents[2] / "studies"
PATIENCE = 150
"""Seconds until something that never happens is a failure; what does happen is not waited for any longer."""


def some_tickets(folder: Path) -> None:
    """A tenth of the bundled data, under the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 40), ("validation", 10)):
        lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def a_spec_file(folder: Path, name: str, epochs: int = 2, trials: int = 3) -> Path:
    """A study of a few seconds, its data beside it."""
    some_tickets(folder)
    spec = {
        "name": name,
        "seed": sum(name.encode()),  # none of its trials is one that another study has trained
        "model": {"base": "models/pydoc-llama", "base_learning_rate": 4e-3},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "search_space": {
            "epochs": epochs,
            "batch_size": {"choices": [4, 8]},
            "learning_rate_multiplier": {"low": 0.3, "high": 3, "log": True},
            "prompt_loss_weight": {"low": 0, "high": 0.5},
            "dropout": {"low": 0, "high": 0.2},
            "weight_decay": {"low": 0.001, "high": 0.1, "log": True},
        },
        "pruner": {"type": "none"},
        "budget": {"trials": trials},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


class Service:
    """`hpsearch serve` on a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HPSEARCH_")},
            "HPSEARCH_HOME": str(home),
            "HPSEARCH_ALLOWED_ROOTS": str(STUDIES),
            "HPSEARCH_URL": self.url,
            "HPSEARCH_LEASE_SECONDS": "4",
            **environment,
        }
        self.log = home.parent / f"{home.name}.log"
        self.client = Client(self.url)
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "hpsearch", "serve", "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        wait_for(self.answers, PATIENCE)

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        return False

    def child(self, module: str) -> int:
        """The process id of the API or the runner."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return next(int(line.split()[0]) for line in listed.stdout.splitlines() if f"-m {module}" in line)

    def run(self, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpsearch", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def trials_reported(self, name: str) -> bool:
        return any(trial["exposure"] > 0 for trial in self.client.trials(name))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def standing_service(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Iterator[Service]:
    """One for all tests: whatever they kill of it, it is up again at their end."""
    running = Service(tmp_path_factory.mktemp("standing") / "home", HPSEARCH_RAY_ADDRESS=ray_address)
    yield running
    running.stop()


@pytest.fixture
def service(standing_service: Service) -> Service:
    """It is up and has nothing to do, even behind a test that failed."""
    if standing_service.process.poll() is not None:
        standing_service.start()
    wait_for(standing_service.answers, PATIENCE)
    for study in standing_service.client.studies()["data"]:
        if study["state"] in ("queued", "running"):
            standing_service.client.cancel(study["name"])
    return standing_service


def finished_trials(service: Service, name: str) -> dict[str, Any]:
    """Wait for the study's end; nothing may be left open in it."""
    wait_for(lambda: service.client.study(name)["state"] in ("finished", "failed", "cancelled"), PATIENCE)
    study = service.client.study(name)
    assert study["state"] == "finished", study["reason"]
    assert not {"RUNNING", "WAITING"} & set(study["trials"])
    return study


def test_one_command_searches_on_this_machine_and_a_second_one_finds_it_done(tmp_path: Path) -> None:
    spec, port = a_spec_file(tmp_path, "alone"), free_port()
    environment = {**os.environ, "HPSEARCH_HOME": str(tmp_path / "home"), "HPSEARCH_ALLOWED_ROOTS": str(STUDIES)}
    command = [sys.executable, "-m", "hpsearch", "run", str(spec), "--port", str(port), "--json"]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert first.returncode == 0, first.stderr
    ranking = json.loads(first.stdout)
    assert [entry["rank"] for entry in ranking["ranking"]] == [1, 2, 3]
    values = [entry["value"] for entry in ranking["ranking"]]
    assert values == sorted(values)
    assert values[0] < ranking["baseline"]["validation_loss"] - 0.5
    assert set(ranking["ranking"][0]["params"]) == {
        "batch_size",
        "learning_rate_multiplier",
        "prompt_loss_weight",
        "dropout",
        "weight_decay",
    }
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert json.loads(second.stdout)["ranking"] == ranking["ranking"]
    assert "is there already (finished)" in second.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/livez")


def test_a_run_that_is_killed_takes_its_service_with_it(tmp_path: Path, ray_address: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "HPSEARCH_HOME": str(tmp_path / "home"),
        "HPSEARCH_ALLOWED_ROOTS": str(STUDIES),
        "HPSEARCH_RAY_ADDRESS": ray_address,
    }
    spec = a_spec_file(tmp_path, "left", epochs=6)
    command = [sys.executable, "-m", "hpsearch", "run", str(spec), "--port", url.rpartition(":")[2]]
    with (tmp_path / "terminal").open("wb") as terminal:
        run = subprocess.Popen(command, env=environment, stdout=terminal, stderr=terminal)
    wait_for(lambda: b"study started" in (tmp_path / "terminal").read_bytes(), PATIENCE)
    run.kill()
    run.wait()

    def is_gone() -> bool:
        try:
            httpx.get(f"{url}/livez", timeout=2)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it ends while it answers
            return False
        return False

    wait_for(is_gone, PATIENCE)
    assert "stopping: running trials are kept" in (tmp_path / "home/service.log").read_text()


def test_a_submitted_study_is_followed_ranked_and_its_winner_taken_home(service: Service, tmp_path: Path) -> None:
    spec = a_spec_file(tmp_path, "followed")
    checked = service.run("check", str(spec))
    assert checked.returncode == 0
    assert "40 training and 10 validation examples" in checked.stdout
    assert "warning: data.train: only 40 examples" in checked.stdout

    submitted = service.run("submit", str(spec), "--wait", "--json")
    assert submitted.returncode == 0, submitted.stderr
    ranking = json.loads(submitted.stdout)
    assert ranking["state"] == "finished"
    assert "baseline (the untouched base model)" in submitted.stderr

    ranked = service.run("rank", "followed")
    assert ranked.returncode == 0
    assert "baseline" in ranked.stdout
    best = ranking["ranking"][0]["number"]
    shown = json.loads(service.run("show", "followed", str(best), "--json").stdout)
    assert [report["exposure"] for report in shown["curve"]] == [0, 20, 40, 60, 80]
    exported = service.run("export", "followed", "--output", str(tmp_path / "new/winner"))
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "new/winner/adapter_model.safetensors").is_file()
    kept = json.loads((tmp_path / "new/winner/hpsearch_trial.json").read_text())
    assert (kept["number"], kept["curve"]) == (best, shown["curve"])
    merged = service.run("export", "followed", "--to", "model", "--output", str(tmp_path / "whole"))
    assert merged.returncode == 0, merged.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "whole").iterdir()
    }
    assert_the_documented_way_to_ask_them_works(tmp_path)
    events = list(service.client.events("followed"))
    assert events[0]["kind"] == "study.queued"
    assert events[-1]["kind"] == "study.finished"

    assert "hpsearch confirm followed" in ranked.stdout
    asked = service.run("confirm", "followed", "--top", "1", "--seeds", "2")
    assert (asked.returncode, asked.stdout.partition(";")[0]) == (0, "study 'followed' is queued")
    watched = service.run("watch", "followed")
    assert watched.returncode == 0, watched.stderr
    confirmed = json.loads(service.run("rank", "followed", "--json").stdout)
    assert confirmed["ranking"] == ranking["ranking"]
    verdict = confirmed["verdict"]
    assert not verdict["outdated"]
    assert {each["number"] for each in verdict["candidates"]} == {best, 0}
    assert all(len(each["losses"]) == 2 for each in verdict["candidates"])
    assert f"verdict: {verdict['text']}" in watched.stderr
    assert " ".join(verdict["text"].split()) in " ".join(service.run("rank", "followed").stdout.split())
    assert not (service.home / "artifacts/followed/confirmation").exists()


def assert_the_documented_way_to_ask_them_works(exported: Path) -> None:
    (exported / "best-adapter").symlink_to("new/winner")
    (exported / "best").symlink_to("whole")
    page = (STUDIES.parent / "docs/winner.md").read_text()
    python = "".join(block.split("```")[0] for block in page.split("```python\n")[1:])
    command = [sys.executable, "-c", python]
    asked = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert asked.returncode == 0, asked.stderr
    by_adapter, by_whole_model = asked.stdout.splitlines()
    assert by_adapter == by_whole_model
    assert by_adapter.startswith("{"), "it has learnt to answer in JSON"


def test_killing_the_api_in_the_middle_changes_nothing_for_the_study(service: Service, tmp_path: Path) -> None:
    service.run("submit", str(a_spec_file(tmp_path, "survivor", epochs=6)))
    wait_for(lambda: service.trials_reported("survivor"), PATIENCE)
    os.kill(service.child("hpsearch.api"), signal.SIGKILL)
    wait_for(service.answers, PATIENCE)
    study = finished_trials(service, "survivor")
    assert study["trials"] == {"COMPLETE": 3}


def test_killing_the_runner_in_the_middle_repeats_nothing_and_every_trial_goes_on(
    service: Service, tmp_path: Path
) -> None:
    service.run("submit", str(a_spec_file(tmp_path, "taken-over", epochs=6)))
    wait_for(lambda: service.trials_reported("taken-over"), PATIENCE)
    os.kill(service.child("hpsearch.runner"), signal.SIGKILL)
    study = finished_trials(service, "taken-over")
    assert study["trials"]["COMPLETE"] == 3
    trials = service.client.trials("taken-over")
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 3
    assert sum(trial["attempts"] > 1 for trial in trials) >= 1
    assert len({json.dumps(trial["params"], sort_keys=True) for trial in trials}) == 3
    events = list(service.client.events("taken-over"))
    assert {"study.taken_over", "trial.interrupted", "trial.continued"} <= {event["kind"] for event in events}
    told = [(event["number"], event["exposure"]) for event in events if event["kind"] == "trial.reported"]
    assert len(set(told)) == len(told)


def test_killing_the_whole_service_leaves_no_process_and_the_next_start_goes_on(
    service: Service, tmp_path: Path
) -> None:
    service.run("submit", str(a_spec_file(tmp_path, "restarted", epochs=6)))
    wait_for(lambda: service.trials_reported("restarted"), PATIENCE)
    children = [service.child("hpsearch.api"), service.child("hpsearch.runner")]
    service.process.kill()
    service.process.wait()
    wait_for(lambda: not any(map(is_alive, children)), PATIENCE)
    service.start()
    assert finished_trials(service, "restarted")["trials"]["COMPLETE"] == 3


def test_stopping_the_service_hands_the_study_over_to_the_next_start(service: Service, tmp_path: Path) -> None:
    service.run("submit", str(a_spec_file(tmp_path, "handed-over", epochs=6)))
    wait_for(lambda: service.trials_reported("handed-over"), PATIENCE)
    assert service.stop() == 0
    service.start()
    assert finished_trials(service, "handed-over")["trials"]["COMPLETE"] == 3


def test_a_running_study_can_be_cancelled_and_then_deleted(service: Service, tmp_path: Path) -> None:
    service.run("submit", str(a_spec_file(tmp_path, "unwanted", epochs=500)))
    wait_for(lambda: service.trials_reported("unwanted"), PATIENCE)
    assert service.run("cancel", "unwanted").returncode == 0
    wait_for(lambda: service.client.study("unwanted")["state"] == "cancelled", PATIENCE)
    assert set(service.client.study("unwanted")["trials"]) == {"FAIL"}
    assert service.run("rank", "unwanted").returncode == 0
    assert service.run("delete", "unwanted").returncode == 0
    gone = service.run("show", "unwanted")
    assert gone.returncode == 1
    assert "study_not_found" in gone.stderr


def test_a_wrong_spec_exits_with_65_and_one_line_that_names_the_field(service: Service, tmp_path: Path) -> None:
    spec = a_spec_file(tmp_path, "wrong")
    spec.write_text(spec.read_text().replace("dropout:", "dropuot:"))
    refused = service.run("submit", str(spec))
    assert refused.returncode == 65
    assert refused.stderr.startswith("error: search_space.dropuot: unknown key 'dropuot'; did you mean 'dropout'?")
    assert refused.stderr.count("\n") == 1
    assert "wrong" not in [study["name"] for study in service.client.studies()["data"]]


def test_a_whole_study_on_postgresql(tmp_path: Path, ray_address: str, postgres_url: str) -> None:
    service = Service(tmp_path / "home", HPSEARCH_RAY_ADDRESS=ray_address, HPSEARCH_DATABASE_URL=postgres_url)
    try:
        submitted = service.run("submit", str(a_spec_file(tmp_path, "on-postgres")), "--wait", "--json")
        assert submitted.returncode == 0, submitted.stderr
        assert len(json.loads(submitted.stdout)["ranking"]) == 3
        shown = httpx.get(f"{service.url}/api/studies", timeout=PATIENCE).json()
        assert [study["study_name"] for study in shown["study_summaries"]] == ["on-postgres"]
    finally:
        service.stop()


@pytest.fixture
def service_with_less_data(tmp_path: Path, ray_address: str) -> Iterator[Service]:
    """The bundled data's paths lead to some of it."""
    some_tickets(tmp_path / "less/data/tickets")
    roots = f"{tmp_path / 'less'}{os.pathsep}{STUDIES}"
    running = Service(tmp_path / "home", HPSEARCH_RAY_ADDRESS=ray_address, HPSEARCH_ALLOWED_ROOTS=roots)
    yield running
    running.stop()


def test_the_readme_s_curl_lines_and_the_documented_client_work_as_written(service_with_less_data: Service) -> None:
    service = service_with_less_data
    readme, api = (STUDIES.parent / "README.md").read_text(), (STUDIES.parent / "docs/api.md").read_text()
    shell = readme.split("```sh\n")[1].split("```")[0]
    python = "".join(block.split("```")[0] for block in api.split("```python\n")[1:])
    for program, example in ((["bash", "-euo", "pipefail", "-c"], shell), ([sys.executable, "-c"], python)):
        text = example.replace("http://127.0.0.1:8000", service.url)
        ran = subprocess.run(
            [*program, text], env=service.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert ran.returncode == 0, ran.stderr
    assert len(finished_trials(service, "by-curl")["trials"]) >= 1
    extended = finished_trials(service, "from-python")
    assert sum(extended["trials"].values()) == 2 + 1 + 1
    by_hand = [trial for trial in service.client.trials("from-python") if trial["origin"] == "hand"]
    assert [trial["params"] for trial in by_hand] == [{"learning_rate_multiplier": 1.5}]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it ended before, or just now
        return False
