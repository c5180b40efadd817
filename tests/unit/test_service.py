"""What every process of the service does."""

from __future__ import annotations

import os
import subprocess
import sys


def python(program: str, **environment: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_times_are_utc_wherever_it_runs() -> None:
    """Optuna writes local time without saying so: two processes of one service must mean the same by it."""
    program = """
import datetime, time
from hpsearch.service import begin
assert time.localtime(1e9).tm_hour == 21, "New York"
begin()
print(datetime.datetime.fromtimestamp(1e9).isoformat(), time.tzname[0])
"""
    assert python(program, TZ="America/New_York").split() == ["2001-09-09T01:46:40", "UTC"]


def test_a_token_is_made_without_the_packages_of_a_server() -> None:
    assert python("import sys, hpsearch.api.tokens; print('fastapi' in sys.modules)").strip() == "False"
