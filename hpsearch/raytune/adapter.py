"""Tune's three faces: a searcher whose `suggest` is `ask`, a scheduler whose result is `report`, and a stopper.

Stock `OptunaSearch` with a Tune scheduler stores early-stopped trials as COMPLETE with a half-trained
value, leaves a trial with a NaN running for ever and loses each trial's last report. Here every message of
a trial, its last one too, is an ordinary result. All three pass on to one Bridge what Tune says.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.tune import Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from hpsearch.raytune.bridge import Bridge
from hpsearch.raytune.messages import KEY


class AskSearcher(Searcher):  # type: ignore[misc]
    """Tune asks it for trials."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See Bridge.suggest."""
        return self._bridge.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See Bridge.ended; the result was received when it came."""
        del result
        self._bridge.ended(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in SQL."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all state is in SQL."""


def take_errors_as_losses(actor_manager: Any) -> None:
    """Let Tune lose the one trial about whose process Ray says something that Tune does not know.

    Such as that it was killed because its node has no memory left. Tune would end the whole run.
    """
    if "_actor_task_failed" in vars(actor_manager):
        return
    tunes_own = actor_manager._actor_task_failed

    def failed(tracked_actor_task: Any, exception: Exception) -> None:
        known = isinstance(exception, RayActorError | RayTaskError)
        lost = exception if known else RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        tunes_own(tracked_actor_task=tracked_actor_task, exception=lost)

    actor_manager._actor_task_failed = failed


class ReportScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune tells it every result."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune's own choice. The actor of a trial that has ended goes when no other trial takes it over at once.

        It holds a share of a device, which is another study's then. Tune would keep one for later.
        """
        controller = tune_controller._tune_controller  # there is no public way
        take_errors_as_losses(controller._actor_manager)
        if not any(trial.status == Trial.PENDING for trial in controller.get_live_trials()):
            controller._cleanup_cached_actors(force_all=True)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Go on, or stop the trial."""
        del tune_controller
        go_on = self._bridge.receive(trial.trial_id, result[KEY])
        return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)


class StudyStopper(Stopper):  # type: ignore[misc]
    """Ends every trial when the study is cancelled or its lease is lost."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial alone: that is the scheduler's business."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """See Bridge.stops."""
        return self._bridge.stops()
