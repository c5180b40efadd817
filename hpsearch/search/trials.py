"""A study's trials as Optuna keeps them: read, lined up, taken. Every write is behind the fence of the lease."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from hpsearch.results import Report, Trial, TrialState
from hpsearch.results.attributes import DEVICE
from hpsearch.results.trial import first_of, gone_on
from hpsearch.search import history
from hpsearch.search.whole import Event, Whole
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec

REPEATABLE = {"cpu": 1e-3, "gpu": 3e-2}
"""What a trial repeats, after an interruption or alone, may differ by so much, relatively.

On a CPU nothing does but by the order of sums, in float32. On a GPU they are sums of bfloat16 and depend on the trial's
company (eight steps of tiny models, emulated: 1e-3), and what differs grows with every step of its training.
"""


class Trials(Whole):
    """The trials of one study in Optuna's tables.

    Args:
        spec: The study.
        study: The same as Optuna keeps it.
        storage: Where Optuna keeps it.
        fence: Raises LeaseLost when this process must not write any more; called before every write.
        event: Told what happened, in the order it happened.
    """

    def __init__(
        self,
        spec: StudySpec,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        fence: Callable[[], None],
        event: Event,
    ) -> None:
        super().__init__(spec, study, fence, event)
        self._storage = storage
        self._metric = spec.objective.metric
        self._live: dict[int, optuna.Trial] = {}
        self._ended: dict[int, Trial] = {}
        self.forgiven = history.forgiven(study)
        """The numbers of trials that say nothing of their params; see `results.budget.forgiven`."""

    def trials(self) -> list[Trial]:
        """All trials so far. Every report looks at them, so those that have ended, and change no more, are kept."""
        found = []
        for frozen in self.frozen():
            trial = self._ended.get(frozen.number) or history.as_trial(frozen)
            if trial.state.is_finished:
                self._ended[trial.number] = trial
            found.append(trial)
        return found

    def frozen(self) -> list[FrozenTrial]:
        """The same as Optuna has them, by number."""
        return self._study.get_trials(deepcopy=False)

    def enqueue(self, params: Params, attributes: dict[str, Any]) -> None:
        """Line up a trial behind those that wait; what the params leave out is drawn."""
        self._fence()
        self._study.enqueue_trial(params, user_attrs=attributes)

    def add(self) -> optuna.Trial:
        """A new trial, running from now on; Optuna's `ask` would hand out one that waits."""
        return optuna.Trial(self._study, self._storage.create_new_trial(self._study._study_id))

    def take(self, number: int) -> optuna.Trial:
        """A trial that waits, running from now on."""
        waiting = self.frozen()[number]
        self._storage.set_trial_state_values(waiting._trial_id, OptunaState.RUNNING)
        return optuna.Trial(self._study, waiting._trial_id)

    def trained_on(self, number: int, device: str) -> None:
        """The device that trains the trial from now on."""
        self._fence()
        self._live[number].set_user_attr(DEVICE, device)

    def _repeatable(self, number: int) -> float:
        """`REPEATABLE` on the trial's device, whose name says its kind last: `host/node/gpu0`."""
        device = str(self._live[number].user_attrs.get(DEVICE, ""))
        return REPEATABLE["gpu" if device.rpartition("/")[2].startswith("gpu") else "cpu"]

    def _repeats(self, number: int, curve: Sequence[dict[str, Any]], report: Report) -> bool:
        """Whether a report is the one that the curve has already at its exposure."""
        known = next((each[self._metric] for each in curve if each["exposure"] == report.exposure), math.nan)
        return math.isclose(known, getattr(report, self._metric), rel_tol=self._repeatable(number))

    def replayed(self, number: int, steps: int, company: int, deviation: float) -> None:
        """The trial's first steps were made again alone: how far apart they are is kept, and said when it is much."""
        self._fence()
        replay = {"steps": steps, "company": company, "deviation": deviation}
        self._live[number].set_user_attr("replay", replay)
        self._event("trial.replayed", {"number": number, **replay})
        if deviation > self._repeatable(number):
            text = f"trial {number} trains differently in company: its first losses alone are {deviation:.1e} apart"
            self._event("study.warning", {"text": text})

    def _trial(self, number: int) -> optuna.Trial:
        return self._live.get(number) or optuna.Trial(self._study, self.frozen()[number]._trial_id)

    def is_running(self, number: int) -> bool:
        """Whether the trial still waits for its end."""
        return number in self._live

    def unreported(self) -> list[int]:
        """The running trials that have nothing to show yet, not even the baseline."""
        return [number for number, trial in self._live.items() if not trial.user_attrs.get("curve")]

    def idle_snapshots(self, parked: int) -> frozenset[int]:
        """The numbers whose snapshots nobody will go on from: of trials that ended, but for the best pruned ones.

        Args:
            parked: So many of those are kept, because a person may have them continued.
        """
        trials, sign = self.trials(), 1 if self.spec.objective.direction == "minimize" else -1
        later = gone_on(trials)
        pruned = [t for t in trials if t.state == TrialState.PRUNED and t.reports and t.number not in later]
        pruned.sort(key=lambda trial: min(sign * float(getattr(each, self._metric)) for each in trial.reports))
        needed = [*(trial for trial in trials if not trial.state.is_finished), *pruned[:parked]]
        return frozenset(range(len(trials))) - {first_of(trial, trials).number for trial in needed}
