"""People act on a study at any moment of its life, and nothing is lost: a random life against the real tables."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from hpsearch.errors import ChangedMeanwhile, IdempotencyMismatch, IllegalMove, InvalidInput, LeaseLost
from hpsearch.lifecycle import ACTS, MOVES, Act, StudyState, Wish, WishKind
from hpsearch.results import Failure, TrialState
from hpsearch.results.trial import can_go_on
from hpsearch.search import Decision, Search, history
from hpsearch.spec.budget import BudgetExtension
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.spec.defaults import resolve
from hpsearch.spec.space import Params
from hpsearch.storage import Acting, Acts, Database, Endings, Lease, Studies, StudyRow, events_after, optuna_storage
from hpsearch.storage.rows import wishes_of
from tests.builders import a_report, a_spec

NAME = "tickets"
LONG = 3600.0
EXAMPLES = 100
TRIALS = 3
ACTIONS = ["pause", "resume", "extend", "confirm", "add", "add_outside_the_space", "stop", "change", "cancel"]
ACTIONS += ["resume", "add", "go_on", "act_on_what_is_long_gone"]
STEPS = ["beat", "train", "train", "train", "end", "lay_down", "die"]
AT_LAST = ["nothing", "extend", "add", "pause", "cancel"]


def wishes_about(database: Database, kind: WishKind) -> list[Wish]:
    with database.read() as connection:
        return [wish for wish in wishes_of(connection, NAME) if wish.kind is kind]


class Runner:
    """What a runner does with the storage and the search, one step at a time."""

    def __init__(self, studies: Studies, storage: Any, study: StudyRow, lease: Lease) -> None:
        self.studies, self.lease = studies, lease
        self.orders = studies.renew(lease, LONG)
        self.search = Search(
            study.spec,
            storage,
            examples=EXAMPLES,
            default_params={"epochs": 1},
            fence=lambda: studies.check(lease),
            event=lambda kind, details: studies.append_event(lease, kind, details),
            orders=lambda: self.orders,
            fulfilled=lambda wish: studies.fulfil(lease, wish),
        )
        self.running: dict[int, int] = {}

    def beat(self) -> None:
        self.orders = self.studies.renew(self.lease, LONG)

    def begin(self) -> bool:
        asked = self.search.ask()
        if asked is None:
            return False
        self.search.start(asked.number, resolve(self.search.spec, asked.params, EXAMPLES, "llama", 1_000_000))
        self.running[asked.number] = 0
        return True

    def report(self, number: int) -> None:
        """One more report; the second is the trial's last."""
        exposure = self.running[number]
        report = a_report(exposure, 3.0 - exposure / EXAMPLES)
        if self.search.report(number, report, "contract") is not Decision.GO_ON:
            self.search.prune(number)
            del self.running[number]
        elif exposure >= EXAMPLES:
            self.search.complete(number, report, "contract", f"artifacts/{number}")
            del self.running[number]
        else:
            self.running[number] += EXAMPLES

    def end(self) -> StudyState:
        """As `hpsearch.runner` ends: because people want it, or because nothing is left to do."""
        requested = self.orders.requested
        if requested == StudyState.PAUSED:
            self.search.release("paused")
            return self.lay_down()
        if requested == StudyState.CANCELLED:
            return self.cancel()
        well, reason = self.search.end()
        state = StudyState.FINISHED if well else StudyState.FAILED
        return self.leave(state, reason, self.search.heeded)

    def lay_down(self) -> StudyState:
        return self.leave(StudyState.QUEUED, "its runner was stopped")

    def leave(self, state: StudyState, reason: str, version: int | None = None) -> StudyState:
        """Somebody may have cancelled it in the last moment."""
        left = self.studies.end(self.lease, state, reason, version)
        return self.cancel() if left == StudyState.CANCELLED else left

    def cancel(self) -> StudyState:
        self.search.close(Failure.CANCELLED, "cancelled")
        self.search.close_waiting("cancelled")
        return self.studies.end(self.lease, StudyState.CANCELLED, "cancelled")


