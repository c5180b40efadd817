"""The seam between Tune and Search: a searcher whose `suggest` is `ask`, a scheduler whose result is `report`.

Stock `OptunaSearch` with a Tune scheduler stores early-stopped trials as COMPLETE with a half-trained
value, leaves a trial with a NaN running for ever and loses each trial's last report. Here every message of
a trial, its last one too, is an ordinary result that the scheduler hands to Search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from hpsearch.raytune.messages import KEY, Failed, Finished, Reported, decode
from hpsearch.results import Failure
from hpsearch.search import Asked, Decision, Search
from hpsearch.spec.finetune import FinetuneConfig

log = logging.getLogger(__name__)

Resolve = Callable[[Asked], FinetuneConfig]


class Bridge:
    """What searcher, scheduler and stopper share: the Search, and which Tune trial is which of its trials."""

    def __init__(
        self,
        search: Search,
        resolve: Resolve,
        artifacts: Path,
        should_stop: Callable[[], bool],
        at_once: Callable[[], int],
        *,
        cache: Path | None = None,
    ) -> None:
        self.search = search
        self._resolve = resolve
        self._artifacts, self._cache = artifacts, cache
        self._should_stop, self._at_once = should_stop, at_once
        self._numbers: dict[str, int] = {}
        self._pruned: set[int] = set()
        self.error: Exception | None = None
        """The first thing that went wrong while Tune called: kept, because Tune would pass it on as text only."""

    def __reduce__(self) -> Any:
        # Tune pickles its parts into its experiment folder. Ours hold a database URL, and are never restored.
        return (object, ())

    def stops(self) -> bool:
        """Whether every trial must end now."""
        return self.error is not None or self._should_stop()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config for Tune; None to be asked again; FINISHED when nothing is left to do."""
        if self.stops():
            return str(Searcher.FINISHED)
        running = sum(map(self.search.is_running, self._numbers.values()))
        if running >= self._at_once():
            return None
        try:
            asked = self.search.ask()
            if asked is None:
                return None if running else str(Searcher.FINISHED)
            config = self._resolve(asked)
            self.search.start(asked.number, config)
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error
            return str(Searcher.FINISHED)
        self._numbers[trial_id] = asked.number
        return {
            "study": self.search.spec.name,
            "number": asked.number,
            "config": config.model_dump_json(),
            "metric": self.search.spec.objective.metric,
            "capacity": self.search.spec.parallelism.trials_per_device,
            "adapter": str(self._artifacts / str(asked.number)),
            "cache": None if self._cache is None else str(self._cache),
        }

    def receive(self, trial_id: str, text: str) -> bool:
        """Hand a trial's message to Search; the answer is whether the trial goes on."""
        number = self._numbers[trial_id]
        message = decode(text)
        try:
            if isinstance(message, Reported):
                decision = self.search.report(number, message.report, message.contract, message.warnings)
                if decision is Decision.GO_ON:
                    return True
                self._pruned.add(number)
            elif isinstance(message, Finished):
                self.search.complete(number, message.best, message.contract, message.adapter)
            elif isinstance(message, Failed):
                self.search.fail(number, message.failure, message.text)
            elif not self.stops():
                self.search.fail(number, Failure.WORKER_LOST, "the device dropped the trial")
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error
        return False

    def ended(self, trial_id: str, lost: bool) -> None:
        """Tune has stopped a trial; `lost` when its process died."""
        number = self._numbers.pop(trial_id, None)
        if number is None or not self.search.is_running(number) or self.error:
            return
        try:
            if number in self._pruned:
                self.search.prune(number)
            elif lost:
                self.search.fail(number, Failure.WORKER_LOST, "the process of the trial died")
        except Exception as error:  # driving ends, and whoever drives decides
            self.error = self.error or error


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


class ReportScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune tells it every result."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge

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
