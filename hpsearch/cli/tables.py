"""What commands print of a study's trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpsearch.results.advice import percent
from hpsearch.results.schedule import told

STATE_STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "RUNNING": "cyan", "WAITING": "blue"}

SHORT_NAMES = {
    "batch_size": "batch",
    "learning_rate_multiplier": "lr mult",
    "prompt_loss_weight": "prompt",
    "weight_decay": "decay",
    "lr_schedule": "schedule",
    "warmup_fraction": "warm-up",
    "frozen_layers": "frozen",
    "layer_lr_decay": "layer lr",
}
"""So that the ranking fits a terminal of 80 columns."""


def outline(params: dict[str, Any]) -> str:
    """Params on one line."""
    return " ".join(f"{name}={brief(value)}" for name, value in params.items())


def brief(value: Any) -> str:
    """A parameter's value in a few characters."""
    if isinstance(value, float):
        return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"
    return str(value)


def schedules(ranking: dict[str, Any]) -> Iterator[str]:
    """What the ranking's table can't show: params that changed on the way."""
    changed = [row for row in ranking["ranking"] if row.get("schedule")]
    if changed:
        yield "* took another trial's weights over: the params are those of its last part. Of the best of these,"
        yield f"  trial {changed[0]['number']}:"
        yield from (f"  {line}" for line in told(changed[0]["schedule"]))


def ranking_table(ranking: dict[str, Any]) -> Group:
    """The ranking, the baseline listed as what it is."""
    metric = ranking["objective"]["metric"]
    rows = ranking["ranking"]
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))  # some have parameters that others lack
    title = f"{ranking['study']}: {ranking['state']}, by {metric}" + ("" if rows else ": no trial is complete")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("#", "trial", metric.removeprefix("validation_"), "best at"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        table.add_column(SHORT_NAMES.get(name, name), justify="right", no_wrap=True)
    for row in rows:
        params = [brief(row["params"].get(name, "")) for name in names]
        value = Text(f"{row['value']:.4f}", "green" if row["rank"] == 1 else "")
        place = f"ep {row['best_epoch']:g}" + (" (cut short)" if row.get("cut_short") else "")
        number = f"{row['number']}*" if row.get("schedule") else str(row["number"])
        table.add_row(str(row["rank"]), number, value, place, *params)
    if ranking["baseline"] is not None:
        table.add_row()
        table.add_row("", "baseline", f"{ranking['baseline'][metric]:.4f}", "", *[""] * len(names), style="dim")
    return Group(Text(title, "italic"), table)  # not the table's own title, which is cut to the table's width


def verdict_lines(ranking: dict[str, Any]) -> Iterator[RenderableType]:
    """What training the best again under fresh seeds has said; or how to find out."""
    verdict = ranking["verdict"]
    if verdict is None:
        if ranking["state"] == "finished" and len(ranking["ranking"]) > 1:
            yield f"one seed each: is the best better, or lucky? `hpsearch confirm {ranking['study']}` finds out"
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("trial", "searched", f"mean of {verdict['seeds']} seeds", "gain", "95 % of it", "P(better)"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in verdict["candidates"]:
        who = f"{each['number']}{' (defaults)' if each['is_defaults'] else ''}"
        interval = "" if each["low"] is None else f"{each['low']:.4f} to {each['high']:.4f}"
        probability = "" if each["probability"] is None else percent(each["probability"])
        figures = ("" if each[name] is None else f"{each[name]:.4f}" for name in ("searched", "mean", "gain"))
        style = "green" if each["number"] == verdict["recommended"] else ""
        table.add_row(who, *figures, interval, probability, style=style)
    yield ""
    yield Text("verdict (of an earlier ranking)" if verdict["outdated"] else "verdict", "italic")
    yield table
    yield verdict["text"]


def trials_table(trials: Sequence[dict[str, Any]]) -> Table:
    """All of them in order: where each is, its value or last report, and its params, or why it failed."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("trial", "state", "value", ""):
        table.add_column(column, justify="right" if column in ("trial", "value") else "left", no_wrap=bool(column))
    for trial in trials:
        value = trial["last_value"] if trial["value"] is None else trial["value"]
        failure = "" if trial["failure"] is None else f"{trial['failure']}: {trial['failure_text']}"
        state = Text(trial["state"], STATE_STYLES[trial["state"]])
        told_value = "" if value is None else f"{value:.4f}"
        table.add_row(str(trial["number"]), state, told_value, Text(failure or outline(trial["params"])))
    return table