class Life(RuleBasedStateMachine):
    """One study: runners claim, drive, hand over and die; people act in between."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hpsearch-life-"))
        shutil.copy(self.template, self.folder / "life.db")
        url = f"sqlite:///{self.folder / 'life.db'}"
        self.database, self.storage = Database(url), optuna_storage(url)
        self.studies, self.acts = Studies(self.database), Acts(self.database)
        self.endings = Endings(self.database)
        space = {"epochs": 1, "learning_rate_multiplier": {"low": 0.1, "high": 10, "log": True}}
        self.spec = a_spec(search_space=space, budget={"trials": TRIALS}, sampler={"type": "random"})
        self.row, _ = self.studies.create(self.spec, by="alice")
        self.runner: Runner | None = None
        self.wanted = TRIALS
        self.added = self.gone_on = 0
        self.ended: dict[int, Any] = {}

    def teardown(self) -> None:
        self.database.close()
        self.storage.remove_session()
        self.storage.engine.dispose()  # type: ignore[attr-defined]
        shutil.rmtree(self.folder)

    # -- people

    def act(self, kind: Act, do: Any) -> bool:
        """Whether the act was done; it is refused exactly when the table says so."""
        before = self.row
        standing = [before.state, *([StudyState.CANCELLED] if before.requested == StudyState.CANCELLED else [])]
        legal = all(state in ACTS[kind] for state in standing)
        try:
            after: StudyRow = do()
        except IllegalMove:
            assert not legal
            assert self.studies.get(NAME) == before
            return False
        assert legal
        driven = before.state == StudyState.RUNNING
        assert after.state == (before.state if driven else ACTS[kind][before.state])
        return True

    @rule(by=st.sampled_from(["alice", "bob"]), act=st.sampled_from(ACTIONS), number=st.integers(1, 4))
    def somebody_acts(self, by: str, act: str, number: int) -> None:
        getattr(self, act)(by, number)

    def pause(self, by: str, _: int) -> None:
        if self.act(Act.PAUSE, lambda: self.acts.pause(NAME, Acting(by))):
            row = self.studies.get(NAME)
            assert StudyState.PAUSED in (row.state, row.requested)

    def resume(self, by: str, _: int) -> None:
        if self.act(Act.RESUME, lambda: self.acts.resume(NAME, Acting(by))):
            assert self.studies.get(NAME).requested is None

    def extend(self, by: str, more: int) -> None:
        acting = Acting(by, key=f"extend-{self.row.version}")
        if self.act(Act.EXTEND, lambda: self.acts.extend(NAME, BudgetExtension(trials=more), acting)):
            self.wanted += more
            again = self.studies.get(NAME)
            assert self.acts.extend(NAME, BudgetExtension(trials=more), acting) == again
            with pytest.raises(IdempotencyMismatch):
                self.acts.extend(NAME, BudgetExtension(trials=more + 1), acting)

    def confirm(self, by: str, seeds: int) -> None:
        wanted = ConfirmSpec(seeds=seeds + 1)
        if self.act(Act.CONFIRM, lambda: self.acts.confirm(NAME, wanted, Acting(by))):
            assert self.studies.get(NAME).spec.confirm == wanted

    def add(self, by: str, rate: int) -> None:
        params: Params = {"learning_rate_multiplier": float(rate)}
        if self.act(Act.ADD_TRIAL, lambda: self.acts.add_trial(NAME, params, Acting(by))):
            self.wanted += 1
            self.added += 1

    def add_outside_the_space(self, by: str, _: int) -> None:
        with pytest.raises((InvalidInput, IllegalMove)):
            self.acts.add_trial(NAME, {"learning_rate_multiplier": 11.0}, Acting(by))
        assert self.studies.get(NAME) == self.row

    def stop(self, by: str, number: int) -> None:
        self.act(Act.STOP_TRIAL, lambda: self.acts.stop_trial(NAME, number, Acting(by)))

    def go_on(self, by: str, place: int) -> None:
        """Of the trials that may, one goes on; asked twice, it does so once."""
        trials = history.trials(history.load(self.storage, NAME))
        able = [trial.number for trial in trials if can_go_on(trial, trials)]
        for number in (2 * able)[place : place + 1] * 2:
            asked = any(wish.number == number for wish in wishes_about(self.database, WishKind.CONTINUE))
            if self.act(Act.CONTINUE_TRIAL, lambda n=number: self.acts.continue_trial(NAME, n, Acting(by))):
                self.wanted += not asked
                self.gone_on += not asked
            self.row = self.studies.get(NAME)

    def change(self, by: str, priority: int) -> None:
        if self.act(Act.CHANGE, lambda: self.acts.change(NAME, {"priority": priority}, Acting(by))):
            assert self.studies.get(NAME).spec.priority == priority

    def cancel(self, by: str, number: int) -> None:
        if number > 1:  # what is cancelled stays so: not too often
            return

        def close(text: str) -> list[int]:
            return history.close_open(self.storage, NAME, text)

        done = self.act(Act.CANCEL, lambda: self.endings.cancel(NAME, Acting(by), close))
        if done and self.row.state != StudyState.RUNNING:
            assert self.studies.get(NAME).state == StudyState.CANCELLED

    def act_on_what_is_long_gone(self, by: str, _: int) -> None:
        stale = Acting(by, tags={f"{self.row.tag}0", "1-1"})
        for do in (self.acts.pause, self.acts.resume, self.endings.cancel, self.endings.delete):
            with pytest.raises(ChangedMeanwhile):
                do(NAME, stale)

    # -- runners

    @rule(step=st.sampled_from(STEPS), count=st.integers(1, 12), by=st.just("bob"), at_last=st.sampled_from(AT_LAST))
    def a_runner_goes_on(self, step: str, count: int, by: str, at_last: str) -> None:
        if self.runner is None:
            self.claim()
        elif step == "end":
            self.drive_to_the_end(self.runner, lambda: at_last == "nothing" or getattr(self, at_last)(by, 1))
        else:
            getattr(self, step)(self.runner, count)

    def claim(self) -> None:
        claimed = self.studies.claim("runner", LONG)
        assert (claimed is None) == (self.row.state not in (StudyState.QUEUED, StudyState.RUNNING))
        if claimed is not None:
            self.runner = Runner(self.studies, self.storage, *claimed)

    def beat(self, runner: Runner, _: int) -> None:
        runner.beat()

    def train(self, runner: Runner, steps: int) -> None:
        for step in range(steps if runner.orders.requested is None else 0):
            if runner.running and step % 3:
                runner.report(min(runner.running) if step % 2 else max(runner.running))
            elif not runner.begin() and not runner.running:
                return

    def drive_to_the_end(self, runner: Runner, at_last: Any) -> None:
        """In the last moment, before the end is written, somebody may act."""
        while runner.orders.requested is None and (runner.begin() or runner.running):
            for number in list(runner.running):
                runner.report(number)
        at_last()
        runner.end()
        self.runner = None

    def lay_down(self, runner: Runner, _: int) -> None:
        """SIGTERM."""
        if runner.orders.requested is None:
            runner.search.release("stopped")
            runner.lay_down()
        else:
            runner.end()
        self.runner = None

    def die(self, runner: Runner, _: int) -> None:
        """kill -9, and its lease runs out; once another has claimed the study, the ghost can write nothing."""
        with self.database.write() as connection:
            connection.execute(sa.text("UPDATE hpsearch_studies SET lease_expires_at = 1"))
        self.claim()
        end = StudyState.FINISHED
        for write in (
            runner.beat,
            lambda: runner.search.fail(0, Failure.ERROR, "too late"),
            lambda: runner.studies.end(runner.lease, end, "done"),
        ):
            with pytest.raises(LeaseLost):
                write()

    # -- what always holds

    @invariant()
    def the_study_moves_legally_and_its_version_grows(self) -> None:
        before, self.row = self.row, self.studies.get(NAME)
        assert self.row.version >= before.version
        if (self.row.state, self.row.spec, self.row.requested) != (before.state, before.spec, before.requested):
            assert self.row.version > before.version
        if self.row.state != before.state:
            assert self.row.state in MOVES[before.state]
        assert (self.row.finished_at is not None) == self.row.state.is_over
        assert (self.row.lease_owner is not None) == (self.row.state == StudyState.RUNNING)
        assert self.row.requested is None or self.row.state == StudyState.RUNNING
        assert self.row.spec.budget.trials == self.wanted

    @invariant()
    def the_events_tell_the_whole_story(self) -> None:
        told: dict[str, Any] = {"state": None}
        for event in events_after(self.database, NAME, 0, limit=10_000):
            reached = event.kind.removeprefix("study.")
            told["state"] = {"started": "running", "taken_over": "running"}.get(reached, told["state"])
            told["state"] = reached if reached in set(StudyState) else event.details.get("state", told["state"])
            if event.kind.endswith("requested") or reached in ("resumed", "extended", "trial_added", "changed"):
                assert event.details["by"] in ("alice", "bob")
        assert told["state"] == self.studies.get(NAME).state

    @invariant()
    def what_has_ended_never_changes_and_nothing_is_done_twice(self) -> None:
        trials = history.trials(history.load(self.storage, NAME))
        ended = {trial.number: trial for trial in trials if trial.state.is_finished}
        assert {number: ended.get(number) for number in self.ended} == self.ended
        self.ended = ended
        counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(counted) <= self.wanted
        by_hand = [trial for trial in trials if trial.origin == "hand"]
        assert len(by_hand) <= self.added
        going_on = [trial.continues for trial in trials if trial.origin == "continued"]
        assert len(going_on) <= self.gone_on
        assert len(set(going_on)) == len(going_on)
        state = self.studies.get(NAME).state
        if state.is_over:
            assert all(trial.state.is_finished for trial in trials)
        if state == StudyState.FINISHED:  # a budget raised, or a trial added, in the last moment counts too
            assert len(counted) == self.wanted
            assert len(by_hand) == self.added
            assert len(going_on) == self.gone_on


def test_whatever_people_and_runners_do_nothing_is_lost(sqlite_template: Path) -> None:
    Life.template = sqlite_template
    some = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Life, settings=some)
