"""What a runner does with its queue, without Ray: what goes wrong there leaves the studies that it drives alone."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import sqlalchemy as sa

from hpsearch.basemodel import BaseModel
from hpsearch.errors import HubUnavailable
from hpsearch.lifecycle import Orders, StudyState
from hpsearch.raytune.holding import Holding
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop, Stop
from hpsearch.runner import driving, heartbeat
from hpsearch.runner import runner as runner_module
from hpsearch.runner.driving import place_of
from hpsearch.runner.fair import Fair
from hpsearch.runner.runner import Runner
from hpsearch.runner.turns import Turn, rotate
from hpsearch.search import Search, history
from hpsearch.settings import Settings
from hpsearch.shares import Need, Share
from hpsearch.spec.study import StudySpec
from hpsearch.storage import (
    Acting,
    Acts,
    Database,
    Endings,
    Lease,
    Studies,
    StudyRow,
    events_after,
    optuna_storage,
    place_in_line,
)
from hpsearch.storage.events import KEPT
from hpsearch.storage.tables import studies
from tests.builders import a_spec
from tests.conftest import STUDIES

PATIENCE = 60


def until(what: Callable[[], object], text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


def readable(name: str, **changes: Any) -> StudySpec:
    """A study whose model and data are there."""
    tickets = STUDIES / "data" / "tickets"
    data = {split: str(tickets / f"{split}.jsonl") for split in ("train", "validation")}
    return a_spec(name=name, model={"base": str(STUDIES / "models" / "pydoc-llama")}, data=data, **changes)


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """A runner in a thread, which lays its studies down at the end."""
    runner = Runner(settings, "none")
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield
    finally:
        runner.stop.set()
        thread.join(PATIENCE)


class Driven:
    """A runner in a thread, whose studies go on until they are laid down."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = Database(settings.sql_url)
        Studies(self.database).create(a_spec(name="driven"))
        self.runner = Runner(settings, "none")
        monkeypatch.setattr(self.runner._driving, "drive", self._drive)
        self.begun, self.laid_down = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except Exception as error:
            self.error = error

    def _drive(self, study: StudyRow, lease: Lease, turn: Turn) -> None:
        del study, lease, turn
        self.begun.set()
        self.runner.stop.wait(PATIENCE)
        if self.runner.stop.is_set():
            self.laid_down.set()


@pytest.fixture
def driven(home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driven]:
    driven = Driven(home_with_tables, monkeypatch)
    assert driven.begun.wait(PATIENCE)
    yield driven
    driven.runner.stop.set()
    driven.thread.join(PATIENCE)


