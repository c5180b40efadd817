"""kill -9 of the process that searches, at every named point and anywhere else, changes nothing of the outcome."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from hpsearch.crash import VARIABLE, CrashPoint
from hpsearch.results import Failure, Trial, TrialState
from hpsearch.search import Asked, Decision, history
from hpsearch.search.told import KINDS, Happening, of_end
from hpsearch.spec import StudySpec
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.storage import optuna_storage
from tests.contract.test_population import gain, loss, pbt_spec
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, a_report, exposures_of, loss_of, spec_of

TRIALS = 12
DIVERGED, LOST = {4, 10}, {1, 6, 9}
"""Trials that fail after their first report; the lost ones are tried again."""
SPEC = spec_of(
    TRIALS,
    sampler={"type": "tpe", "startup_trials": 4},
    pruner={"type": "percentile", "startup_trials": 3, "min_reports": 2, "percentile": 50},
    first_trials=[{"epochs": 2}],
)
EXCHANGING: list[CrashPoint] = ["after_exchange", "after_heir"]
ELSEWHERE = {"after_snapshot", *EXCHANGING}  # on a device, and in a population
POINTS = [point for point in get_args(CrashPoint) if point not in ELSEWHERE]
POPULATION = pbt_spec(pruner={"population": 4})
RANDOM_KILLS = 20
CALLS = 60_000
"""A random kill comes within so many calls and returns behind a report; the next report is often 30,000 away."""
DICE = random.Random(0)


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a search is killed: not when, which would be somewhere else on each machine."""

    reports: int
    """New ones after which it is."""
    calls: int
    """And returns of functions, from then on."""


class Journal(list[Happening]):
    """Events of a process that may be killed, in a file that outlives it."""

    def __init__(self, path: Path, kill: Kill | None) -> None:
        super().__init__(map(tuple, map(json.loads, path.read_text().splitlines())) if path.exists() else ())
        self._reports, self._calls = (0, 0) if kill is None else (kill.reports, kill.calls)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(self, event: Happening) -> None:
        os.write(self._file, f"{json.dumps(event)}\n".encode())  # at once, or not at all
        if event[0] == "trial.reported":
            self._reports -= 1
            if self._reports == 0:
                sys.setprofile(self._count)

    def _count(self, *_: object) -> None:
        self._calls -= 1
        if self._calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Searched:
    """A database, and processes that search in it until they are killed."""

    def __init__(self, file: Path, spec: StudySpec) -> None:
        self.url, self.spec, self.journal = f"sqlite:///{file}", spec, file.with_suffix(".events")

    def search(self, crash_at: str, replay: float, kill: Kill | None) -> None:
        """In this process, to the end: asks, trains a made-up loss, reports, tells."""
        os.environ[VARIABLE] = crash_at
        events = Journal(self.journal, kill)
        driven = Driven(optuna_storage(self.url), self.spec, events, told=lambda _: list(events))
        while (asked := driven.ask()) is not None:
            behind = int((asked.reported or 0) * (1 - replay))
            if self.spec is POPULATION:
                train_a_member(driven, asked, behind)
            else:
                train(driven, asked, behind)
        driven.finish()

    def fork(self, crash_at: str = "", replay: float = 0.0, kill: Kill | None = None) -> int:
        """The same in a process of its own; the answer is the signal that ended it, 0 when it came to the end.

        Args:
            crash_at: The point where it dies.
            replay: How far behind its last report a continued trial begins, as a part of it.
            kill: Where it dies otherwise.
        """
        child = os.fork()
        if child == 0:
            try:
                self.search(crash_at, replay, kill)
                os._exit(0)
            finally:
                os._exit(70)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status <= 0, f"the search failed with {status}"
        return -status

    def trials(self) -> list[Trial]:
        return history.trials(history.load(optuna_storage(self.url), self.spec.name))

    def check_told(self) -> None:
        """That the baseline, what came with it, and the end of each trial were told once."""
        told = Counter((kind, details.get("number")) for kind, details in Journal(self.journal, None) if kind in KINDS)
        ends = Counter((of_end(trial)[0], trial.number) for trial in self.trials())
        assert told == ends + Counter({("study.baseline", None): 1})


