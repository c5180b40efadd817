"""Which trial next: ask, report, complete, prune, fail. Optuna decides; nothing here knows Ray."""

from __future__ import annotations

import enum
import functools
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from pydantic import ValidationError

from hpsearch.crash import crash_point
from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.results import Failure, Report, Trial, TrialState
from hpsearch.results.budget import hopeless, limit_reached, spent
from hpsearch.results.curve import has_turned
from hpsearch.search import history, note
from hpsearch.search.draw import Draw, Points, suggest
from hpsearch.search.memory import Lineage, Memory, lessons
from hpsearch.search.pruners import pruner
from hpsearch.search.taught import TEACHES
from hpsearch.spec.auto import with_search_resolved
from hpsearch.spec.defaults import default_hyperparameters
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.points import Key, key
from hpsearch.spec.space import IntChoices, IntRange, Params
from hpsearch.spec.study import StudySpec

log = logging.getLogger(__name__)

NOTED_EVERY = 10
"""So many trials from one note on the dashboard to the next; the last is written when the search ends."""

RETRIES = 3
"""A trial that loses its worker is handed out again so often without getting further; the last time from its start,
under a new number."""

REPEATABLE = 1e-3
"""What a continued trial repeats may differ by so much, relatively: on a GPU sums depend on a trial's company."""


class Decision(enum.Enum):
    """What happens after a report."""

    GO_ON = "go_on"
    PRUNE = "prune"
    FINISH = "finish"
    """The budget is spent and no trial has come to its end: this one ends here, with its best report."""
    ENDED = "ended"
    """The trial was closed: its curve can't be continued."""
    REUSE = "reuse"
    """An earlier study has trained the very same; `reuse` takes that over."""


@dataclass(frozen=True)
class Asked:
    """A trial to run, or to go on with."""

    number: int
    params: Params
    origin: str
    attempt: int = 1
    """How often it was handed out, this time included."""
    reported: int | None = None
    """The exposure of its last report; None before any."""
    config: FinetuneConfig | None = None
    """What it was trained with before it was interrupted."""


Event = Callable[[str, dict[str, Any]], None]


