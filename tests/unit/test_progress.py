"""Progress: what a person sees of a study's events."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from typing import Any, cast

import pytest
import typer
from rich.console import Console

from hpsearch.cli.following import look_on
from hpsearch.cli.progress import Progress, follow
from hpsearch.cli.tables import ranking_table, trials_table
from hpsearch.client import Client
from tests.builders import spec_fields

PARAMS = {"epochs": 2, "learning_rate_multiplier": 0.123456}


def a_progress(metric: str = "validation_loss", trials: int | None = 4) -> Progress:
    spec = spec_fields(objective={"metric": metric}, budget={"trials": trials})
    return Progress({"name": "tickets", "state": "queued", "reason": "", "spec": spec})


def told(progress: Progress, *events: dict[str, Any]) -> list[str | None]:
    return [progress.take(event) for event in events]


def started(number: int) -> dict[str, Any]:
    return {"kind": "trial.started", "number": number, "params": PARAMS, "origin": "search"}


def completed(number: int, value: float) -> dict[str, Any]:
    return {"kind": "trial.completed", "number": number, "value": value, "epoch": 1.5}


def test_a_trial_that_goes_on_alone_is_told_as_such() -> None:
    event = {**started(3), "kind": "trial.continued", "attempt": 2, "alone": True}
    (line,) = told(a_progress(), event)
    assert line is not None
    assert line.startswith(
        "trial 3 goes on from its checkpoint, alone on its device: a process died under it: epochs=2"
    )


def test_a_trial_that_has_nothing_to_go_on_from_is_said_to_begin_anew() -> None:
    event = {**started(3), "kind": "trial.continued", "attempt": 2}
    anew, on = told(a_progress(), {**event, "exposure": 0}, {**event, "exposure": 50})
    assert str(anew).startswith("trial 3 begins anew: epochs=2")
    assert str(on).startswith("trial 3 goes on from its checkpoint: epochs=2")


def test_every_kind_of_event_has_its_line() -> None:
    lines = told(
        a_progress(),
        {"kind": "study.queued"},
        {"kind": "study.started", "runner": "r"},
        {"kind": "study.baseline", "validation_loss": 3.25, "validation_bits_per_byte": 1.0},
        {"kind": "study.warning", "text": "data.train: 7 of 400 examples were cut"},
        started(0),
        {"kind": "trial.reported", "number": 0, "value": 2.0, "epoch": 0.5, "exposure": 50},
        completed(0, 1.5),
        started(1),
        {"kind": "trial.pruned", "number": 1, "exposure": 50},
        started(2),
        {"kind": "trial.failed", "number": 2, "failure": "diverged", "text": "the loss is nan"},
        {"kind": "study.cancel_requested"},
        {"kind": "study.taken_over", "runner": "s"},
        {"kind": "study.finished", "reason": "all 4 trials of the budget were used"},
    )
    assert lines == [
        "study queued",
        "study started",
        "baseline (the untouched base model): validation_loss 3.2500",
        "warning: data.train: 7 of 400 examples were cut",
        "trial 0 started: epochs=2 learning_rate_multiplier=0.123",
        None,
        "trial 0 complete: validation_loss 1.5000 (best after epoch 1.5)",
        "trial 1 started: epochs=2 learning_rate_multiplier=0.123",
        "trial 1 pruned after epoch 0",
        "trial 2 started: epochs=2 learning_rate_multiplier=0.123",
        "trial 2 failed (diverged): the loss is nan",
        "study cancel requested",
        "study taken over",
        "study finished: all 4 trials of the budget were used",
    ]


def test_it_counts_what_has_ended_and_knows_the_state() -> None:
    progress = a_progress()
    told(progress, {"kind": "study.started"}, started(0), completed(0, 2.0), started(1))
    assert (progress.state, progress.ended, progress.wanted) == ("running", 1, 4)
    told(progress, {"kind": "study.cancelled", "reason": "cancelled"})
    assert (progress.state, progress.reason) == ("cancelled", "cancelled")


@pytest.mark.parametrize(("metric", "best"), [("validation_loss", (1, 0.5)), ("validation_token_accuracy", (0, 0.9))])
def test_the_best_is_the_best_in_the_direction_of_the_metric(metric: str, best: tuple[int, float]) -> None:
    progress = a_progress(metric)
    assert progress.best is None
    told(progress, started(0), completed(0, 0.9), started(1), completed(1, 0.5), started(2))
    told(progress, {"kind": "trial.reported", "number": 2, "value": 0.0, "epoch": 1, "exposure": 9})
    assert progress.best == best


def shown(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("trials", [4, None])
def test_the_picture_has_every_trial_and_the_budget(trials: int | None) -> None:
    progress = a_progress(trials=trials)
    told(progress, {"kind": "study.baseline", "validation_loss": 3.25}, started(0), completed(0, 1.5), started(1))
    told(progress, {"kind": "trial.failed", "number": 1, "failure": "error", "text": "x"})
    told(progress, started(2), {"kind": "trial.interrupted", "number": 2, "exposure": 40, "text": "paused"})
    text = shown(progress.picture())
    assert "WAITING" in text
    assert "baseline 3.2500" in text
    assert "best 1.5000 (trial 0)" in text
    assert "COMPLETE" in text
    assert "FAIL" in text
    assert f"2/{trials or '?'} trials" in text


def test_on_a_narrow_terminal_the_params_are_cut_and_nothing_else() -> None:
    progress = a_progress()
    params = {f"a_parameter_with_a_long_name_{number}": 0.123456 for number in range(6)}
    for number in range(9, 12):
        told(progress, {**started(number), "params": params}, completed(number, 1.5))
    rows = [line for line in shown(progress.picture(), width=80).splitlines() if "1.5000 " in line][1:]
    assert [row.split()[:2] for row in rows] == [["9", "COMPLETE"], ["10", "COMPLETE"], ["11", "COMPLETE"]]
    assert all(row.rstrip().endswith("…") and "a_parameter_with" in row for row in rows)


def test_an_empty_picture_can_be_drawn() -> None:
    assert "tickets" in shown(a_progress().picture())


def test_lines_go_to_standard_error_and_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    events = [started(0), completed(0, 1.5)]
    follow(iter(events), a_progress(), quiet=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "trial 0 complete" in printed.err
    follow(iter(events), a_progress(), quiet=True)
    assert capsys.readouterr() == ("", "")


def a_ranking(rows: int) -> dict[str, Any]:
    ranking = [
        {"rank": n, "number": n + 4, "value": n / 2, "params": PARAMS, "best_epoch": 1.5} for n in range(1, rows + 1)
    ]
    return {
        "study": "tickets",
        "state": "finished",
        "objective": {"metric": "validation_loss", "direction": "minimize"},
        "baseline": {"validation_loss": 3.25},
        "ranking": ranking,
    }


def test_the_ranking_is_printed_best_first_beside_the_baseline() -> None:
    text = shown(ranking_table(a_ranking(2)), 80)
    rows = [[word for word in line.split() if word != "ep"] for line in text.splitlines()]
    first, second = ["1", "5", "0.5000", "1.5", "2", "0.123"], ["2", "6", "1.0000", "1.5", "2", "0.123"]
    assert rows.index(first) < rows.index(second) < rows.index(["baseline", "3.2500"])
    assert text.splitlines()[0].startswith("tickets: ")


def test_a_long_name_does_not_break_the_rankings_head() -> None:
    name = "nightly-with-a-long-name-2026-11-21"
    assert shown(ranking_table({**a_ranking(1), "study": name})).splitlines()[0].endswith("by validation_loss")


@pytest.mark.parametrize("baseline", [None, {"validation_loss": 3.25}])
def test_a_ranking_of_nothing_can_be_printed(baseline: Any) -> None:
    text = shown(ranking_table({**a_ranking(0), "baseline": baseline}))
    assert "tickets: finished, by validation_loss: no trial is complete" in text
    assert ("3.2500" in text) is (baseline is not None)


def test_all_trials_are_listed_with_what_became_of_them() -> None:
    def trial(number: int, state: str, **told: Any) -> dict[str, Any]:
        fields = {"value": None, "last_value": None, "failure": None, "failure_text": None, "params": PARAMS}
        return {"number": number, "state": state, **fields, **told}

    listed = [
        trial(0, "COMPLETE", value=0.5, last_value=0.75),
        trial(1, "PRUNED", last_value=1.25),
        trial(2, "FAIL", failure="diverged", failure_text="the loss is [nan]"),
        trial(3, "WAITING"),
    ]
    lines = [line.split() for line in shown(trials_table(listed), 80).splitlines()]
    params = ["epochs=2", "learning_rate_multiplier=0.123"]
    assert lines == [
        ["trial", "state", "value"],
        ["0", "COMPLETE", "0.5000", *params],
        ["1", "PRUNED", "1.2500", *params],
        ["2", "FAIL", "diverged:", "the", "loss", "is", "[nan]"],
        ["3", "WAITING", *params],
    ]


def test_ctrl_c_lets_go_of_the_stream_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is told to stop waits for those who listen."""
    closed: list[str] = []

    class Service:
        def events(self, name: str) -> Generator[dict[str, Any]]:
            try:
                yield started(0)
                yield started(1)
            finally:
                closed.append(name)

    def interrupted(events: Iterable[dict[str, Any]], progress: Progress, quiet: bool) -> None:
        for event in events:
            progress.take(event)
            raise KeyboardInterrupt

    monkeypatch.setattr("hpsearch.cli.following.follow", interrupted)
    study = {"name": "tickets", "state": "running", "reason": "", "spec": spec_fields(budget={"trials": 4})}
    study["spec"] |= {"objective": {"metric": "validation_loss"}}  # type: ignore[operator]
    with pytest.raises(typer.Exit) as left:
        look_on(cast(Client, Service()), study)
    assert closed == ["tickets"]
    assert left.value.exit_code == 130