def train(driven: Driven, asked: Asked, behind: int) -> None:
    """To its end, or until it is pruned or fails."""
    start = max(exposure for exposure in exposures_of(asked.params) if exposure <= behind)
    was_to_fail = history.decided_failure(driven.search.frozen()[asked.number])
    if asked.number not in DIVERGED | LOST or was_to_fail:  # a second time it would go well
        driven.run(asked, start)
        return
    for exposure in range(start, EXAMPLES // 2 + 1, EXAMPLES // 2):
        driven.search.report(asked.number, a_report(exposure, loss_of(asked.params, exposure)), CONTRACT)
    failure = Failure.DIVERGED if asked.number in DIVERGED else Failure.WORKER_LOST
    driven.search.fail(asked.number, failure, "as it had to come")


def train_a_member(driven: Driven, asked: Asked, behind: int) -> None:
    """To where it must wait, or to its end; its loss is what all parts of its training have brought."""
    config, weight = FinetuneConfig.model_validate(driven.trial(asked.number).config), 0.0
    if asked.inherits is not None:
        behind = max(behind, asked.inherits[1])
    for exposure in range(0, 4 * EXAMPLES + 1, EXAMPLES // 2):
        if exposure:
            weight += gain(config.at(exposure - 1).hyperparameters.model_dump())
        if exposure < behind:
            continue
        if driven.search.report(asked.number, a_report(exposure, loss(weight)), CONTRACT) is Decision.PAUSE:
            driven.search.pause(asked.number)
            return
    best = min(driven.trial(asked.number).reports[1:], key=lambda report: report.validation_loss)
    driven.search.complete(asked.number, best, CONTRACT, f"artifacts/{asked.number}")


def searched(template: str, folder: str, spec: StudySpec, *names: str) -> list[Searched]:
    """New studies, each in a database of its own."""
    studies = []
    for name in names:
        shutil.copy(template, f"{folder}/{name}.db")
        studies.append(Searched(Path(folder, f"{name}.db"), spec))
    return studies


def population(template: str, folder: str) -> None:
    """A population is killed at each exchange, before and after every heir, and at random places."""
    undisturbed, disturbed = searched(template, folder, POPULATION, "population", "killed")
    assert undisturbed.fork() == 0
    for point in (*EXCHANGING, "after_report", *EXCHANGING, "after_ask", "before_start", "before_tell"):
        assert disturbed.fork(point, replay=DICE.random()) == signal.SIGKILL, point
        if point not in EXCHANGING:
            assert disturbed.fork(replay=DICE.random(), kill=Kill(1, DICE.randrange(CALLS))) == signal.SIGKILL
    assert disturbed.fork() == 0
    assert list(map(_outcome, disturbed.trials())) == list(map(_outcome, undisturbed.trials()))
    assert sum(trial.parent is not None for trial in undisturbed.trials()) == 3
    disturbed.check_told()


def main(template: str, folder: str) -> None:
    """The whole scenario: in an interpreter without threads, because it forks."""
    population(template, folder)
    undisturbed, at_points, at_random = searched(template, folder, SPEC, "undisturbed", "points", "random")
    assert undisturbed.fork() == 0
    for point in POINTS:
        assert at_points.fork(point, replay=DICE.random()) == signal.SIGKILL, point
        # A trial that is killed again and again before it gets further is tried anew, under another number.
        assert at_points.fork("after_report:2") == signal.SIGKILL
    for _ in range(RANDOM_KILLS):
        at_random.fork(replay=DICE.random(), kill=Kill(DICE.randint(1, 4), DICE.randrange(CALLS)))
    for study in (at_points, at_random):
        assert study.fork() == 0
        assert sum(trial.attempts for trial in study.trials()) > TRIALS
        assert list(map(_outcome, study.trials())) == list(map(_outcome, undisturbed.trials()))
        study.check_told()
    trials = undisturbed.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert {trial.number for trial in trials if trial.state == TrialState.FAIL} == DIVERGED | LOST
    assert {trial.retry_of for trial in trials} == {None, *LOST}


def _outcome(trial: Trial) -> Trial:
    """All but when it was, and in how many attempts."""
    return dataclasses.replace(trial, started_at=None, finished_at=None, attempts=1, lost=0, orphaned=0, reached=0)


def test_a_search_that_is_killed_at_every_point_and_at_random_places_ends_as_an_undisturbed_one(
    tmp_path: Path, sqlite_template: Path
) -> None:
    scenario = [sys.executable, "-m", "tests.contract.test_crashes", str(sqlite_template), str(tmp_path)]
    done = subprocess.run(
        scenario, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main(*sys.argv[1:])
