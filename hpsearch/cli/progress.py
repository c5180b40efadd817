"""Progress as a person likes it: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpsearch.cli.tables import STATE_STYLES, outline


def _replayed(event: dict[str, Any]) -> str:
    apart = f"differ by {event['deviation']:.0e}" if event["deviation"] else "are the same to the last bit"
    return f"trial {event['number']}: {event['steps']} steps in a company of {event['company']} and alone {apart}"


def _borrowed(event: dict[str, Any]) -> str:
    return f"{event['trials']} trials of {', '.join(event['studies']) or 'no study'} teach the sampler"


def _exchanged(event: dict[str, Any]) -> str:
    pairs = [f"trial {heir['replaces']} is replaced, from trial {heir['parent']}" for heir in event["heirs"]]
    return f"exchange at {event['exposure']} examples: {'; '.join(pairs) or 'nobody is replaced'}"


def _confirming(event: dict[str, Any]) -> str:
    numbers = ", ".join(map(str, event["trials"]))
    trainings = f"{event['trainings']} training{'s' * (event['trainings'] > 1)}"
    return f"trials {numbers} are trained again under {event['seeds']} fresh seeds: {trainings}"


def _confirmed(event: dict[str, Any]) -> str:
    return f"trial {event['number']} again under seed {event['seed']}: {event['value']:.4f}"


SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "study.warning": lambda event: f"warning: {event['text']}",
    "study.borrowed": _borrowed,
    "study.device_set_aside": lambda event: f"{event['device']} gets no trials for a while: {event['reason']}",
    "study.device_back": lambda event: f"{event['device']} gets trials again",
    "study.exchanged": _exchanged,
    "study.confirming": _confirming,
    "study.verdict": lambda event: f"verdict: {event['text']}",
    "confirmation.started": lambda event: f"trial {event['number']} is trained again under seed {event['seed']}",
    "confirmation.completed": _confirmed,
    "confirmation.failed": lambda event: (
        f"trial {event['number']} under seed {event['seed']} failed ({event['failure']}): {event['text']}"
    ),
    "trial.replayed": _replayed,
}
"""Of events that say all themselves."""


class Progress:
    """What is known of a study from its events."""

    def __init__(self, study: dict[str, Any]) -> None:
        self.name: str = study["name"]
        self.wanted: int | None = study["spec"]["budget"]["trials"]
        self.metric: str = study["spec"]["objective"]["metric"]
        self.maximize = self.metric == "validation_token_accuracy"
        self.state, self.reason = study["state"], study["reason"]
        self.baseline: float | None = None
        self.confirming = 0
        """Trainings that confirm the best trials."""
        self._confirmed: set[tuple[int, int]] = set()
        self.trials: dict[int, dict[str, Any]] = {}
        self.started = time.monotonic()

    def take(self, event: dict[str, Any]) -> str | None:
        """Take an event in; the answer is a line worth printing, or None."""
        kind = event["kind"]
        if kind == "study.baseline":
            self.baseline = event[self.metric]
            return f"baseline (the untouched base model): {self.metric} {self.baseline:.4f}"
        self.confirming += event["trainings"] if kind == "study.confirming" else 0
        if kind in ("confirmation.completed", "confirmation.failed"):
            self._confirmed.add((event["number"], event["seed"]))  # one that is lost is tried again
        if kind in SENTENCES:
            return SENTENCES[kind](event)
        if kind.startswith("study."):
            return self._take_study(kind, event)
        if kind == "trial.stop_requested":
            return f"trial {event['number']} is to stop{_by(event)}"
        if kind == "trial.continue_requested":
            self.wanted = event["budget"].get("trials", self.wanted)
            return f"trial {event['number']} is to go on{_by(event)}"
        trial = self.trials.setdefault(event["number"], {"state": "RUNNING", "params": {}, "value": None, "epoch": 0.0})
        return self._take_trial(trial, kind, event)

    def _take_study(self, kind: str, event: dict[str, Any]) -> str:
        reached = kind.removeprefix("study.")
        if reached in ("started", "taken_over"):
            self.state, self.reason = "running", ""
        elif reached in ("queued", "paused", "finished", "failed", "cancelled"):
            self.state, self.reason = reached, event.get("reason", "")
        else:
            self.state = event.get("state", self.state)
        self.wanted = event.get("budget", {}).get("trials", self.wanted)
        words = kind.replace(".", " ").replace("_", " ") + (_by(event) if reached != "queued" else "")
        said = event.get("reason", "")
        return f"{words}: {said}" if said and said != reached else words

    def _take_trial(self, trial: dict[str, Any], kind: str, event: dict[str, Any]) -> str | None:
        number = event["number"]
        if kind in ("trial.started", "trial.continued"):
            trial |= {"state": "RUNNING", "params": event["params"]}
            goes_on = "begins anew" if event.get("exposure") == 0 else "goes on from its checkpoint"
            how = "started" if kind == "trial.started" else goes_on
            alone = ", alone on its device: a process died under it" if event.get("alone") else ""
            return f"trial {number} {how}{alone}: {outline(event['params'])}"
        if kind == "trial.reported":
            trial |= {"value": event["value"], "epoch": event["epoch"]}
            return None
        if kind == "trial.completed":
            trial |= {"state": "COMPLETE", "value": event["value"], "epoch": event["epoch"]}
            found = event.get("reused_from")
            known = f"; known from trial {found['number']} of '{found['study']}'" if found else ""
            best = f"{self.metric} {event['value']:.4f} (best after epoch {event['epoch']:g})"
            return f"trial {number} complete: {best}{known}"
        if kind == "trial.pruned":
            trial["state"] = "PRUNED"
            why = f": {event['text']}" if "text" in event else ""
            return f"trial {number} pruned after epoch {trial['epoch']:.3g}{why}"
        if kind == "trial.interrupted":
            trial["state"] = "WAITING"
            return f"trial {number} interrupted after {event['exposure']} examples: {event['text']}"
        trial["state"] = "FAIL"
        return f"trial {number} failed ({event['failure']}): {event['text']}"

    @property
    def ended(self) -> int:
        """Trials that will not change any more."""
        return sum(trial["state"] not in ("RUNNING", "WAITING") for trial in self.trials.values())

    @property
    def best(self) -> tuple[int, float] | None:
        """Number and value of the best completed trial."""
        complete = [(t["value"], number) for number, t in self.trials.items() if t["state"] == "COMPLETE"]
        if not complete:
            return None
        value, number = max(complete) if self.maximize else min(complete)
        return number, value

    def picture(self) -> Group:
        """The study as it stands, for a terminal."""
        elapsed = time.monotonic() - self.started
        head = Text.assemble((self.name, "bold"), f"  {self.state}  {elapsed:.0f} s  ")
        if self.baseline is not None:
            head.append(f"baseline {self.baseline:.4f}  ")
        if self.best is not None:
            head.append(f"best {self.best[1]:.4f} (trial {self.best[0]})", "green")
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "state", "epoch", self.metric, "params"):
            is_last = column == "params"  # the one that gives way where the terminal is narrow
            table.add_column(column, justify="left" if column == "state" or is_last else "right", no_wrap=not is_last)
        for number, trial in sorted(self.trials.items())[-15:]:
            value = "" if trial["value"] is None else f"{trial['value']:.4f}"
            state = Text(trial["state"], STATE_STYLES[trial["state"]])
            params = Text(outline(trial["params"]), no_wrap=True, overflow="ellipsis")
            table.add_row(str(number), state, f"{trial['epoch']:.3g}", value, params)
        total = self.wanted or max(len(self.trials), 1)
        bar = Table.grid(padding=(0, 1))
        training = sum(trial["state"] == "RUNNING" for trial in self.trials.values())
        told = f"{self.ended}/{self.wanted or '?'} trials, {training} training"
        bar.add_row(ProgressBar(total, min(self.ended, total), width=40), told)
        if self.confirming:
            again = len(self._confirmed)
            bar.add_row(ProgressBar(self.confirming, again, width=40), f"{again}/{self.confirming} trained again")
        return Group(head, bar, table)


def _by(event: dict[str, Any]) -> str:
    """Who acted, unless it is whoever sits at this machine."""
    return "" if event.get("by", "local") in ("", "local") else f" by {event['by']}"


def follow(events: Iterable[dict[str, Any]], progress: Progress, quiet: bool) -> None:
    """Show events until they end; on standard error, so that standard output stays a program's."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        for event in events:
            line = progress.take(event)
            if line is not None and not quiet:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
        return
    with Live(console=console, refresh_per_second=4, get_renderable=progress.picture):
        for event in events:
            progress.take(event)
