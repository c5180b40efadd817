"""What a person does to a study: pause, resume, extend, confirm, change, clone, add, stop, continue, cancel, delete."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from hpsearch.cli.specs import NoAliases
from hpsearch.client import Client
from hpsearch.errors import InvalidInput

Name = Annotated[str, typer.Argument(help="The study's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]
Version = Annotated[
    str | None, typer.Option("--if-version", help="Only if this is still the study's `version` (see `show`).")
]
Params = Annotated[list[str], typer.Argument(help="NAME=VALUE, ...: what is left out is drawn.", show_default=False)]


def pause(name: Name, version: Version = None, as_json: Json = False) -> None:
    """Stop a study; `resume` lets it go on where it was."""
    _say(Client().pause(name, version), as_json)


def resume(name: Name, version: Version = None, as_json: Json = False) -> None:
    """Let a paused study go on, or one that failed for a reason that was mended."""
    _say(Client().resume(name, version), as_json)


def extend(
    name: Name,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="So many trials more.")] = None,
    wall_clock: Annotated[str | None, typer.Option(help="So much time more: 90m, 8h.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="So many device hours more.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="So many training tokens more.")] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Add to a study's budget; one that has ended goes on."""
    given = {"trials": trials, "wall_clock": wall_clock, "gpu_hours": gpu_hours, "tokens": tokens}
    more = {limit: amount for limit, amount in given.items() if amount is not None}
    if not more:
        raise typer.BadParameter("say what to add: --trials, --wall-clock, --gpu-hours or --tokens")
    study = Client().extend(name, version, **more)
    budget = study["spec"]["budget"]
    _say(study, as_json, "budget now: " + ", ".join(f"{limit} {budget[limit]:g}" for limit in more))


def confirm(
    name: Name,
    top: Annotated[int, typer.Option(min=1, max=16, help="So many of the best trials.")] = 3,
    seeds: Annotated[int, typer.Option(min=2, max=16, help="Fresh seeds, the same for each of them.")] = 3,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Train the best trials and the defaults again under fresh seeds: is the winner better, or lucky?"""
    study = Client().confirm(name, version, top=top, seeds=seeds)
    _say(study, as_json, f"`hpsearch watch {name}` follows it, `hpsearch rank {name}` then tells the verdict")


def change(
    name: Name,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Ten points more: twice the devices.")] = None,
    max_concurrent_trials: Annotated[str | None, typer.Option(help="Trials at once: a number, or `auto`.")] = None,
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Change the priority or the parallelism of a study that waits or runs."""
    if priority is None and max_concurrent_trials is None:
        raise typer.BadParameter("say what to change: --priority or --max-concurrent-trials")
    _say(Client().change(name, version, priority=priority, max_concurrent_trials=max_concurrent_trials), as_json)


def clone(
    name: Name,
    new_name: Annotated[str, typer.Option("--name", help="Of the new study.", show_default=False)],
    settings: Annotated[
        list[str], typer.Option("--set", help="FIELD=VALUE, such as budget.trials=40; again for more.")
    ] = [],  # noqa: B006 - typer makes a new one for each call
    as_json: Json = False,
) -> None:
    """Queue a study like this one, with changes; it begins anew."""
    client = Client()
    study, created = client.clone(name, new_name, nested(settings))
    _say(study, as_json, "" if created else "it was there already")
    for warning in study["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def add(name: Name, params: Params, version: Version = None, as_json: Json = False) -> None:
    """Line up a trial with params of your own; the budget grows by it."""
    _say(Client().add_trial(name, nested(params), version), as_json, "the trial comes before the sampler's next")


def stop(
    name: Name,
    number: Annotated[int, typer.Argument(min=0, help="The trial's number.", show_default=False)],
    version: Version = None,
    as_json: Json = False,
) -> None:
    """End one trial at its next report; the study goes on."""
    _say(Client().stop_trial(name, number, version), as_json, f"trial {number} ends at its next report")


def go_on(
    name: Name,
    number: Annotated[int, typer.Argument(min=0, help="The pruned trial's number.", show_default=False)],
    version: Version = None,
    as_json: Json = False,
) -> None:
    """Let a pruned trial go on to its end, under a new number; the budget grows by it."""
    _say(Client().continue_trial(name, number, version), as_json, f"trial {number} goes on before the sampler's next")


def cancel(name: Name, version: Version = None, as_json: Json = False) -> None:
    """End a study for good; its trials so far are kept."""
    _say(Client().cancel(name, version), as_json)


def delete(name: Name, version: Version = None) -> None:
    """Forget a study that is over, with its trials and weights."""
    Client().delete(name, version)
    typer.echo(f"study '{name}' is deleted")


def nested(settings: list[str]) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; a value is written as in YAML (`1e-4` too is a number), `null` takes it away."""
    values: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not all(field.split(".")):
            raise InvalidInput(f"'{setting}' is not FIELD=VALUE, such as budget.trials=40")
        *parents, last = field.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise InvalidInput(f"{field}: '{parent}' has a value of its own already", field)
        place[last] = _value(text, field)
    return values


def _value(text: str, field: str) -> Any:
    try:
        value = yaml.load(text, NoAliases)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{field}: '{text[:100]}' is no value: {error}", field) from error
    return value


def _say(study: dict[str, Any], as_json: bool, more: str = "") -> None:
    if as_json:
        typer.echo(json.dumps(study))
        return
    coming = f"; it will be {study['requested']} in a moment" if study["requested"] else ""
    typer.echo(f"study '{study['name']}' is {study['state']}{coming}" + (f"; {more}" if more else ""))
