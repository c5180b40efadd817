"""The commands. Progress goes to standard error, answers to standard output.

Exit codes: 0 done, 1 the service refused or failed, 2 wrong usage, 3 the study ended without a completed
trial, 65 the spec or its data is wrong, 69 no service answers, 77 no valid token, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from hpsearch import __version__, errors
from hpsearch.cli import acts
from hpsearch.cli.acts import Json, Name
from hpsearch.cli.following import exit_by_outcome, look_on, print_ranking, see_through, submit_spec
from hpsearch.cli.show import study_page, trial_page
from hpsearch.cli.specs import read_spec, upload_data
from hpsearch.cli.tables import outline, trials_table
from hpsearch.client import Client
from hpsearch.spec.data import SplitRole

EXIT_CODES: tuple[tuple[type[errors.HpsearchError], int], ...] = (
    (errors.InvalidInput, 65),
    (errors.ServiceUnavailable, 69),
    (errors.Unauthorized, 77),
    (errors.Forbidden, 77),
    (errors.HpsearchError, 1),
)

SpecFile = Annotated[Path, typer.Argument(help="Study spec: YAML, TOML or JSON.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing when all goes well.")]


class _Commands(typer.core.TyperGroup):
    """Turns our errors into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.HpsearchError as error:
            print(f"error: {error} [{error.code}]", file=sys.stderr)  # noqa: T201
            raise typer.Exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind))) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,  # locals may hold tokens
    help="Hyperparameter search for fine-tuning language models.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpsearch {__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Hyperparameter search for fine-tuning language models."""
    del version


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Any address but this machine's own needs tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Run the service on this machine: HTTP API, dashboard and runner."""
    from hpsearch.cli.serve import serve as run

    raise typer.Exit(run(host, port))


@app.command()
def run(
    spec: SpecFile,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="Another name than the spec's.")] = None,
    as_json: Json = False,
) -> None:
    """Search once, on this machine: start the service, follow the study to its end, print the ranking, stop.

    Ctrl-C stops too; the same command again goes on where it stopped.
    """
    from hpsearch.cli.run import service

    with service(port) as url:
        print(f"dashboard: {url}/dashboard", file=sys.stderr)  # noqa: T201
        client = Client(url)
        study = submit_spec(client, spec, name)
        hint = "stopping the service; the same command again goes on from here"
        see_through(client, study, as_json=as_json, hint=hint)


