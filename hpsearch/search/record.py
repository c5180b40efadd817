"""How a study's trials end: every write is behind the fence of the lease."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from hpsearch.crash import crash_point
from hpsearch.results import Failure, Report, Trial
from hpsearch.results.attributes import (
    CARRIED,
    DEVICE_SECONDS,
    FAILURE,
    FORGIVEN,
    PRUNED_AT,
    PRUNED_BECAUSE,
    RETRY_OF,
    SEALED,
    SPARED,
    STOPPED_BY,
    TOKENS,
)
from hpsearch.results.budget import has_learnt
from hpsearch.results.sealed import SealedScore
from hpsearch.search import history
from hpsearch.search.losses import RETRIES, Loss, Losses
from hpsearch.search.taught import TEACHES
from hpsearch.search.told import Told, of_end, untold
from hpsearch.search.trials import Trials

NOTED_EVERY = 10
"""So many trials from one note on the dashboard to the next; the last is written when the search ends."""


class Record(Trials):
    """How the trials of one study end, or wait to be gone on with: in Optuna's tables, and as it is told."""

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
            trial.set_user_attr(SEALED, sealed.as_json())
            if sealed.unread is not None:
                self._event("study.warning", {"text": f"data.test could not be read: {sealed.unread}"})
        self._keep_cost(number)
        self._tell(trial, float(getattr(best, self._metric)))
        del self._live[number]
        self._tell_end(number)
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
        trial.set_user_attr(PRUNED_AT, exposure)
        if by is None:
            trial.set_user_attr(PRUNED_BECAUSE, why)
        else:
            self.stopped(number, by)

    def stopped(self, number: int, by: str) -> None:
        """Keep who asked to stop the trial, which is pruned next."""
        self._fence()
        trial = self._trial(number)
        trial.set_user_attr(STOPPED_BY, by)
        trial.set_user_attr(PRUNED_BECAUSE, f"stopped by {by}")

    def replaced(self, number: int, text: str) -> None:
        """The trial ends, because another one took its place in the population."""
        self._fence()
        self._trial(number).set_user_attr(PRUNED_BECAUSE, text)
        self.prune(number)

    def prune(self, number: int) -> None:
        """The trial was stopped after its last report."""
        self._fence()
        trial = self._trial(number)
        self._keep_cost(number)
        self._end(trial, OptunaState.PRUNED)
        self._live.pop(number, None)
        self._tell_end(number)

    def _keep_cost(self, number: int) -> None:
        """What was spent under this number."""
        ended = history.as_trial(self.frozen()[number])
        for name, figure in ((DEVICE_SECONDS, ended.device_seconds), (TOKENS, ended.tokens)):
            self._trial(number).set_user_attr(name, figure)

    def interrupt(self, number: int, text: str, loss: Loss = Loss.WORKER) -> None:
        """Nobody trains the trial any more, and it has not ended: it waits to be handed out again, under its number.

        Args:
            number: Of a running trial.
            text: Why.
            loss: A trial that is lost again and again without getting further is closed.
        """
        self._fence()
        frozen = self.frozen()[number]
        ended, decided = history.as_trial(frozen), history.decided_failure(frozen)
        if decided is not None:  # and not written any more
            self.fail(number, *decided)
            return
        if ended.pruned_at is not None:  # the same
            self.prune(number)
            return
        trial, losses = self._trial(number), Losses.of(ended).with_one(loss)
        was_drawn = ended.config is not None  # where nothing varies, it has no params even then
        if losses.lost >= RETRIES and loss is not Loss.NONE and was_drawn:
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

    def pause(self, number: int) -> None:
        """The trial was stopped where it has to wait for the others of its population."""
        self.interrupt(number, "it waits for the others of its population", Loss.NONE)

    def take_over(self, told: Told | None) -> None:
        """What the process before this one had not told is told, and what it had decided is done.

        Whom it left running waits to be handed out again.

        Args:
            told: What the study has told; without, nothing is told again.
        """
        if told is not None:
            for each in untold(self._study, told):
                self._event(*each)
        for frozen in self.frozen():
            is_decided = FAILURE in frozen.user_attrs or PRUNED_AT in frozen.user_attrs
            if frozen.state == OptunaState.RUNNING or (frozen.state == OptunaState.WAITING and is_decided):
                self.interrupt(frozen.number, "the process that drove the study ended", Loss.OUTSIDE)

    def fail(self, number: int, failure: Failure, text: str) -> None:
        """The trial has no value.

        One that can't go on because its worker was lost is tried again, finitely often, and so is one whose checkpoint
        is of another version of hpsearch.
        """
        self._fence()
        trial, ended = self._trial(number), history.as_trial(self.frozen()[number])
        history.decide_failure(self._storage, trial._trial_id, failure, text)
        if failure in TEACHES:
            # As a list, the older form: Optuna reads both, its dashboard only this one.
            self._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        losses, is_lost = Losses.of(ended), failure == Failure.WORKER_LOST
        again = failure == Failure.OUTDATED_CHECKPOINT or (is_lost and losses.lost < RETRIES)
        if ended.config is not None and again and not self._is_retried(number):
            # First the retry, then the end of this attempt: dying in between must not lose the params.
            self.retry(ended, dataclasses.replace(losses, lost=losses.lost + is_lost))
            crash_point("after_retry")
        self._end(trial, OptunaState.FAIL)
        self._live.pop(number, None)
        self._tell_end(number)

    def forgive(self, numbers: Collection[int]) -> None:
        """Keep which trials say nothing any more, besides those that were kept before."""
        if not self.forgiven.issuperset(numbers):
            self._fence()
            self._study.set_user_attr(FORGIVEN, sorted(self.forgiven.union(numbers)))
            self.forgiven = self.forgiven.union(numbers)

    def retry(self, trial: Trial, losses: Losses | None = None) -> None:
        """Line up another trial of the same params, which stands for this one from now on.

        Args:
            trial: The one that it retries.
            losses: What is held against it.
        """
        held = {} if losses is None else losses.as_attributes()
        origin = {"origin": "retry", RETRY_OF: trial.number, SPARED: trial.is_spared, **held}
        if trial.parent is not None:
            origin |= history.heritage(trial)
        known = self.frozen()[trial.number].user_attrs
        origin |= {name: known[name] for name in CARRIED if name in known}
        self.enqueue(trial.params, origin)

    def _is_retried(self, number: int) -> bool:
        """By another trial, which a process that died before this one's end has lined up."""
        return any(frozen.user_attrs.get(RETRY_OF) == number for frozen in self.frozen())

    def _end(self, trial: optuna.Trial, state: OptunaState) -> None:
        """Without a value."""
        if self.frozen()[trial.number].state == OptunaState.RUNNING:
            self._tell(trial, state=state)
        else:  # it waits: Optuna's `tell` is for trials that run
            self._storage.set_trial_state_values(trial._trial_id, state)

    def _tell_end(self, number: int) -> None:
        self._event(*of_end(history.as_trial(self.frozen()[number])))

    def _tell(self, trial: optuna.Trial, value: float | None = None, state: OptunaState | None = None) -> None:
        crash_point("before_tell")
        self._study.tell(trial, value, state)
        crash_point("after_tell")

    def close(self, failure: Failure, text: str) -> None:
        """End every trial that is still running: nothing stays RUNNING that isn't."""
        for number in list(self._live):
            self.fail(number, failure, text)

    def release(self, text: str) -> None:
        """Let go of every trial that is still running, in order: whoever drives the study next goes on with them."""
        for number in list(self._live):
            self.interrupt(number, text, Loss.NONE)

    def close_waiting(self, text: str) -> None:
        """Nobody wants any of it any more: what was lined up or interrupted will not be tried."""
        for frozen in self._waiting():
            self.withdraw(frozen, Failure.CANCELLED, text)

    def end_waiting(self, why: str) -> None:
        """The search is over: who was interrupted ends with what it has learnt, and who was not begun is not tried.

        Args:
            why: It is over.
        """
        for frozen in self._waiting():
            trial = history.as_trial(frozen)
            if has_learnt(trial):
                self.condemned(trial.number, trial.exposure, why)
                self.prune(trial.number)
            else:
                self.withdraw(frozen, Failure.CANCELLED, f"the search is over: {why}")

    def _waiting(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,))

    def withdraw(self, frozen: FrozenTrial, failure: Failure, text: str, *, by: str | None = None) -> None:
        """A trial that waits will not be tried; `by` is who wants so, if a person does."""
        self._fence()
        if by is not None:
            self._storage.set_trial_user_attr(frozen._trial_id, STOPPED_BY, by)
        history.decide_failure(self._storage, frozen._trial_id, failure, text)
        self._storage.set_trial_state_values(frozen._trial_id, OptunaState.FAIL)
        self._tell_end(frozen.number)
