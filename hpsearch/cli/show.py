"""What `hpsearch show` tells a person of a study, and of one of its trials."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpsearch.cli.tables import brief, outline
from hpsearch.results.schedule import schedule_of, told

Line = tuple[str, str]
"""What it is, and what is to say of it; nothing to say, and the line is left out."""

CURVE = {
    "epoch": "epoch",
    "exposure": "examples",
    "validation_loss": "loss",
    "validation_bits_per_byte": "bits/byte",
    "validation_token_accuracy": "accuracy",
    "training_loss": "training loss",
    "seconds": "device s",
}
"""Columns of a curve's table, by the figures of a report."""

BUDGET = {"trials": "{:,} trials", "wall_clock": "{} h", "gpu_hours": "{:g} device hours", "tokens": "{:,} tokens"}


def study_page(study: dict[str, Any]) -> Group:
    """A study as the service tells it."""
    state = f"{study['state']}; it will be {study['requested']} in a moment" if study["requested"] else study["state"]
    reason = f": {study['reason']}" if study["reason"] and study["reason"] != study["state"] else ""
    return _page(f"{study['name']}: {state}{reason}", _of_study(study))


def _of_study(study: dict[str, Any]) -> Iterator[Line]:
    spec, metric = study["spec"], study["spec"]["objective"]["metric"]
    model, data, at_once = spec["model"], spec["data"], spec["parallelism"]["max_concurrent_trials"]
    rank = f" of rank {model['lora']['rank']}" if model["method"] == "lora" else ""
    yield "model", f"{model['base']}, {model['method']}{rank}"
    origins = data.get("origins", {})
    yield "training", origins.get("train", data["train"])
    yield "validation", origins.get("validation", data["validation"]) or f"{data['validation_fraction']:g} of training"
    yield "sealed test", origins.get("test", data.get("test", ""))
    yield "search", f"sampler {spec['sampler']['type']}, pruner {spec['pruner']['type']}, seed {spec['seed']}"
    yield "budget", limits_of(spec["budget"])
    counts = ", ".join(f"{count} {state}" for state, count in study["trials"].items())
    yield "trials", counts or "none yet"
    again = ", ".join(f"{count} {state}" for state, count in (study["confirmation"] or {}).items())
    yield "trained again", again
    yield "baseline", f"{metric} {study['baseline'][metric]:.4f}" if study["baseline"] else "not evaluated yet"
    best = study["best"]
    yield "best", f"trial {best['number']}, {metric} {best['value']:.4f}: {outline(best['params'])}" if best else ""
    verdict = study["verdict"]
    yield "verdict", "" if verdict is None else f"{verdict['text']}{' (outdated)' if verdict['outdated'] else ''}"
    yield from (("warning", warning) for warning in study["warnings"])
    share = "" if study["share"] is None else f", and may hold {study['share']}"
    yield "at once", f"{at_once} trials; {study['held']} train now{share}"
    yield "priority", f"{spec['priority']}" if spec["priority"] else ""
    for aside in study["set_aside"]:
        yield "set aside", f"{aside['device']} until {_time(aside['until'])}: {aside['reason']}"
    yield "tags", ", ".join(f"{tag}={value}" for tag, value in spec["tags"].items())
    yield "created", f"{_time(study['created_at'])} by {study['created_by']}"
    yield "started", _time(study["started_at"])
    yield "finished", _time(study["finished_at"])
    yield "version", study["version"]


def limits_of(budget: dict[str, Any]) -> str:
    """A budget in words."""
    limits = {name: limit for name, limit in budget.items() if name in BUDGET and limit is not None}
    if "wall_clock" in limits:
        limits["wall_clock"] = dt.timedelta(seconds=limits["wall_clock"])
    return ", ".join(form.format(limits[name]) for name, form in BUDGET.items() if name in limits)


def trial_page(study: dict[str, Any], trial: dict[str, Any], url: str) -> Group:
    """A trial as the service at `url` tells it; of its study, the name and the metric."""
    metric = study["spec"]["objective"]["metric"]
    value = "" if trial["value"] is None else f", {metric} {trial['value']:.4f} at epoch {trial['best_epoch']:g}"
    cut = " (the budget ended it before its last epoch)" if trial["cut_short"] else ""
    head = f"{study['name']}, trial {trial['number']}: {trial['state']}{value}{cut}"
    page = _page(head, _of_trial(study["name"], trial, url))
    return Group(page, Text(), _curve(trial)) if trial["curve"] else page


def _of_trial(name: str, trial: dict[str, Any], url: str) -> Iterator[Line]:
    config = trial["config"]
    yield "failure", f"{trial['failure']}: {trial['failure_text']}" if trial["failure"] else ""
    yield "diagnosis", f"it {trial['diagnosis']['text']}" if trial["diagnosis"] else ""
    yield "pruned", trial["pruned_because"] or ""
    yield "params", outline(trial["params"])
    if config is not None:
        drawn = trial["params"].keys()
        rest = {each: value for each, value in config["hyperparameters"].items() if each not in drawn}
        yield "the rest", outline(rest)
        yield "learning rate", f"{brief(config['learning_rate'])} at its peak"
        for line in told(schedule_of(config)):
            yield "on its way", line
    yield "origin", _origin(trial)
    if trial["attempts"]:
        times = f", in {trial['attempts']} attempts" if trial["attempts"] > 1 else ""
        alone = ", alone until its next report" if trial["alone"] else ""
        yield "device", f"{trial['device'] or 'none yet'}{times}{alone}"
    weights = f"{url}/v1/studies/{name}/trials/{trial['number']}/adapter"
    export = f"`hpsearch export {name} --trial {trial['number']}`"
    yield "weights", f"{weights}; {export} brings them here" if trial["adapter"] else "none are kept"
    yield "started", _time(trial["started_at"])
    yield "finished", _time(trial["finished_at"])


def _origin(trial: dict[str, Any]) -> str:
    links = {"retry_of": "of trial {}", "continues": "goes on with trial {}", "parent": "weights of trial {}"}
    known = [words.format(trial[link]) for link, words in links.items() if trial[link] is not None]
    if found := trial["reused_from"]:
        known.append(f"known from trial {found['number']} of '{found['study']}'")
    return ", ".join([trial["origin"], *known])


def _curve(trial: dict[str, Any]) -> Table:
    """Its reports; the best one's row stands out."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in CURVE.values():
        table.add_column(column, justify="right", no_wrap=True)
    for report in trial["curve"]:
        style = "green" if report["epoch"] == trial["best_epoch"] else ""
        table.add_row(*(_figure(name, report[name]) for name in CURVE), style=style)
    return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("epoch", "exposure"):
        return f"{value:g}" if name == "epoch" else f"{value:,}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.4f}"


def _page(head: str, lines: Iterator[Line]) -> Group:
    table = Table.grid(padding=(0, 2, 0, 0))
    for what, said in lines:
        if said:
            table.add_row(Text(f"  {what}", "dim"), Text(said))
    return Group(Text(head, "bold"), table)


def _time(moment: str | None) -> str:
    """`2026-11-22T00:10:02.5Z` as people read it."""
    return "" if moment is None else f"{moment[:19].replace('T', ' ')} UTC"