@app.command()
def submit(
    spec: SpecFile,
    name: Annotated[str | None, typer.Option(help="Another name than the spec's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the study to its end, then print the ranking.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Queue a study; data files beside the spec are uploaded. The same spec twice is one study."""
    client = Client()
    study = submit_spec(client, spec, name, quiet=quiet)
    if wait:
        see_through(client, study, as_json=as_json, quiet=quiet)
    elif as_json:
        typer.echo(json.dumps(study))


@app.command()
def watch(name: Name) -> None:
    """Follow a study, live, to its end. Ctrl-C stops watching, not the study."""
    client = Client()
    look_on(client, client.study(name))
    exit_by_outcome(client, name)


@app.command()
def rank(
    name: Name,
    top: Annotated[int | None, typer.Option(min=1, help="Only the best ones.")] = None,
    as_json: Json = False,
) -> None:
    """Completed trials, best first, beside the untouched base model."""
    print_ranking(Client(), name, top, as_json=as_json)


@app.command()
def trials(name: Name, as_json: Json = False) -> None:
    """All trials in order, pruned and failed ones too."""
    found = Client().trials(name)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        Console().print(trials_table(found))


@app.command()
def insight(name: Name, as_json: Json = False) -> None:
    """What the trials say about the search space: importances, best values at an edge, parameters without effect."""
    from hpsearch.cli.insight import told

    found = Client().insight(name, curves=as_json)
    typer.echo(json.dumps(found) if as_json else "\n".join(told(found)))


@app.command()
def borrowed(
    name: Name,
    forget: Annotated[bool, typer.Option("--forget", help="Take it away: it teaches no more.")] = False,
    as_json: Json = False,
) -> None:
    """The trials of earlier studies that teach a study's sampler (warm_start), best first."""
    client = Client()
    found = client.borrowed(name)
    if forget:
        client.forget_borrowed(name)
        typer.echo(f"study '{name}' forgets {len(found)} borrowed trials")
    elif as_json:
        typer.echo(json.dumps(found))
    else:
        if not found:
            typer.echo(f"no earlier study lends '{name}' anything")
        for one in found:
            typer.echo(f"{one['study']} {one['number']}  {one['value']:.4f}  {outline(one['params'])}")


@app.command()
def show(
    name: Name,
    number: Annotated[int | None, typer.Argument(help="One trial of it.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """A study, or one of its trials with config and curve."""
    client = Client()
    if as_json:
        typer.echo(json.dumps(client.study(name) if number is None else client.trial(name, number)))
        return
    study = client.study(name)
    page = study_page(study) if number is None else trial_page(study, client.trial(name, number), client.url)
    Console().print(page)


@app.command("list")
def list_studies(as_json: Json = False, limit: Annotated[int, typer.Option(min=1, max=100)] = 20) -> None:
    """The newest studies."""
    page = Client().studies(limit)
    if as_json:
        typer.echo(json.dumps(page))
        return
    for study in page["data"]:
        typer.echo(f"{study['state']:10} {study['name']:30} {study['created_at'][:19]}  {study['reason']}")


@app.command()
def check(
    spec: Annotated[Path, typer.Argument(help="Study spec, or a data file (.jsonl).", show_default=False)],
    role: Annotated[SplitRole, typer.Option(help="What a data file is for.")] = "train",
    as_json: Json = False,
) -> None:
    """Check a spec and its data without queueing anything, and show what `auto` means for it.

    A data file is checked by itself, on this machine and without a service.
    """
    from hpsearch.cli.check import DATA_SUFFIXES, check_file, refuse_faults, told_of_file, told_of_spec

    if spec.suffix in DATA_SUFFIXES:
        report = check_file(spec, role)
        typer.echo(json.dumps(report) if as_json else "\n".join(told_of_file(report)))
        refuse_faults(spec, report)
        return
    client = Client()
    found = client.check(upload_data(read_spec(spec), spec.parent, client))
    typer.echo(json.dumps(found) if as_json else "\n".join(told_of_spec(found)))


for act in (
    acts.pause, acts.resume, acts.extend, acts.confirm, acts.change, acts.clone, acts.add, acts.stop, acts.cancel,
    acts.delete,
):  # fmt: skip
    app.command()(act)
app.command("continue")(acts.go_on)


@app.command()
def export(
    name: Name,
    trial: Annotated[
        str, typer.Option(help="A trial's number, or `best`: the verdict's, or the first of the ranking.")
    ] = "best",
    output: Annotated[Path | None, typer.Option(help="Folder to write; left out, NAME-NUMBER here.")] = None,
    to: Annotated[
        Literal["trained", "model"],
        typer.Option(help="`trained`: PEFT's format for LoRA, a model for full fine-tunes; `model`: always a model."),
    ] = "trained",
    base: Annotated[
        str | None, typer.Option(help="With `--to model`: the base model's folder or hub id, if it is elsewhere here.")
    ] = None,
) -> None:
    """Take a trial's weights home, and beside them the trial: its config, its curve.

    `--to model` folds an adapter into its base model, for servers that don't know adapters.
    """
    from hpsearch.cli.export import export as fetch

    typer.echo(str(fetch(Client(), name, trial, output, to=to, base=base)))


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(help="A trial of `show --json`, or its config.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the best weights.", show_default=False)],
    device: Annotated[str, typer.Option(help="`cpu`, `cuda:0`, or `auto`: a GPU if there is one.")] = "auto",
    as_json: Json = False,
) -> None:
    """Run one fine-tune alone, without a service. Interrupted, the same command goes on where it stopped."""
    from hpsearch.cli.finetune import finetune as train
    from hpsearch.cli.finetune import summary

    outcome = train(config, output, device)
    typer.echo(json.dumps(outcome) if as_json else summary(outcome))


@app.command()
def schema() -> None:
    """The JSON schema of a study spec, for editors and validators."""
    from hpsearch.spec import StudySpec

    typer.echo(json.dumps(StudySpec.model_json_schema(), indent=2))


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    days: Annotated[
        float | None, typer.Option(min=0, help="Age of unused uploads and Ray sessions; left out, the setting.")
    ] = None,
) -> None:
    """Remove what deleted studies, killed processes and forgotten uploads left in this home and on this machine.

    The runner does it by itself, every six hours.
    """
    from hpsearch.cli.clean import clean as run

    for line in run(dry_run, days):
        typer.echo(line)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Whose token it is.", show_default=False)],
    role: Annotated[Literal["read", "submit", "admin"], typer.Option(help="What it may do.")] = "submit",
) -> None:
    """Make a token for the service of this home, and print it once; restart the service to use it."""
    from hpsearch.api.tokens import Role, add_token
    from hpsearch.settings import Settings

    typer.echo(add_token(Settings().tokens_path, name, Role[role.upper()]))