@pytest.mark.parametrize("text", ['{"name": "unread", "invented": 1}', '{"name": "unr', "[]"])
def test_a_study_whose_spec_cannot_be_read_fails_and_those_behind_it_go_on(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Somebody went back to an old version, or the row is damaged. What it has trained waits for who can read it."""
    database = Database(home_with_tables.sql_url)
    created, trials = Studies(database), optuna_storage(home_with_tables.sql_url)
    written = created.create(a_spec(name="unread", priority=9))[0].spec_text
    created.create(a_spec(name="behind"))
    unread = studies.update().where(studies.c.name == "unread")
    with database.write() as connection:
        connection.execute(unread.values(spec=text))
    optuna.create_study(study_name="unread", storage=trials).ask()
    monkeypatch.setattr(driving.Driving, "_search", lambda *_: (StudyState.FINISHED, "done", None))
    with running(home_with_tables):
        until(lambda: created.get("behind").state == StudyState.FINISHED, "the study behind it was driven")
    failed = created.get("unread")
    assert failed.state == StudyState.FAILED
    assert "can't be read" in failed.reason
    (trial,) = optuna.load_study(study_name="unread", storage=trials).get_trials()
    assert trial.state == optuna.trial.TrialState.WAITING
    with database.write() as connection:  # upgraded
        connection.execute(unread.values(spec=written))
    assert Acts(database).resume("unread", Acting("alice")).state == StudyState.QUEUED


def test_a_claim_that_fails_does_not_stop_those_that_are_driven(
    driven: Driven, caplog: pytest.LogCaptureFixture
) -> None:
    newer = {
        "name": "newer",
        "requested": "hibernated",
        "state": "queued",
    }  # as it may be after somebody went back to an old version
    columns = [sa.literal(newer[each.name]) if each.name in newer else each for each in studies.c]
    with driven.database.write() as connection:
        connection.execute(sa.insert(studies).from_select(list(studies.c.keys()), sa.select(*columns)))
    until(lambda: "study not claimed" in caplog.messages, "the study was read")
    assert driven.thread.is_alive()
    assert not driven.laid_down.is_set()


def test_devices_are_told_what_the_operator_has_set(home: Settings) -> None:
    wanted = {
        "device_silent_seconds": 7.0,
        "device_stalled_seconds": 77.0,
        "least_free_bytes": 7777,
        "study_bytes": 2**21,
        "parked_trials": 3,
    }
    place = place_of(Settings(home=home.home, **wanted), "tickets")
    told = (place.silent_seconds, place.stalled_seconds, place.least_free_bytes, place.most_bytes, place.parked)
    assert told == tuple(wanted.values())
    assert (place.artifacts, place.cache) == (home.artifacts_folder / "tickets", home.token_cache_folder)


def test_a_runner_that_fails_lays_its_studies_down_first(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would drive them on and claim no more, and nobody would start it again."""

    def fails(*_: object) -> None:
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(runner_module, "tidy", fails)
    driven.runner._tidied_at = -float("inf")
    driven.thread.join(PATIENCE)
    assert not driven.thread.is_alive()
    assert isinstance(driven.error, ValueError)
    assert driven.laid_down.is_set()


class Endless:
    """Stands for Ray: a search that trains one trial on a device of its own until it is told to stop in order."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.driven: set[str] = set()
        self.most = 0

    def drive(
        self,
        search: Search,
        model: BaseModel,
        examples: int,
        place: Place,
        should_stop: ShouldStop,
        *,
        holding: Holding,
    ) -> bool:
        del model, examples, place
        name = search.spec.name
        self.turns[name] += 1
        self.driven.add(name)
        self.most = max(self.most, len(self.driven))
        while (stop := should_stop()) is None:
            if holding.may_begin(0, 1):
                holding.trains(0)
            time.sleep(0.05)
        assert stop is Stop.IN_ORDER
        self.driven.remove(name)
        return True


def test_studies_for_which_a_runner_has_no_place_get_theirs_in_turn(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, five of them, none of which ends: every one is driven again and again."""
    settings = home_with_tables.model_copy(update={"studies_at_once": 2, "slice_seconds": 0.3})
    endless = Endless()
    monkeypatch.setattr(driving, "drive", endless.drive)
    monkeypatch.setattr(runner_module, "count_devices", lambda: 2)
    for name in ("LOOK_SECONDS", "WAITED_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(runner_module, name, 0.05)
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.1)
    database = Database(settings.sql_url)
    names = [f"study-{number}" for number in range(5)]
    for name in names:
        Studies(database).create(readable(name))
    with running(settings):
        until(lambda: all(endless.turns[name] >= 2 for name in names), f"each has its turns: {endless.turns}")
    assert endless.most == 2
    assert {Studies(database).get(name).state for name in names} == {StudyState.QUEUED}
    events = [str(event.details) for event in events_after(database, names[0], 0) if event.kind == "study.queued"]
    assert any("another study that waited has its place" in event for event in events)


def test_a_study_gives_its_place_to_those_only_that_would_be_claimed_before_it() -> None:
    def a_turn(priority: int, held: float, *, trains: bool = True) -> Turn:
        turn, holding = Turn(), Holding(slice_seconds=60)
        driven = itertools.chain([0.0], itertools.repeat(held))
        spec = a_spec(priority=priority)
        turn.begin(holding, lambda: Orders(1, None, spec, (), next(driven)))
        if trains:
            holding.trains(0)
        return turn

    now = 10_000.0
    urgent, short, long, loading = a_turn(10, 500), a_turn(0, 59), a_turn(0, 100), a_turn(0, 100, trains=False)
    turns = [urgent, short, long, loading]
    rotate(turns, [], now)
    assert not any(turn.gives_way for turn in turns)
    rotate(turns, [place_in_line(now - 1, 0)], now)
    rotate(turns, [place_in_line(now - 1, 0)], now)
    assert [turn.gives_way for turn in turns] == [False, False, True, False], "once, and not the urgent one"
    rotate(turns, [place_in_line(now - 601, 0), place_in_line(now - 601, 0)], now)
    assert [turn.gives_way for turn in turns] == [True, False, True, False], "ten minutes are ten points"


def test_a_share_that_goes_to_and_fro_is_told_now_and_then_and_the_last_one_in_any_case(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(home_with_tables.sql_url)
    table = Studies(database)
    table.create(a_spec(name="shared"))
    _, lease = table.claim("runner", PATIENCE) or pytest.fail("nothing claimed")
    need = Need(5, 1)
    shares = itertools.cycle([Share(1, 1, need=need, devices=9), Share(2, 1, need=need, devices=9)])
    fair = SimpleNamespace(of=lambda _: next(shares), look=lambda: None, cluster="here")
    beats = heartbeat.Heartbeat(table, lease, PATIENCE, cast(Fair, fair), pytest.fail)
    beats._need = need
    clock = itertools.count()
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(clock)))

    def told() -> list[int]:
        return [int(e.details["trials"]) for e in events_after(database, "shared", 0) if e.kind == "study.share"]

    for _ in range(20):
        beats._renew()
    assert told() == [1]
    for _ in range(3):
        beats._renew()
    assert told() == [1, 2]


