"""What the documentation says is true: its links, names, trees and commands."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hpsearch.cli import app
from hpsearch.spec import StudySpec
from hpsearch.spec.defaults import FAMILY_LEARNING_RATES, GPT3_LEARNING_RATES
from hpsearch.spec.space import SearchSpace
from tests import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("*/**/*.md")] if ".venv" not in page.parts
)


def test_the_tree_in_the_readme_names_every_module() -> None:
    tree = (ROOT / "README.md").read_text().split("## The house")[1]
    named = set(re.findall(r"[\w]+\.py", tree))
    modules = {
        path.name
        for path in (ROOT / "hpsearch").rglob("*.py")
        if not path.name.startswith("__") and "migrations" not in path.parts
    }
    assert named == modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_command_that_the_documentation_uses_exists() -> None:
    used = set()
    for page in PAGES:
        for text in _code(page):
            prompt = r"^\$ " if "\n" in text else "^"  # in a block only what is typed, not what is printed
            used |= set(re.findall(prompt + r"(?:\.venv/bin/)?hpsearch ([a-z]+)", text, re.MULTILINE))
    known = subprocess.run([_binary(), "--help"], capture_output=True, text=True, check=True).stdout
    commands = set(re.findall(r"^│ (\w+) ", known, re.MULTILINE))
    assert used
    assert used <= commands


def test_every_command_has_its_help_under_both_names() -> None:
    from typer.main import get_command

    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    assert {"serve", "show", "continue"} <= commands.keys()
    for path in ([], *([name] for name in commands)):
        short, long = (CliRunner().invoke(app, [*path, option]) for option in ("-h", "--help"))
        assert (short.exit_code, short.stdout) == (0, long.stdout), path
        assert "Usage: " in short.stdout
        described = " ".join((commands[path[0]].help if path else "").split())
        assert described.partition(". ")[0] in " ".join(short.stdout.split()), path


def test_make_targets_that_the_documentation_uses_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for text in _code(page):
            assert set(re.findall(r"\bmake ([a-z]+)", text)) <= targets, page


def test_every_parameter_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/hyperparameters.md").read_text().split("Where these come from")[0]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(SearchSpace.model_fields)


def test_the_documented_learning_rates_of_families_are_those_of_the_code() -> None:
    text = (ROOT / "docs/hyperparameters.md").read_text().split("**The pre-training learning rate.**")[1]
    rows = re.findall(r"^\| (?:`(\w+)`|any other) \| (\d[^|]+) \|", text, re.MULTILINE)
    sizes = {"M": 1e6, "B": 1e9}
    documented = {
        family: [
            (round(float(size[:-1]) * sizes[size[-1]], -6), float(rate))
            for size, rate in (row.split(": ") for row in points.split(", "))
        ]
        for family, points in rows
    }
    known = {"": GPT3_LEARNING_RATES, **FAMILY_LEARNING_RATES}
    assert documented == {family: [(round(size, -6), rate) for size, rate in rows] for family, rows in known.items()}


def test_every_route_is_documented() -> None:
    from hpsearch.api import acts, datasets, health, index, insight, studies, trials

    text = (ROOT / "docs/api.md").read_text()
    for router in (part.router for part in (index, studies, acts, trials, insight, datasets, health)):
        for route in router.routes:
            path = str(route.path).replace("{dataset}", "{id}")  # type: ignore[attr-defined]
            assert path in text, path


def test_the_reference_is_that_of_the_code() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference.page(), "python -m tests.reference > docs/reference.md"


def test_every_example_spec_says_in_its_name_what_file_it_is() -> None:
    for path in (ROOT / "studies").glob("*.yaml"):
        assert StudySpec.model_validate(yaml.safe_load(path.read_text())).name == path.stem


def _code(page: Path) -> list[str]:
    """Code spans and blocks."""
    text = page.read_text()
    blocks = re.findall(r"```.*?```", text, re.DOTALL)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def _binary() -> str:
    import sys

    return str(Path(sys.executable).parent / "hpsearch")
