"""What is written of a study's trials, and what was written before: every write is behind the fence of the lease."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from hpsearch.crash import crash_point
from hpsearch.results import Failure, Report, Trial, TrialState
from hpsearch.results.sealed import SealedScore
from hpsearch.results.trial import first_of, gone_on
from hpsearch.search import history
from hpsearch.search.losses import RETRIES, Loss, Losses
from hpsearch.search.taught import RETRY_OF, TEACHES
from hpsearch.search.whole import Event, Whole
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec

NOTED_EVERY = 10
"""So many trials from one note on the dashboard to the next; the last is written when the search ends."""

REPEATABLE = {"cpu": 1e-3, "gpu": 3e-2}
"""What a trial repeats, after an interruption or alone, may differ by so much, relatively.

On a CPU nothing does but by the order of sums, in float32. On a GPU they are sums of bfloat16 and depend on the trial's
company (eight steps of tiny models, emulated: 1e-3), and what differs grows with every step of its training.
"""


class Record(Whole):
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
        self._live[number].set_user_attr("device", device)

    def _repeatable(self, number: int) -> float:
        """`REPEATABLE` on the trial's device, whose name says its kind last: `host/node/gpu0`."""
        device = str(self._live[number].user_attrs.get("device", ""))
        return REPEATABLE["gpu" if device.rpartition("/")[2].startswith("gpu") else "cpu"]

    def replayed(self, number: int, steps: int, company: int, deviation: float) -> None:
        """The trial's first steps were made again alone: how far apart they are is kept, and said when it is much."""
        self._fence()
        replay = {"steps": steps, "company": company, "deviation": deviation}
        self._live[number].set_user_attr("replay", replay)
        self._event("trial.replayed", {"number": number, **replay})
        if deviation > self._repeatable(number):
            text = f"trial {number} trains differently in company: its first losses alone are {deviation:.1e} apart"
            self._event("study.warning", {"text": text})

    def complete(
        self, number: int, best: Report, contract: str, adapter: str, sealed: SealedScore | None = None
    ) -> None:
        """The trial ran to its end: its value is its best report's, whose weights lie in `adapter`.

        What they score on the test split is kept beside it.
        """
        self._fence()
        trial = self._live[number]
        for name, attribute in (
            ("best_epoch", best.epoch),
            ("adapter", adapter),
            ("evaluation_contract", contract),
        ):
            trial.set_user_attr(name, attribute)
        if sealed is not None:
            trial.set_user_attr(history.SEALED, sealed.as_json())
            if sealed.unread is not None:
                self._event("study.warning", {"text": f"data.test could not be read: {sealed.unread}"})
        spent = self._keep_cost(number)
        value = float(getattr(best, self._metric))
        self._tell(trial, value)
        del self._live[number]
        reused = {"reused_from": trial.user_attrs["reused_from"]} if "reused_from" in trial.user_attrs else {}
        self._event("trial.completed", {"number": number, "value": value, **outline(best), **(reused or spent)})
        if number % NOTED_EVERY == NOTED_EVERY - 1:
            self.note()

    def condemned(self, number: int, exposure: int, why: str, *, by: str | None = None) -> None:
        """Keep that the trial is pruned next: after a crash, a halving pruner asked again would let it pass.

        Args:
            number: Of a running trial.
            exposure: Of its last report.
            why: In words.
            by: Who wants so; None where a rule or the budget does.
        """
        self._fence()
        trial = self._trial(number)
        trial.set_user_attr("pruned_at", exposure)
        if by is None:
            trial.set_user_attr(history.PRUNED_BECAUSE, why)
        else:
            self.stopped(number, by)

    def stopped(self, number: int, by: str) -> None:
        """Keep who asked to stop the trial, which is pruned next."""
        self._fence()
        trial = self._trial(number)
        trial.set_user_attr(history.STOPPED_BY, by)
        trial.set_user_attr(history.PRUNED_BECAUSE, f"stopped by {by}")

    def replaced(self, number: int, text: str) -> None:
        """The trial ends, because another one took its place in the population."""
        self._fence()
        self._trial(number).set_user_attr(history.PRUNED_BECAUSE, text)
        self.prune(number)

    def prune(self, number: int) -> None:
        """The trial was stopped after its last report."""
        self._fence()
        trial = self._trial(number)
        self._keep_cost(number)
        if self.frozen()[number].state == OptunaState.RUNNING:
            self._tell(trial, state=OptunaState.PRUNED)
        else:  # it waits to be gone on with: Optuna's `tell` is for trials that run
            self._storage.set_trial_state_values(trial._trial_id, OptunaState.PRUNED)
        self._live.pop(number, None)
        ended = history.as_trial(self.frozen()[number])
        why = {"text": ended.pruned_because} if ended.pruned_because else {}
        self._event("trial.pruned", {"number": number, "exposure": ended.exposure, **why})

    def _keep_cost(self, number: int) -> dict[str, float]:
        """What was spent under this number."""
        ended = history.as_trial(self.frozen()[number])
        spent = {"device_seconds": ended.device_seconds, "tokens": ended.tokens}
        for name, figure in spent.items():
            self._trial(number).set_user_attr(name, figure)
        return spent

    def interrupt(self, number: int, text: str, loss: Loss = Loss.WORKER) -> None:
        """Nobody trains the trial any more, and it has not ended: it waits to be handed out again, under its number.

        Args:
            number: Of a running trial.
            text: Why.
            loss: A trial that is lost again and again without getting further is closed.
        """
        self._fence()
        ended = history.as_trial(self.frozen()[number])
        if ended.pruned_at is not None:  # decided, and not written any more
            self.prune(number)
            return
        trial, losses = self._trial(number), Losses.of(ended).with_one(loss)
        if losses.lost >= RETRIES and loss is not Loss.NONE and ended.params:
            count = losses.lost + losses.orphaned
            self.fail(number, Failure.WORKER_LOST, f"{text}, {count} times without getting further")
            return
        if loss is not Loss.NONE:
            for name, value in losses.as_attributes().items():
                trial.set_user_attr(name, value)
        self._storage.set_trial_state_values(trial._trial_id, OptunaState.WAITING)
        self._live.pop(number, None)
        if loss is Loss.DEVICE:
            text = f"{text[:1500]}: it goes on alone, until it gets further, because that may be its fault"
        self._event("trial.interrupted", {"number": number, "text": text[:2000], "exposure": ended.exposure})

    def _trial(self, number: int) -> optuna.Trial:
        return self._live.get(number) or optuna.Trial(self._study, self.frozen()[number]._trial_id)

    def fail(self, number: int, failure: Failure, text: str) -> None:
        """The trial has no value.

        One that can't go on because its worker was lost is tried again, finitely often, and so is one whose checkpoint
        is of another version of hpsearch.
        """
        self._fence()
        trial, ended = self._trial(number), history.as_trial(self.frozen()[number])
        trial.set_user_attr("failure", str(failure))
        trial.set_user_attr("failure_text", text[:2000])
        if failure in TEACHES:
            # As a list, the older form: Optuna reads both, its dashboard only this one.
            self._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        losses, is_lost = Losses.of(ended), failure == Failure.WORKER_LOST
        if ended.params and (failure == Failure.OUTDATED_CHECKPOINT or (is_lost and losses.lost < RETRIES)):
            # First the retry, then the end of this attempt: dying in between must not lose the params.
            inherited = dataclasses.replace(losses, lost=losses.lost + is_lost).as_attributes()
            origin = {"origin": "retry", RETRY_OF: number, history.SPARED: ended.is_spared, **inherited}
            if ended.parent is not None:
                origin |= history.heritage(ended)
            origin |= {name: trial.user_attrs[name] for name in history.CARRIED if name in trial.user_attrs}
            self.enqueue(ended.params, origin)
        self._tell(trial, state=OptunaState.FAIL)
        self._live.pop(number, None)
        self._event("trial.failed", {"number": number, "failure": str(failure), "text": text[:2000]})

    def _tell(self, trial: optuna.Trial, value: float | None = None, state: OptunaState | None = None) -> None:
        crash_point("before_tell")
        self._study.tell(trial, value, state)
        crash_point("after_tell")

    def is_running(self, number: int) -> bool:
        """Whether the trial still waits for its end."""
        return number in self._live

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

    def close(self, failure: Failure, text: str) -> None:
        """End every trial that is still running: nothing stays RUNNING that isn't."""
        for number in list(self._live):
            self.fail(number, failure, text)

    def release(self, text: str) -> None:
        """Let go of every trial that is still running, in order: whoever drives the study next goes on with them."""
        for number in list(self._live):
            self.interrupt(number, text, Loss.NONE)

    def close_waiting(self, text: str) -> None:
        """The search is over for good: what was lined up will not be tried."""
        for frozen in self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,)):
            self.withdraw(frozen, Failure.CANCELLED, text)

    def withdraw(self, frozen: FrozenTrial, failure: Failure, text: str) -> None:
        """A trial that waits will not be tried."""
        self._fence()
        self._storage.set_trial_user_attr(frozen._trial_id, "failure", str(failure))
        self._storage.set_trial_user_attr(frozen._trial_id, "failure_text", text[:2000])
        self._storage.set_trial_state_values(frozen._trial_id, OptunaState.FAIL)
        self._event("trial.failed", {"number": frozen.number, "failure": str(failure), "text": text[:2000]})


def outline(report: Report) -> dict[str, Any]:
    """What an event says of a report."""
    return {"exposure": report.exposure, "epoch": report.epoch, "training_loss": report.training_loss}
