"""Who loads what, in a fresh interpreter, and who may import whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hpsearch"


def loaded(*statements: str) -> set[str]:
    """The top-level modules that are loaded after the statements."""
    last = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*statements, last])], capture_output=True, text=True, check=True, timeout=250
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"optuna", "ray", "torch", "transformers", "sqlalchemy", "fastapi"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        pytest.param("import hpsearch.spec", HEAVY | {"httpx", "numpy"}, id="spec"),
        pytest.param("import hpsearch.results, hpsearch.lifecycle, hpsearch.errors", HEAVY, id="results"),
        pytest.param("import hpsearch.dataset.load, hpsearch.dataset.lint, hpsearch.basemodel", HEAVY, id="dataset"),
        pytest.param("import hpsearch.client", HEAVY, id="client"),
        pytest.param("import hpsearch.cli", HEAVY, id="cli"),
        pytest.param("import hpsearch.api.app", {"ray", "torch", "transformers"}, id="api"),
        pytest.param("import hpsearch.search", {"ray", "torch", "transformers", "fastapi"}, id="search"),
        pytest.param("import hpsearch.finetune", {"optuna", "ray", "sqlalchemy", "fastapi"}, id="finetune"),
    ],
)
def test_a_part_loads_nothing_that_it_does_not_need(statement: str, unwanted: set[str]) -> None:
    assert loaded(statement) & unwanted == set()


def test_the_help_of_the_command_line_loads_nothing_heavy() -> None:
    run = "import sys; sys.argv = ['hpsearch', '--help']\nfrom hpsearch.cli import app"
    assert loaded(run, "try:\n    app()\nexcept SystemExit: pass") & HEAVY == set()


def test_a_running_api_has_loaded_neither_ray_nor_torch(tmp_path: Path) -> None:
    start = f"""
import pathlib
from hpsearch.api.app import create_app
from hpsearch.settings import Settings
from starlette.testclient import TestClient
client = TestClient(create_app(Settings(home=pathlib.Path({str(tmp_path)!r}))), base_url="http://127.0.0.1")
assert client.get("/readyz").status_code == 200
assert client.get("/dashboard").status_code == 200
"""
    assert loaded(start) & {"ray", "torch", "transformers"} == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_people_send_is_never_run(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.unsafe_load", "yaml.full_load"}
    assert names & forbidden == set()
    for call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell", "False") == "False"
        assert keywords.get("trust_remote_code", "False") == "False"
        assert not (ast.unparse(call.func) == "torch.load" and keywords.get("weights_only") != "True")


def test_imports_point_down_only() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
