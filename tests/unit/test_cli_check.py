"""`hpsearch check` on a data file: everything that is wrong, line by line, without a service."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from hpsearch.cli import app


def good(number: int) -> dict[str, str]:
    """Unlike any other number's."""
    words = [f"w{number * 31 + place}" for place in range(12)]
    return {"prompt": f"Question: {' '.join(words)}\nAnswer:", "completion": f" {' '.join(reversed(words))}"}


def a_file(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def check(path: Path, *options: str):
    return CliRunner().invoke(app, ["check", str(path), *options])


def test_a_sound_file_passes(tmp_path):
    found = check(a_file(tmp_path, *map(good, range(60))))
    assert found.exit_code == 0
    assert found.stdout.startswith("60 usable examples, format prompt_completion")
    assert "warning" not in found.stdout
    assert "fault" not in found.stdout


def test_every_fault_has_its_line(tmp_path):
    empty, robot = good(1) | {"completion": "  "}, {"messages": [{"role": "robot", "content": "hi"}]}
    found = check(a_file(tmp_path, *map(good, range(30)), "{oops", empty, robot, {"text": "plain"}))
    assert found.exit_code == 65
    faults = [line for line in found.stdout.splitlines() if line.startswith("fault: ")]
    assert [fault.split(":")[1] for fault in faults] == [" line 31", " line 32", " line 33", " line 34"]
    assert "4 faults to mend" in found.stderr


def test_the_same_fault_of_many_lines_is_told_once(tmp_path):
    found = check(a_file(tmp_path, *map(good, range(30)), *[{"text": f"plain {number}"} for number in range(40)]))
    faults = [line for line in found.stdout.splitlines() if line.startswith("fault: ")]
    assert len(faults) == 1
    assert faults[0].startswith("fault: lines 31 to 50: ")
    assert "at least 20 faults to mend" in found.stderr


def test_warnings_do_not_refuse(tmp_path):
    nearly = good(7) | {"completion": good(7)["completion"] + "."}
    found = check(a_file(tmp_path, *map(good, range(30)), good(4), nearly))
    assert found.exit_code == 0
    assert "only 32 examples" in found.stdout
    assert "1 exact duplicate: line 31 repeats line 5" in found.stdout
    assert "1 near-duplicate: line 32 is like line 8" in found.stdout


def test_the_report_can_be_read_by_a_program(tmp_path):
    report = json.loads(check(a_file(tmp_path, *map(good, range(5))), "--json").stdout)
    assert report["examples"] == 5
    assert report["faults"] == [{"line": 0, "text": "data.jsonl has 5 examples; at least 10 are needed to train on"}]


def test_validation_data_may_be_few(tmp_path):
    found = check(a_file(tmp_path, *map(good, range(5))), "--role", "validation")
    assert found.exit_code == 0
    assert "warning" not in found.stdout


def test_a_missing_file_is_said(tmp_path):
    found = check(tmp_path / "none.jsonl")
    assert found.exit_code == 65
    assert "none.jsonl can't be read" in found.stderr