class Search:
    """One study's search. All it knows lies in SQL, so a new one on the same study goes on where the last stopped.

    Args:
        spec: The study.
        storage: Where Optuna keeps the trials.
        examples: Size of the training set.
        default_params: The `auto` defaults: the first trial.
        lineage: What its trials learn from; without, earlier studies are not remembered.
        elapsed: Seconds since the study started, whenever it is asked.
        resumed_at: When a person had the ended search go on.
        fence: Raises LeaseLost when this process must not write any more; called before every write.
        event: Told what happened, in the order it happened.
        orders: What people want of the study by now: asked before every trial and at every report.
        fulfilled: Told of each of their wishes that is done, or can't be done any more.
    """

    def __init__(
        self,
        spec: StudySpec,
        storage: optuna.storages.BaseStorage,
        *,
        examples: int,
        default_params: Params,
        lineage: Lineage | None = None,
        elapsed: Callable[[], float] = lambda: 0.0,
        resumed_at: float = -math.inf,
        fence: Callable[[], None] = lambda: None,
        event: Event = lambda _kind, _details: None,
        orders: Callable[[], Orders | None] = lambda: None,
        fulfilled: Callable[[Wish], None] = lambda _wish: None,
    ) -> None:
        self.spec = spec
        self._orders, self._fulfilled = orders, fulfilled
        self.heeded: int | None = None
        """The version of the orders that were heeded last."""
        self._stops: dict[int, Wish] = {}
        self._fence, self._event, self._elapsed, self._resumed_at = fence, event, elapsed, resumed_at
        resolved = with_search_resolved(spec)
        self._points = Points(resolved, examples)
        self._metric, self._direction = spec.objective.metric, spec.objective.direction
        self._memory = None
        if lineage is not None:
            self._memory = Memory(storage, spec.name, lineage, self._direction, self._metric)
        self._live: dict[int, optuna.Trial] = {}
        self._ended: dict[int, Trial] = {}
        self._epochs: dict[int, int] = {}
        self._warmup_epochs: dict[int, float] = {}
        self._fence()
        self._storage = storage
        self._study = optuna.create_study(
            study_name=spec.name,
            storage=storage,
            direction=self._direction,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # never asked: each trial is drawn by a `Draw` of its own
            pruner=pruner(
                resolved.pruner,
                examples,
                spec.objective.reports_per_epoch,
                _most_epochs(spec, examples),
                self._direction,
            ),
        )
        self.typical_params = self._points.active(default_params) if default_params else {}
        """What the first trial tries: as good an example of a trial as any."""
        if not self._study.user_attrs.get("spec"):
            self._begin()
        for trial in self.trials():
            if trial.state == TrialState.RUNNING:
                self.interrupt(trial.number, "the process that drove the study ended")

    def _begin(self) -> None:
        """Line up the first trials: the defaults, then the user's own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([self._metric])
        firsts = [("defaults", self.typical_params)] if self.typical_params else []
        firsts += [("first_trials", params) for params in self.spec.first_trials]
        for origin, params in [*firsts, *(("borrowed", params) for params in self._borrow())]:
            self._study.enqueue_trial(params, user_attrs={"origin": origin}, skip_if_exists=True)
        # Written last: a search that dies before this line begins again, and skips what is lined up already.
        self._study.set_user_attr("spec", json.loads(self.spec.model_dump_json()))

    def _borrow(self) -> list[Params]:
        """Learn from earlier studies; the answer is the best of it, to be tried here first."""
        lent = [] if self._memory is None else self._memory.borrow(self._study, self.spec.warm_start, self._points)
        if self.spec.warm_start is None:
            return []
        self._event("study.borrowed", {"trials": len(lent), "studies": sorted({one["study"] for one in lent})})
        return [one["params"] for one in lent[: self.spec.warm_start.first_trials]]

    def trials(self) -> list[Trial]:
        """All trials so far. Every report looks at them, so those that have ended, and change no more, are kept."""
        found = []
        for frozen in self._study.get_trials(deepcopy=False):
            trial = self._ended.get(frozen.number) or history.as_trial(frozen)
            if trial.state.is_finished:
                self._ended[trial.number] = trial
            found.append(trial)
        return found

    def _heed(self) -> None:
        """Do what people asked for since the last time: another budget, trials of their own, the end of a trial."""
        orders = self._orders()
        if orders is not None and orders.version != self.heeded:
            self.spec = orders.spec
            for wish in orders.wishes:
                if wish.kind is WishKind.ADD:
                    self._add(wish)
                elif wish.number is not None:
                    self._stops[wish.number] = wish
            self.heeded = orders.version
        if self._stops:
            self._heed_stops()

    def _heed_stops(self) -> None:
        """A running trial ends at its next report; one that waits is not begun; the rest have ended by themselves."""
        for frozen in self._study.get_trials(deepcopy=False):
            wish = self._stops.get(frozen.number)
            if wish is not None and frozen.state != OptunaState.RUNNING:
                if frozen.state == OptunaState.WAITING and frozen.user_attrs.get("curve"):
                    self.prune(frozen.number)  # it was interrupted: what it has learnt counts
                elif frozen.state == OptunaState.WAITING:
                    self._withdraw(frozen, Failure.CANCELLED, f"stopped by {wish.by}")
                self._fulfilled(wish)
                del self._stops[frozen.number]

    def _add(self, wish: Wish) -> None:
        known = {frozen.user_attrs.get(history.WISH) for frozen in self._study.get_trials(deepcopy=False)}
        if wish.id not in known:  # a process that died before this line's end has added it
            self._fence()
            self._study.enqueue_trial(wish.params or {}, user_attrs={"origin": "hand", history.WISH: wish.id})
        self._fulfilled(wish)

    def _withdraw(self, frozen: FrozenTrial, failure: Failure, text: str) -> None:
        """A trial that waits will not be tried."""
        self._fence()
        self._storage.set_trial_user_attr(frozen._trial_id, "failure", str(failure))
        self._storage.set_trial_user_attr(frozen._trial_id, "failure_text", text[:2000])
        self._storage.set_trial_state_values(frozen._trial_id, OptunaState.FAIL)
        self._event("trial.failed", {"number": frozen.number, "failure": str(failure), "text": text[:2000]})

    def ask(self) -> Asked | None:
        """The next trial, or None when there is no room for one (look again when a running one has ended)."""
        while True:
            self._heed()
            trials = self.trials()
            waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
            tried = _tried(trials)
            if (not waiting and self._points.untried(tried) == []) or self._ends(trials):
                return None
            self._fence()
            past = functools.partial(self._study.get_trials, deepcopy=False)
            self._study.sampler = Draw(self._points, tried, past, lessons(self._study, self._points.distributions))
            trial = self._study.ask()
            # Optuna hands out what waits first, in order.
            given = next((known.params for known in waiting if known.number == trial.number), {})
            params = suggest(trial, self._points, given)
            self._live[trial.number] = trial
            unmet = self._points.unmet(params)
            if unmet is not None:
                self.fail(trial.number, Failure.INFEASIBLE, f"never trained: {params} does not meet '{unmet}'")
                continue
            return self._handed_out(trial, params)

    def _ends(self, trials: Sequence[Trial]) -> str | None:
        """Why no other trial is started, if so."""
        return self._limit(trials) or hopeless(trials, self._resumed_at)

    def _limit(self, trials: Sequence[Trial]) -> str | None:
        spec, resumed_at = self.spec, self._resumed_at
        return limit_reached(spec.budget, trials, self._elapsed(), self._direction, resumed_at=resumed_at)

    def _handed_out(self, trial: optuna.Trial, params: Params) -> Asked:
        attributes = trial.user_attrs
        curve = [Report(**report) for report in attributes.get("curve", [])]
        for report in curve:  # what a crash left between the curve and Optuna's own record of it
            if report.exposure not in self._frozen(trial.number).intermediate_values:
                trial.report(float(getattr(report, self._metric)), step=report.exposure)
        asked = Asked(
            trial.number,
            params,
            attributes.get("origin", "search"),
            attributes.get("attempts", 0) + 1,
            curve[-1].exposure if curve else None,
            _config(attributes.get("config")),
        )
        trial.set_user_attr("attempts", asked.attempt)
        crash_point("after_ask")
        kind = "trial.started" if asked.attempt == 1 else "trial.continued"
        details = {"number": asked.number, "params": asked.params, "origin": asked.origin}
        self._event(kind, details if asked.attempt == 1 else {**details, "attempt": asked.attempt})
        return asked

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def start(self, number: int, config: FinetuneConfig) -> None:
        """Keep the resolved config on the trial, before it trains."""
        self._fence()
        hyperparameters = config.hyperparameters
        self._epochs[number] = hyperparameters.epochs
        self._warmup_epochs[number] = hyperparameters.warmup_fraction * hyperparameters.epochs
        crash_point("before_start")
        self._live[number].set_user_attr("config", json.loads(config.model_dump_json()))
        crash_point("after_start")

    def report(self, number: int, report: Report, contract: str, warnings: Sequence[str] = ()) -> Decision:
        """Keep one report; decide whether the trial goes on. The report's figures are finite.

        Warnings about the data, the same for every trial, come with the baseline; the study's first one is kept.
        """
        self._fence()
        trial = self._live[number]
        value = float(getattr(report, self._metric))
        if not math.isfinite(value):
            raise ValueError(f"trial {number} reported {value}: a diverged trial must fail, not report")
        if report.exposure == 0:
            self._keep_baseline(report, contract, warnings)
            if self._memory is not None and self._memory.recalls(trial, contract):
                return Decision.REUSE
        curve = trial.user_attrs.get("curve", [])
        if curve and report.exposure <= curve[-1]["exposure"]:
            if not self._repeats(curve, report):
                text = f"what was repeated after the interruption differs at exposure {report.exposure}"
                self.fail(number, Failure.WORKER_LOST, text)
                return Decision.ENDED
            if report.exposure < curve[-1]["exposure"]:
                return Decision.GO_ON
            # The last one: whether what was decided on it was done is not known, so it is decided on again.
        else:
            trial.set_user_attr("curve", [*curve, report.as_json()])
            trial.report(value, step=report.exposure)
            crash_point("after_report")
            self._event("trial.reported", {"number": number, "value": value, **_outline(report)})
        self._heed()
        decision = self._decide(number, report)
        if decision is Decision.FINISH:
            trial.set_user_attr("cut_short", True)
        if decision is Decision.PRUNE:  # kept: after a crash, a halving pruner asked again would let the trial pass
            trial.set_user_attr("pruned_at", report.exposure)
        return decision

    def _repeats(self, curve: Sequence[dict[str, Any]], report: Report) -> bool:
        """Whether a report is the one that the curve has already at its exposure."""
        known = next((each[self._metric] for each in curve if each["exposure"] == report.exposure), math.nan)
        return math.isclose(known, getattr(report, self._metric), rel_tol=REPEATABLE)

    def _decide(self, number: int, report: Report) -> Decision:
        trial = self._live[number]
        curve = trial.user_attrs["curve"]
        patience, values = self.spec.objective.patience, [one[self._metric] for one in curve if one["exposure"]]
        if report.epoch >= self._epochs[number] or has_turned(values, self._direction, patience):
            trial.should_prune()  # so that it counts where later trials are compared; it has nothing left to save
            return Decision.GO_ON
        trials = self.trials()
        if report.exposure > 0 and spent(self.spec.budget, trials, self._elapsed()) is not None:
            # Half a training says little of its params. But who has nothing else gets it, and is told what it is.
            has_better = any(trial.state == TrialState.COMPLETE and not trial.cut_short for trial in trials)
            return Decision.PRUNE if has_better else Decision.FINISH
        # Asked in any case: Optuna's halving notes a trial's rungs when it is asked, and must not note them late.
        poor = trial.should_prune()
        if number in self._stops:
            return Decision.PRUNE
        return Decision.PRUNE if poor and report.epoch > self._warmup_epochs[number] else Decision.GO_ON

    def reuse(self, number: int, adapter: Path) -> None:
        """Take over what an earlier study has trained: its curve, its value, and its weights into `adapter`."""
        self._fence()
        assert self._memory is not None  # `report` has said so
        best, contract = self._memory.take_over(self._live[number], adapter)
        self.complete(number, best, contract, str(adapter))

    def _keep_baseline(self, report: Report, contract: str, warnings: Sequence[str]) -> None:
        if history.baseline(self._study) is None:
            figures = {name: value for name, value in report.as_json().items() if name.startswith("validation_")}
            self._study.set_user_attr(history.BASELINE, {**figures, "evaluation_contract": contract})
            self._event("study.baseline", figures)
            for text in warnings:
                self._event("study.warning", {"text": text})

    def placed_before(self, circumstances: dict[str, Any]) -> int | None:
        """How many trials shared each device when it was last decided, if the circumstances were the same."""
        known = self._study.user_attrs.get("parallelism", {})
        found: int | None = known.get("trials_per_device")
        return found if known.get("circumstances") == circumstances else None

    def placed(self, per_device: int, devices: int, reason: str, circumstances: dict[str, Any] | None = None) -> None:
        """So many trials share each device; under the same circumstances, that need not be found out again."""
        self._fence()
        decided = {"trials_per_device": per_device, "reason": reason, "circumstances": circumstances}
        self._study.set_user_attr("parallelism", decided)
        text = f"{per_device} at once on each of {devices} devices: {reason}"
        self._event("study.parallelism", {"trials_per_device": per_device, "devices": devices, "reason": text})

    def replayed(self, number: int, steps: int, company: int, deviation: float) -> None:
        """The trial's first steps were made again alone: how far apart they are is kept, and said when it is much."""
        self._fence()
        replay = {"steps": steps, "company": company, "deviation": deviation}
        self._live[number].set_user_attr("replay", replay)
        self._event("trial.replayed", {"number": number, **replay})
        if deviation > REPEATABLE:
            text = f"trial {number} trains differently in company: its first losses alone are {deviation:.1e} apart"
            self._event("study.warning", {"text": text})

    def complete(self, number: int, best: Report, contract: str, adapter: str) -> None:
        """The trial ran to its end: its value is its best report's, whose weights lie in `adapter`."""
        self._fence()
        trial = self._live[number]
        for name, attribute in (
            ("best_epoch", best.epoch),
            ("adapter", adapter),
            ("evaluation_contract", contract),
            ("device_seconds", _last(trial).get("seconds", 0.0)),
            ("tokens", _last(trial).get("tokens", 0)),
        ):
            trial.set_user_attr(name, attribute)
        value = float(getattr(best, self._metric))
        self._tell(trial, value)
        del self._live[number]
        reused = {"reused_from": trial.user_attrs["reused_from"]} if "reused_from" in trial.user_attrs else {}
        self._event("trial.completed", {"number": number, "value": value, **_outline(best), **reused})
        if number % NOTED_EVERY == NOTED_EVERY - 1:
            self.note()

    def prune(self, number: int) -> None:
        """The trial was stopped after its last report."""
        self._fence()
        trial = self._trial(number)
        trial.set_user_attr("device_seconds", _last(trial).get("seconds", 0.0))
        trial.set_user_attr("tokens", _last(trial).get("tokens", 0))
        if number in self._stops:
            trial.set_user_attr(history.STOPPED_BY, self._stops[number].by)
        if self._frozen(number).state == OptunaState.RUNNING:
            self._tell(trial, state=OptunaState.PRUNED)
        else:  # it waits to be gone on with: Optuna's `tell` is for trials that run
            self._storage.set_trial_state_values(trial._trial_id, OptunaState.PRUNED)
        self._live.pop(number, None)
        self._event("trial.pruned", {"number": number, "exposure": _last(trial).get("exposure", 0)})

    def interrupt(self, number: int, text: str, *, in_order: bool = False) -> None:
        """Nobody trains the trial any more, and it has not ended: it waits to be handed out again, under its number.

        Args:
            number: Of a running trial.
            text: Why.
            in_order: It was stopped between two steps. Otherwise its worker was lost, and a trial that loses it again
                and again without getting further is closed.
        """
        self._fence()
        ended = history.as_trial(self._frozen(number))
        if ended.pruned_at is not None:  # decided, and not written any more
            self.prune(number)
            return
        trial, lost = self._trial(number), 0 if in_order else 1 + self._losses(ended)
        if lost >= RETRIES and ended.params:
            self.fail(number, Failure.WORKER_LOST, f"{text}, {lost} times without getting further")
            return
        if lost:
            trial.set_user_attr("lost", lost)
            trial.set_user_attr("reached", _exposure(ended))
        self._storage.set_trial_state_values(trial._trial_id, OptunaState.WAITING)
        self._live.pop(number, None)
        self._event("trial.interrupted", {"number": number, "text": text[:2000], "exposure": _exposure(ended)})

    def _losses(self, trial: Trial) -> int:
        """How often its worker was lost since it, or the trial that it retries, got further than ever before."""
        return trial.lost if _exposure(trial) <= trial.reached else 0

    def _trial(self, number: int) -> optuna.Trial:
        return self._live.get(number) or optuna.Trial(self._study, self._frozen(number)._trial_id)

    def fail(self, number: int, failure: Failure, text: str) -> None:
        """The trial has no value. One that can't go on because its worker was lost is tried again, finitely often."""
        self._fence()
        trial, ended = self._trial(number), history.as_trial(self._frozen(number))
        trial.set_user_attr("failure", str(failure))
        trial.set_user_attr("failure_text", text[:2000])
        if failure in TEACHES:
            # As a list, the older form: Optuna reads both, its dashboard only this one.
            self._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        lost = 1 + self._losses(ended)
        if failure == Failure.WORKER_LOST and ended.params and lost <= RETRIES:
            # First the retry, then the end of this attempt: dying in between must not lose the params.
            inherited = {"lost": lost, "reached": max(ended.reached, _exposure(ended))}
            origin = {"origin": "retry", "retry_of": number, **inherited}
            self._study.enqueue_trial(ended.params, user_attrs=origin)
        self._tell(trial, state=OptunaState.FAIL)
        self._live.pop(number, None)
        self._event("trial.failed", {"number": number, "failure": str(failure), "text": text[:2000]})

    def note(self) -> None:
        """Say on the study's page of the dashboard what its trials have taught so far."""
        self._fence()
        note.write(self._study, self.spec)

    def _tell(self, trial: optuna.Trial, value: float | None = None, state: OptunaState | None = None) -> None:
        crash_point("before_tell")
        self._study.tell(trial, value, state)
        crash_point("after_tell")

    def is_running(self, number: int) -> bool:
        """Whether the trial still waits for its end."""
        return number in self._live

    def has_ended(self, number: int) -> bool:
        """Whether there is such a trial, and nothing more will happen to it."""
        trials = self._study.get_trials(deepcopy=False)
        return number < len(trials) and trials[number].state.is_finished()

    def close(self, failure: Failure, text: str) -> None:
        """End every trial that is still running: nothing stays RUNNING that isn't."""
        for number in list(self._live):
            self.fail(number, failure, text)

    def release(self, text: str) -> None:
        """Let go of every trial that is still running, in order: whoever drives the study next goes on with them."""
        for number in list(self._live):
            self.interrupt(number, text, in_order=True)

    def close_waiting(self, text: str) -> None:
        """The search is over for good: what was lined up will not be tried."""
        for frozen in self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,)):
            self._withdraw(frozen, Failure.CANCELLED, text)

    def verdict(self) -> tuple[bool, str]:
        """Whether the search ended well, and why it ended."""
        trials = self.trials()
        why = hopeless(trials, self._resumed_at)
        if why is not None:
            return False, why
        limit = self._limit(trials)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            return False, f"no trial completed: {limit}" if limit else "no trial completed"
        return True, limit or "the search space is exhausted: every point was tried"