def test_a_thread_that_hangs_loses_its_study_and_the_process_ends_with_the_others_laid_down(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HUNG_SECONDS", 1.5)
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.1)
    database = Database(home_with_tables.sql_url)
    table = Studies(database)
    for name in ("hangs", "neighbour"):
        table.create(readable(name))
    hung, awake = threading.Event(), threading.Event()

    def drive(search: Search, _: object, __: object, ___: object, should_stop: ShouldStop, *, holding: object) -> bool:
        while not should_stop():
            time.sleep(0.05)
            if search.spec.name == "hangs" and not hung.is_set():
                hung.set()
                assert awake.wait(PATIENCE)
        if search.spec.name == "hangs":
            assert should_stop() is Stop.NOW, "nothing that it would do counts any more"
            awake.clear()
        return True

    monkeypatch.setattr(driving, "drive", drive)
    runner = Runner(home_with_tables, "none")
    runner.run()  # it ends by itself, without the thread that hangs
    assert hung.is_set()
    assert runner.needs_a_new_process
    assert table.get("neighbour").state == StudyState.QUEUED
    assert table.get("hangs").state == StudyState.RUNNING
    lease_runs_out(database, "hangs")
    time.sleep(3 * heartbeat.RENEW_SECONDS)  # in which it would be renewed, if anybody did
    assert set(_claimed(table) + _claimed(table)) == {"hangs", "neighbour"}
    awake.set()
    until(lambda: not awake.is_set(), "it moves again")


def lease_runs_out(database: Database, name: str) -> None:
    with database.write() as connection:
        connection.execute(studies.update().where(studies.c.name == name).values(lease_expires_at=1.0))


