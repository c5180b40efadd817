"""Which trial next: ask, report, complete, prune, fail. Optuna decides; nothing here knows Ray."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna

from hpsearch.crash import crash_point
from hpsearch.lifecycle import Orders, Wish
from hpsearch.results import Failure, Report, Trial, TrialState
from hpsearch.results.attributes import SPARED
from hpsearch.results.budget import has_better, hopeless, limit_reached, spent, to_finish
from hpsearch.results.curve import has_turned
from hpsearch.search.answers import Asked, Decision
from hpsearch.search.draw import Draw, Points, suggest
from hpsearch.search.firsts import begin, borrowed, try_again
from hpsearch.search.handout import anew, handed_out, must_begin_anew
from hpsearch.search.memory import Lineage, Memory, lessons
from hpsearch.search.population import Population
from hpsearch.search.pruners import pruner
from hpsearch.search.reasons import why_pruned
from hpsearch.search.record import Record
from hpsearch.search.strategy import Independent, Strategy, tried
from hpsearch.search.told import Told, outline
from hpsearch.search.whole import Event
from hpsearch.search.wishes import Wishes
from hpsearch.spec.auto import with_search_resolved
from hpsearch.spec.cost import most_epochs
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.population import exchanges
from hpsearch.spec.pruner import PopulationSpec
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec


class Search(Record):
    """One study's search. All it knows lies in SQL, so a new one on the same study goes on where the last stopped.

    Args:
        spec: The study.
        storage: Where Optuna keeps the trials.
        examples: Size of the training set.
        default_params: The `auto` defaults: the first trial, and what some samplers believe in.
        lineage: What its trials learn from; without, earlier studies are not remembered.
        elapsed: Seconds of the wall clock that the study has used, whenever it is asked.
        resumed_at: When a person had the ended search go on.
        fence: Raises LeaseLost when this process must not write any more; called before every write.
        event: Told what happened, in the order it happened.
        told: What `event` was told of this study; without, what a process that died had not told stays untold.
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
        told: Told | None = None,
        orders: Callable[[], Orders | None] = lambda: None,
        fulfilled: Callable[[Wish], None] = lambda _wish: None,
    ) -> None:
        fence()
        self._direction = spec.objective.direction
        resolved = with_search_resolved(spec)
        reports, epochs = spec.objective.reports_per_epoch, most_epochs(spec, examples)
        study = optuna.create_study(
            study_name=spec.name,
            storage=storage,
            direction=self._direction,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # never asked: each trial is drawn by a `Draw` of its own
            pruner=pruner(resolved.pruner, examples, reports, epochs, self._direction),
        )
        super().__init__(spec, study, storage, fence, event)
        self._elapsed, self._resumed_at = elapsed, resumed_at
        self._points = Points(resolved, examples, default_params)
        self._memory = None
        if lineage is not None:
            self._memory = Memory(storage, spec.name, lineage, self._direction, self._metric)
        self._strategy: Strategy = Independent(self, self._points)
        if isinstance(spec.pruner, PopulationSpec):
            at = exchanges(spec.pruner, spec.search_space, epochs, reports, examples)
            self._strategy = Population(self, study, spec.pruner, self._points, at)
        self._wishes = Wishes(self, orders, fulfilled)
        self._epochs: dict[int, int] = {}
        self._warmup_epochs: dict[int, float] = {}
        self.typical_params = self._points.active(default_params) if default_params else {}
        """What the first trial tries: as good an example of a trial as any."""
        if not self._study.user_attrs.get("spec"):
            begin(study, spec, self._firsts())
        self.take_over(told)
        self._try_again()

    def _try_again(self) -> None:
        """What was asked for and not tried, when an ended search goes on; behind what people add now."""
        if self._resumed_at > 0:
            self._wishes.heed()
            try_again(self, self._resumed_at, self._ends)

    @property
    def heeded(self) -> int | None:
        """The version of the orders that were heeded last."""
        return self._wishes.heeded

    def _firsts(self) -> list[tuple[str, Params]]:
        """Origin and params of what is tried before the sampler's own."""
        firsts = [("defaults", self.typical_params)] if self.typical_params else []
        firsts += [("first_trials", params) for params in self.spec.first_trials]
        best = borrowed(self._memory, self._study, self.spec, self._points, self._event)
        return [*firsts, *(("borrowed", params) for params in best)]

    def ask(self, *, alone: bool = True, kept: Callable[[Asked], bool] = lambda _asked: True) -> Asked | None:
        """The next trial, or None when there is no room for one (look again when a running one has ended).

        Args:
            alone: Whether it may be one that has to have its device for itself.
            kept: Whether there is a snapshot that a trial can go on from. Without one, a pruned trial that is to be
                continued is handed out to begin anew.
        """
        while True:
            self._wishes.heed()
            trials = self.trials()
            if not self._ends(trials) and self._strategy.gather(trials):
                trials = self.trials()
            is_over, unfinished = self._is_over(trials)
            waiting = unfinished if is_over else self._strategy.ready(trials)
            if not alone:
                waiting = [trial for trial in waiting if trial.alone_until is None]
            if not waiting and (is_over or not self._strategy.draws(trials)):
                return None
            self._fence()
            past, taught = functools.partial(self._study.get_trials, deepcopy=False), lessons(self._study, self._points)
            self._study.sampler = Draw(self._points, tried(trials, self.forgiven), past, taught)
            trial = self.take(waiting[0].number) if waiting else self.add()
            params = suggest(trial, self._points, waiting[0].params if waiting else {})
            self._live[trial.number] = trial
            unmet = self._points.unmet(params)
            if unmet is not None:
                self.fail(trial.number, Failure.INFEASIBLE, f"never trained: {params} does not meet '{unmet}'")
                continue
            return self._handed_out(trial, params, kept)

    def is_over(self) -> bool:
        """Whether `ask` has nothing more to hand out, even when all that runs has ended."""
        self._wishes.heed()
        is_over, unfinished = self._is_over(self.trials())
        return is_over and not unfinished

    def _is_over(self, trials: Sequence[Trial]) -> tuple[bool, list[Trial]]:
        """Whether nothing new is tried, and the trials that have to come to their ends all the same."""
        is_over = self._strategy.is_over(trials) or self._ends(trials) is not None
        return is_over, to_finish(trials, is_spent=self._spent(trials) is not None)

    def is_out_of_time(self) -> bool:
        """Whether the wall-clock budget is used up, as far as people had extended it when their orders were heeded."""
        return self.spec.budget.wall_clock is not None and self._elapsed() >= self.spec.budget.wall_clock

    def finishes(self, number: int) -> bool:
        """Whether a running trial is to end with what it has: let go of, it would be handed out again at once."""
        trials = self.trials()
        running = to_finish(trials, is_spent=self._spent(trials) is not None, state=TrialState.RUNNING)
        return any(trial.number == number for trial in running)

    def room(self) -> int:
        """How many trials `ask` could hand out now, at most."""
        trials = self.trials()
        return 0 if self._ends(trials) else self._strategy.room(trials)

    def _ends(self, trials: Sequence[Trial]) -> str | None:
        """Why no other trial is started, if so."""
        return self._limit(trials) or self._hopeless(trials)

    def _hopeless(self, trials: Sequence[Trial]) -> str | None:
        return hopeless(trials, self._resumed_at, most_failures=self.spec.budget.failures)

    def _limit(self, trials: Sequence[Trial]) -> str | None:
        since, lost = self._resumed_at, self.forgiven
        return limit_reached(self.spec.budget, trials, self._elapsed(), self._direction, resumed_at=since, lost=lost)

    def _handed_out(self, trial: optuna.Trial, params: Params, kept: Callable[[Asked], bool]) -> Asked:
        asked = handed_out(trial, params, self.trials(), self._points, self._strategy.next)
        if must_begin_anew(trial, asked, kept):
            asked = anew(trial, asked)
        recorded = self.frozen()[trial.number].intermediate_values
        for known in trial.user_attrs.get("curve", []):
            if known["exposure"] not in recorded:  # a crash came between, or another trial has reported it
                trial.report(float(known[self._metric]), step=known["exposure"])
        trial.set_user_attr("attempts", asked.attempt)
        crash_point("after_ask")
        kind = "trial.started" if asked.attempt == 1 else "trial.continued"
        details = {"number": asked.number, "params": asked.params, "origin": asked.origin}
        details |= {} if asked.attempt == 1 else {"attempt": asked.attempt, "exposure": asked.reported or 0}
        self._event(kind, details if asked.alone_until is None else {**details, "alone": True})
        return asked

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
            # Who exchanges weights needs them on the way, where nobody keeps them.
            memory = None if self._strategy.exchanges_weights else self._memory
            if memory is not None and memory.recalls(trial, contract):
                return Decision.REUSE
        curve = trial.user_attrs.get("curve", [])
        if curve and report.exposure <= curve[-1]["exposure"]:
            if not self._repeats(number, curve, report):
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
            self._event("trial.reported", {"number": number, "value": value, **outline(report)})
        self._wishes.heed()
        decision, why = self._decide(number, report)
        is_cut_short = decision is Decision.FINISH
        if is_cut_short != trial.user_attrs.get("cut_short", False):  # or no more: its budget was extended
            trial.set_user_attr("cut_short", is_cut_short)
        if decision is Decision.PRUNE:
            self.condemned(number, report.exposure, why, by=self._wishes.stops(number))
        return decision

    def _decide(self, number: int, report: Report) -> tuple[Decision, str]:
        """What happens to the trial, and why if it is not what it was begun for."""
        trial = self._live[number]
        curve = trial.user_attrs["curve"]
        is_spared = trial.user_attrs.get(SPARED, False)
        patience, values = self.spec.objective.patience, [one[self._metric] for one in curve if one["exposure"]]
        if report.epoch >= self._epochs[number] or has_turned(values, self._direction, patience):
            if not is_spared:
                trial.should_prune()  # so that it counts where later trials are compared; nothing is left to save
            return Decision.GO_ON, ""
        trials = self.trials()
        over = self._spent(trials)
        if report.exposure > 0 and over is not None:
            # Half a training says little of its params. But who has nothing else gets it, and is told what it is.
            return Decision.PRUNE if has_better(trials) else Decision.FINISH, over
        # Asked in any case: Optuna's halving notes a trial's rungs when it is asked, and must not note them late. Those
        # of a trial that is continued were noted under its earlier number.
        poor = not is_spared and trial.should_prune()
        if self._wishes.stops(number) is not None:
            return Decision.PRUNE, ""
        if poor and report.epoch > self._warmup_epochs[number]:
            return Decision.PRUNE, why_pruned(self._points.spec.pruner, self._study, self.frozen()[number])
        return Decision.PAUSE if self._strategy.must_wait(trials[number]) else Decision.GO_ON, ""

    def needed_from(self) -> float:
        """Below this exposure, snapshots that trials have handed over are of no use any more."""
        needed = self._strategy.needs_from(self.trials())
        return math.inf if needed is None else needed

    def _spent(self, trials: Sequence[Trial]) -> str | None:
        return spent(self.spec.budget, trials, self._elapsed())

    def reuse(self, number: int, adapter: Path) -> None:
        """Take over what an earlier study has trained: its curve, its value, and its weights into `adapter`."""
        self._fence()
        assert self._memory is not None  # `report` has said so
        best, contract = self._memory.take_over(self._live[number], adapter)
        self.complete(number, best, contract, str(adapter))

    def end(self) -> tuple[bool, str]:
        """The search is over: see `ending`. Where all fail alike, what waits is left to whoever mends that."""
        ended_well, why = self.ending()  # asked first: the ends of its trials may hide it
        if self._hopeless(self.trials()) is None:
            self.end_waiting(why)
        self.close(Failure.ERROR, "the search ended while the trial was running")
        self.note()
        return ended_well, why

    def ending(self) -> tuple[bool, str]:
        """Whether the search ended well, and why it ended."""
        trials = self.trials()
        why = self._hopeless(trials)
        if why is not None:
            return False, why
        limit = self._limit(trials)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            return False, f"no trial completed: {limit}" if limit else "no trial completed"
        return True, limit or self._strategy.exhausted