def _most_epochs(spec: StudySpec, examples: int) -> int:
    epochs = spec.search_space.epochs
    if isinstance(epochs, IntRange):
        return epochs.high
    if isinstance(epochs, IntChoices):
        return max(epochs.choices)
    return default_hyperparameters(examples, spec.model.method).epochs if epochs == "auto" else epochs


def _tried(trials: Sequence[Trial]) -> frozenset[Key]:
    """The points that were tried or are lined up. Where nothing varies there is one, which a failure doesn't use up."""
    return frozenset(key(trial.params) for trial in trials if trial.params or trial.state != TrialState.FAIL)


def _config(stored: dict[str, Any] | None) -> FinetuneConfig | None:
    """As it was kept; None when there is none, or when it is of a version that wrote other fields."""
    try:
        return None if stored is None else FinetuneConfig.model_validate(stored)
    except ValidationError:
        return None


def _exposure(trial: Trial) -> int:
    return trial.reports[-1].exposure if trial.reports else 0


def _last(trial: optuna.Trial) -> dict[str, Any]:
    curve = trial.user_attrs.get("curve", [])
    return curve[-1] if curve else {}


def _outline(report: Report) -> dict[str, Any]:
    return {"exposure": report.exposure, "epoch": report.epoch, "training_loss": report.training_loss}