def test_a_process_that_was_stopped_for_long_has_not_hung_for_long(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of its threads stood still; the one that drives the study looks again soon after."""
    table = Studies(Database(home_with_tables.sql_url))
    table.create(a_spec(name="stopped"))
    _, lease = table.claim("runner", PATIENCE) or pytest.fail("nothing claimed")
    monkeypatch.setattr(heartbeat, "RENEW_SECONDS", 0.02)
    slept = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept[0]))
    hung: list[str] = []
    fair = SimpleNamespace(of=lambda _: None)
    with heartbeat.Heartbeat(table, lease, PATIENCE, cast(Fair, fair), hung.append) as beats:

        def beats_on() -> None:
            for _ in range(2):
                last = beats.orders
                until(lambda: beats.orders is not last, "the next beat")  # noqa: B023 - called at once

        beats.wish()
        beats_on()
        slept[0] = 2 * heartbeat.HUNG_SECONDS
        beats_on()
        assert hung == []
        monkeypatch.setattr(heartbeat, "HUNG_SECONDS", 0.1)
        until(lambda: hung == ["stopped"], "it hangs, for nobody has looked since")
        assert beats.wish() is Stop.NOW


def test_a_runner_does_not_take_its_own_studies_over(driven: Driven) -> None:
    """Where its process was stopped for longer than a lease holds: the study is as it was left."""
    lease_runs_out(driven.database, "driven")
    table = Studies(driven.database)
    table.create(a_spec(name="behind"))
    until(lambda: table.get("behind").state == StudyState.RUNNING, "the next one is claimed")
    assert [event.kind for event in events_after(driven.database, "driven", 0)] == ["study.queued", "study.started"]
    assert _claimed(table) == ["driven"], "another runner takes it over"


@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed and not told"])
def test_a_study_that_is_cancelled_as_it_is_laid_down_has_its_trials_closed_before_it_says_so(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    database, trials = Database(home_with_tables.sql_url), optuna_storage(home_with_tables.sql_url)
    table = Studies(database)
    table.create(readable("laid-down"))
    optuna.create_study(study_name="laid-down", storage=trials, direction="minimize").enqueue_trial({})
    _, lease = table.claim("runner", PATIENCE) or pytest.fail("nothing claimed")
    Endings(database).cancel("laid-down", Acting("alice"))
    driving_it = Runner(home_with_tables, "none")._driving
    with monkeypatch.context() as dying:
        dying.setattr(driving.history, "close_open", _killed)
        with pytest.raises(KeyboardInterrupt):
            driving_it._leave(lease, StudyState.QUEUED, "stopped")
    assert table.get("laid-down").state == StudyState.RUNNING, "the next runner does it"
    if is_closed:  # and it died before it could say so
        history.close_open(trials, "laid-down", "the study was cancelled")
    assert driving_it._leave(lease, StudyState.QUEUED, "stopped") == StudyState.CANCELLED
    assert table.get("laid-down").state == StudyState.CANCELLED
    (trial,) = optuna.load_study(study_name="laid-down", storage=trials).trials
    assert trial.state == optuna.trial.TrialState.FAIL
    told = [event.kind for event in events_after(database, "laid-down", 0)]
    assert told[-2:] == ["trial.failed", "study.cancelled"]


def test_a_cancel_that_broke_off_is_done_by_the_next_runner(home_with_tables: Settings) -> None:
    """Nobody drove the study, and the API that was asked died before it had closed the trials."""
    database, trials = Database(home_with_tables.sql_url), optuna_storage(home_with_tables.sql_url)
    table = Studies(database)
    model = {"base": str(STUDIES / "models" / "pydoc-llama")}
    table.create(a_spec(name="paused", model=model, data={"train": "/gone.jsonl"}))  # no matter, to cancel it
    Acts(database).pause("paused", Acting("alice"))
    optuna.create_study(study_name="paused", storage=trials, direction="minimize").enqueue_trial({})
    with pytest.raises(KeyboardInterrupt):
        Endings(database).cancel("paused", Acting("alice"), _killed)
    with running(home_with_tables):
        until(lambda: table.get("paused").state == StudyState.CANCELLED, "the runner ends it")
    (trial,) = optuna.load_study(study_name="paused", storage=trials).trials
    assert trial.state == optuna.trial.TrialState.FAIL
    assert "study.failed" not in [event.kind for event in events_after(database, "paused", 0)]


def _killed(*_: object) -> Any:
    raise KeyboardInterrupt


def _claimed(table: Studies) -> list[str]:
    claimed = table.claim("another runner", PATIENCE)
    return [] if claimed is None else [claimed[0].name]


def test_of_shares_the_last_ones_are_kept(home_with_tables: Settings) -> None:
    database = Database(home_with_tables.sql_url)
    table = Studies(database)
    table.create(a_spec(name="shared"))
    _, lease = table.claim("runner", PATIENCE) or pytest.fail("nothing claimed")
    for number in range(KEPT["study.share"] + 5):
        table.append_event(lease, "study.share", {"trials": number})
        table.append_event(lease, "trial.reported", {"number": number})
    found = Counter(event.kind for event in events_after(database, "shared", 0))
    assert found["study.share"] == KEPT["study.share"]
    assert found["trial.reported"] == KEPT["study.share"] + 5
    last = [event.details["trials"] for event in events_after(database, "shared", 0) if event.kind == "study.share"][-1]
    assert last == KEPT["study.share"] + 4


class Hub:
    """Stands for the model hub: it can't be asked for the first so many times."""

    def __init__(self, failures: float) -> None:
        self.failures = failures

    def describe(self, base: str, revision: str | None) -> BaseModel:
        self.failures -= 1
        if self.failures >= 0:
            raise HubUnavailable(f"{base} at {revision} can't be looked up")
        return BaseModel(base, revision, "llama", 2, 1000, 512, "commit")


@pytest.mark.parametrize(
    ("failures", "patience", "state"),
    [(2, PATIENCE, StudyState.QUEUED), (1e9, 1.0, StudyState.PAUSED)],
    ids=["it-answers-again", "it-stays-away"],
)
def test_a_study_that_was_interrupted_waits_for_its_models_hub_and_does_not_fail(
    home_with_tables: Settings, monkeypatch: pytest.MonkeyPatch, failures: float, patience: float, state: StudyState
) -> None:
    endless, hub = Endless(), Hub(failures)
    monkeypatch.setattr(driving, "drive", endless.drive)
    monkeypatch.setattr(driving, "describe", hub.describe)
    monkeypatch.setattr(driving, "HUB_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(driving, "HUB_SECONDS", patience)
    monkeypatch.setattr(runner_module, "count_devices", lambda: 1)
    tickets = STUDIES / "data" / "tickets"
    data = {split: str(tickets / f"{split}.jsonl") for split in ("train", "validation")}
    database = Database(home_with_tables.sql_url)
    Studies(database).create(a_spec(name="on-hub", model={"base": "org/name"}, data=data))
    trials = optuna_storage(home_with_tables.sql_url)
    optuna.create_study(study_name="on-hub", storage=trials, direction="minimize").ask()
    runner = Runner(home_with_tables, "none")
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        until(lambda: endless.driven or Studies(database).get("on-hub").state == StudyState.PAUSED, "it goes on")
    finally:
        runner.stop.set()
        thread.join(PATIENCE)
    study = Studies(database).get("on-hub")
    assert study.state == state
    kinds = Counter(event.kind for event in events_after(database, "on-hub", 0))
    assert kinds["study.waits_for_hub"] == 1, "once, however often it is asked"
    if state == StudyState.PAUSED:
        assert study.reason.startswith("hub_unavailable: ")
    (first, *_) = optuna.load_study(study_name="on-hub", storage=trials).get_trials()
    assert first.state == optuna.trial.TrialState.WAITING
