"""The best trials of a search trained again under fresh seeds: better, or lucky?

The winner of many trials is in part the luckiest of them (Cawley and Talbot 2010, On over-fitting in model selection,
section 5). What it scores under seeds that it was not chosen on says how good it is. Every candidate is trained under
the same seeds, which give them the same order of examples and the same dropout, so what a seed does to all of them
alike falls out of their differences.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import optuna

from hpsearch.lifecycle import Orders
from hpsearch.results import Failure, Trial, TrialState, rank
from hpsearch.results.attributes import CONFIRMS, SEALED, TRAINS
from hpsearch.results.sealed import SealedScore
from hpsearch.results.standing import Missing
from hpsearch.results.verdict import Candidate, Verdict, verdict
from hpsearch.search import history
from hpsearch.search.search import Search
from hpsearch.search.strategy import Independent
from hpsearch.search.taught import TEACHES
from hpsearch.search.told import Happening, Told, of_end
from hpsearch.search.whole import Event
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.points import key
from hpsearch.spec.pruner import NoPrunerSpec
from hpsearch.spec.sampler import RandomSpec
from hpsearch.spec.space import Params

_TOLD = {"trial.started": "started", "trial.completed": "completed", "trial.failed": "failed"}
"""Of what happens to its trials, what the study tells, as `confirmation.*`."""
_ABOUT = ("value", "failure", "text")

_NO_LIMIT = BudgetSpec(trials=100_000)
"""A confirmation has as many trials as are lined up."""


class Confirmation(Search):
    """The trials that confirm a study's best. They are an Optuna study of their own, with a search that draws nothing.

    So neither the ranking nor the sampler nor the dashboard takes a second training of one config for another config,
    and all that holds for the trials of a search (restarts, lost workers, devices set aside) holds for these.

    Args:
        searched: The study's search, which is over; its spec says what is to be confirmed.
        storage: Where Optuna keeps the trials.
        examples: Size of the training set.
        default_params: The `auto` defaults.
        fence: Raises LeaseLost when this process must not write any more.
        event: Told what happened.
        told: What `event` was told of the study.
        orders: What people want of the study by now: of that, only how many trials may train at once is heeded here.
    """

    def __init__(
        self,
        searched: Search,
        storage: optuna.storages.BaseStorage,
        *,
        examples: int,
        default_params: Params,
        fence: Callable[[], None],
        event: Event,
        told: Told | None = None,
        orders: Callable[[], Orders | None] = lambda: None,
    ) -> None:
        asked = searched.spec.confirm
        assert asked is not None  # whoever drives the study has looked
        self._candidates = candidates(searched, asked.top)
        self._seeds = fresh_seeds(searched.spec.seed, asked.seeds)
        self._tell_study = event
        spec = searched.spec
        shared = searched.per_device
        changes: dict[str, Any] = {
            "name": history.confirmation_of(spec.name),
            "sampler": RandomSpec(),
            "pruner": NoPrunerSpec(),
            "budget": _NO_LIMIT,
            "first_trials": (),
            "require": (),
            "warm_start": None,
            "verify": 0,
        }
        if shared is not None:  # it was found out for the search already
            changes["parallelism"] = spec.parallelism.model_copy(update={"trials_per_device": shared})
        super().__init__(
            spec.model_copy(update=changes),
            storage,
            examples=examples,
            default_params=default_params,
            resumed_at=time.time(),  # what failed when it was tried before says nothing now
            fence=fence,
            event=self._tell_of,
            told=None if told is None else lambda kinds: self._told_of(kinds, told),
            orders=lambda: self._heard(orders()),
        )
        self._strategy = LinedUp(self, self._points)
        self._line_up()

    def _heard(self, orders: Orders | None) -> Orders | None:
        """What is to be heeded at once; all else waits until the search is looked at again."""
        if orders is None:
            return None
        most = {"max_concurrent_trials": orders.spec.parallelism.max_concurrent_trials}
        parallelism = self.spec.parallelism.model_copy(update=most)
        return replace(orders, spec=self.spec.model_copy(update={"parallelism": parallelism}), wishes=())

    def _firsts(self) -> list[tuple[str, Params]]:
        return []

    def _try_again(self) -> None:
        """Nothing: what has told nothing is lined up with the rest."""

    def _line_up(self) -> None:
        """Every candidate under every seed, but where that waits or has told something already; and nothing else."""
        wanted = {(trial.number, seed) for trial in self._candidates for seed in self._seeds}
        for frozen in self._waiting():
            if _place(frozen.user_attrs) not in wanted:
                self.withdraw(frozen, Failure.CANCELLED, "nobody asks for it any more")
        told = (frozen for frozen in self.frozen() if not _says_nothing(history.as_trial(frozen, curve=False)))
        known = {_place(frozen.user_attrs) for frozen in told}
        for seed in self._seeds:
            for trial in self._candidates:
                config = {**(trial.config or {}), "seed": seed, **self._unsealed(trial)}
                attributes = {"origin": "confirmation", CONFIRMS: trial.number, TRAINS: config}
                if _place(attributes) not in known:
                    self.enqueue(trial.params, attributes)
        if not wanted <= known:
            numbers, trainings = [trial.number for trial in self._candidates], len(self._waiting())
            self._tell_study("study.confirming", {"trials": numbers, "seeds": len(self._seeds), "trainings": trainings})

    def _unsealed(self, trial: Trial) -> dict[str, Any]:
        """The data section of its config with the test split, which it was searched without; nothing without one."""
        test = self.spec.data.test
        return {} if test is None else {"data": {**(trial.config or {})["data"], "test": test}}

    def _tell_of(self, kind: str, details: dict[str, Any]) -> None:
        """As an event of the study: of which trial, under which seed."""
        if kind == "study.warning":
            self._tell_study(kind, details)
        if kind in _TOLD:
            confirms, seed = _place(self.frozen()[details["number"]].user_attrs)
            about: dict[str, Any] = {name: details[name] for name in _ABOUT if name in details}
            self._tell_study(f"confirmation.{_TOLD[kind]}", {"number": confirms, "seed": seed, **about})

    def _told_of(self, kinds: Collection[str], told: Told) -> Iterator[Happening]:
        """The reverse: what `_tell_of` has told of which training, as far as there are as many as were told."""
        known = {f"confirmation.{name}": kind for kind, name in _TOLD.items() if kind in kinds}
        count = Counter[tuple[str, int, int]]()
        for kind, details in told([*known, "study.warning"]):
            if kind in known:
                count[known[kind], details["number"], details["seed"]] += 1
            else:
                yield kind, details
        for again in (frozen for frozen in self.frozen() if frozen.state.is_finished()):
            kind, _ = of_end(history.as_trial(again, curve=False))
            count[kind, *_place(again.user_attrs)] -= 1
            if count[kind, *_place(again.user_attrs)] >= 0:
                yield kind, {"number": again.number}

    def note(self) -> None:
        """Nothing: the study's own page of the dashboard says what was found out."""

    def verdict(self) -> Verdict:
        """What the trainings so far say."""
        losses: dict[int, dict[int, float | None]] = {trial.number: {} for trial in self._candidates}
        sealed: dict[int, dict[int, SealedScore]] = {trial.number: {} for trial in self._candidates}
        broken: dict[tuple[int, int], Trial] = {}
        for frozen in self.frozen():
            confirms, seed = _place(frozen.user_attrs)
            again = history.as_trial(frozen, curve=False)
            if confirms not in losses or seed not in self._seeds or not again.state.is_finished:
                continue
            if _says_nothing(again):
                if again.failure != Failure.CANCELLED:  # what was not begun any more is not the reason
                    broken[confirms, seed] = again
                broken.setdefault((confirms, seed), again)
            else:
                broken.pop((confirms, seed), None)
                losses[confirms][seed] = again.value
                if SEALED in frozen.user_attrs:
                    sealed[confirms][seed] = SealedScore.of_json(frozen.user_attrs[SEALED])
        compared = [
            Candidate(number, number == self._defaults, trial.value, losses[number], sealed[number])
            for trial in self._candidates
            for number in [trial.number]
        ]
        figures = history.baseline(self._study) or {}
        objective = self.spec.objective
        return verdict(compared, objective.direction, figures.get(objective.metric), self._missing(broken.values()))

    def _missing(self, trainings: Collection[Trial]) -> Missing | None:
        """What there is to say of trainings that ended by something else than their params; None without any."""
        if not trainings:
            return None
        broken = [again for again in trainings if again.failure != Failure.CANCELLED]
        every = (history.as_trial(frozen, curve=False) for frozen in self.frozen())
        failed = [again for again in every if again.failure not in (None, Failure.CANCELLED)]
        # What was not begun any more has no reason of its own: too many others failed, by their params or not.
        last = [*failed, *broken][-1:]
        reason = "".join(f"{again.failure}: {again.failure_text}" for again in last) or "it was ended"
        return Missing(len(broken), len(trainings) - len(broken), reason.partition("\n")[0][:200])

    @property
    def _defaults(self) -> int | None:
        """The number of the candidate that is the `auto` defaults from beginning to end."""
        return next((trial.number for trial in self._candidates if _is_defaults(trial, self)), None)


