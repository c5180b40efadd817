"""Queueing a study and seeing it through: what `run`, `submit`, `watch` and `rank` have in common."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from hpsearch.cli.progress import Progress, follow
from hpsearch.cli.specs import read_spec, upload_data
from hpsearch.cli.tables import ranking_table, schedules, verdict_lines
from hpsearch.client import Client
from hpsearch.lifecycle import StudyState

NO_TRIAL = 3
_WAYS_ON = {
    "finished": "this is what it found; `hpsearch extend` lets it go on",
    "failed": "once its reason is mended, `hpsearch resume` lets it go on",
    "cancelled": "cancelled is for good: begin anew with another --name, or `hpsearch delete` it first",
    "paused": "`hpsearch resume` lets it go on",
}


def submit_spec(client: Client, spec: Path, name: str | None, *, quiet: bool = False) -> dict[str, Any]:
    """Queue the study of a spec file; what is there already is told with the way on from where it is."""
    wanted = read_spec(spec)
    if name is not None:
        wanted["name"] = name
    sent = upload_data(wanted, spec.parent, client, quiet=quiet)
    study, created = client.submit(sent)
    if not quiet:
        state = "queued" if created else f"is there already ({study['state']})"
        print(f"study '{study['name']}' {state}: {client.url}/v1/studies/{study['name']}", file=sys.stderr)  # noqa: T201
        if not created and study["state"] in _WAYS_ON:
            print(_WAYS_ON[study["state"]], file=sys.stderr)  # noqa: T201
        for warning in study["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    return study


def see_through(client: Client, study: dict[str, Any], *, as_json: bool, quiet: bool = False, hint: str = "") -> None:
    """Follow a study to its end, unless it is over, and print its ranking; the exit code says what became of it."""
    if not StudyState(study["state"]).is_over:
        look_on(client, study, quiet=quiet, hint=hint)
    print_ranking(client, study["name"], as_json=as_json, quiet=quiet)
    exit_by_outcome(client, study["name"])


def look_on(client: Client, study: dict[str, Any], *, quiet: bool = False, hint: str = "") -> None:
    """Show its events to the end; Ctrl-C ends that, with a hint of what becomes of the study."""
    try:
        with contextlib.closing(client.events(study["name"])) as events:  # at once: a service that stops waits for it
            follow(events, Progress(study), quiet)
    except KeyboardInterrupt:
        goes_on = f"the study goes on; `hpsearch watch {study['name']}` looks again, `hpsearch cancel` ends it"
        print(hint or goes_on, file=sys.stderr)  # noqa: T201
        raise typer.Exit(130) from None


def print_ranking(client: Client, name: str, top: int | None = None, *, as_json: bool, quiet: bool = False) -> None:
    """For people, or for programs."""
    ranking = client.ranking(name, top)
    if as_json:
        typer.echo(json.dumps(ranking))
    elif not quiet:
        console = Console()
        console.print(ranking_table(ranking))
        for line in schedules(ranking):
            console.print(line)
        counts = ", ".join(f"{count} {state}" for state, count in ranking["counts"].items())
        console.print(f"trials: {counts or 'none yet'}")
        for part in verdict_lines(ranking):
            console.print(part)


def exit_by_outcome(client: Client, name: str) -> None:
    """Raise typer.Exit for a study that failed or was cancelled: with `NO_TRIAL` if it has no result at all."""
    study = client.study(name)
    if study["state"] in ("failed", "cancelled"):
        print(f"study '{name}' {study['state']}: {study['reason']}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(NO_TRIAL if study["best"] is None else 1)