class LinedUp(Independent):
    """Trials that are lined up from the beginning: none is drawn."""

    exhausted = "all were trained again"

    def draws(self, trials: Sequence[Trial]) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def is_over(self, trials: Sequence[Trial]) -> bool:
        """When none waits."""
        return not self.ready(trials)

    def room(self, trials: Sequence[Trial]) -> int:
        """As many as wait."""
        return len(self.ready(trials))


def candidates(searched: Search, top: int) -> list[Trial]:
    """The best trials of a search but its defaults, best first, and the trial of these, if that can be trained again.

    Of several trials with the same config, one: a trial that was tried again stands for itself.
    """
    trials, spec = searched.trials(), searched.spec
    ranked = rank(spec.name, "", spec.objective, searched.baseline, trials).trials
    tried = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    best = [trial for trial in ranked if not _is_defaults(trial, searched)]
    defaults = [trial for trial in [*ranked, *tried] if _is_defaults(trial, searched)]
    chosen: dict[str, Trial] = {}
    for most, among in ((top, best), (top + 1, defaults)):
        for trial in among:
            if trial.config is not None and len(chosen) < most:
                config = {name: trial.config.get(name) for name in ("hyperparameters", "earlier")}
                chosen.setdefault(json.dumps(config, sort_keys=True), trial)
    return list(chosen.values())


def _is_defaults(trial: Trial, search: Search) -> bool:
    """Whether it was trained with the `auto` defaults from beginning to end."""
    return key(trial.params) == key(search.typical_params) and not trial.schedule


def fresh_seeds(seed: int, count: int) -> list[int]:
    """Seeds that the search has not seen, the same whenever they are asked for."""
    digests = [hashlib.sha256(f"{seed}/confirmation/{each}".encode()).digest() for each in range(count)]
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def _says_nothing(trial: Trial) -> bool:
    """Whether a training ended by something else than its params: its worker was lost, its driver failed, a person."""
    return trial.state == TrialState.FAIL and trial.failure not in TEACHES


def _place(attributes: dict[str, Any]) -> tuple[int, int]:
    """Which trial is trained again, and under which seed."""
    return attributes[CONFIRMS], attributes[TRAINS]["seed"]
