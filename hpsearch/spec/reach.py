"""What of a search can be reached: conditions that hold nowhere and rules that never act are found beforehand."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

from hpsearch.errors import InvalidSpec
from hpsearch.spec.cost import most_epochs
from hpsearch.spec.defaults import default_params
from hpsearch.spec.points import active, unmet
from hpsearch.spec.pruner import PatientSpec
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec

MOST_LOOKED_AT = 4000
"""Points; so many of a larger space, by chance. A search gives up after a thousand for one trial."""

MOST_BESIDE = 100
"""Points that are looked at for one beside which a first trial meets `require`; of these there may be a thousand."""

CUTS = 33
"""Points that a range without steps is cut into."""


def check_reach(spec: StudySpec, examples: int) -> list[str]:
    """Warnings of what is in the spec and can have no effect.

    Args:
        spec: The study.
        examples: Size of the training set, which conditions may name.

    Raises:
        InvalidSpec: No point may be tried, or what a first trial asks for matters nowhere beside the rest of it.
    """
    warnings = list(_idle_rules(spec, examples))
    if spec.require or spec.search_space.conditions():
        warnings += [*_absent(spec, examples), *_unmet_defaults(spec, examples), *_unmet_first_trials(spec, examples)]
    return warnings


def _absent(spec: StudySpec, examples: int) -> Iterator[str]:
    """Parameters that no point has."""
    absent, missed, looked_at = spec.search_space.conditions(), Counter[str](), 0
    for params in _points(spec):
        looked_at += 1
        chosen = active(spec, params, examples)
        for name in chosen.keys() & absent.keys():
            del absent[name]
        missed[unmet(spec, chosen, examples) or ""] += 1
        if "" in missed and not absent:
            return
    where = "points of the search space" if looked_at < MOST_LOOKED_AT else f"{looked_at:,} points that were looked at"
    if "" not in missed:
        (worst, _), *_ = missed.most_common(1)
        raise InvalidSpec(f"require: none of the {where} may be tried; most don't meet '{worst}'", "require")
    for name, condition in absent.items():
        yield (f"search_space.{name}: none of the {where} has it, so it is never searched; its `when` is '{condition}'")


def _unmet_defaults(spec: StudySpec, examples: int) -> Iterator[str]:
    fault = unmet(spec, active(spec, default_params(spec, examples), examples), examples)
    if fault is not None:
        yield f"require: the defaults don't meet '{fault}', so they are not tried, and no verdict compares with them"


def _unmet_first_trials(spec: StudySpec, examples: int) -> Iterator[str]:
    points = tuple(_points(spec)) if spec.first_trials else ()
    for place, given in enumerate(spec.first_trials):
        dead, is_met = given.keys() - {"epochs"}, False  # where the most epochs answer for fewer, theirs are free
        is_whole = given.keys() >= spec.search_space.varying().keys()  # then every point makes the same trial
        for looked_at, params in enumerate(points, start=1):
            chosen = active(spec, {**params, **given}, examples)
            dead -= chosen.keys()
            is_met = is_met or unmet(spec, chosen, examples) is None
            if is_whole or (not dead and (is_met or looked_at == MOST_BESIDE)):
                break
        for name in sorted(dead):
            field = f"first_trials.{place}.{name}"
            raise InvalidSpec(f"{field}: its `when` holds nowhere beside the rest of this trial", field)
        if not is_met:
            yield f"first_trials.{place}: nothing was found with which it meets `require`, so it is hardly ever trained"


def _idle_rules(spec: StudySpec, examples: int) -> Iterator[str]:
    """A pruner that never acts."""
    rule = spec.pruner.pruner if isinstance(spec.pruner, PatientSpec) else spec.pruner
    reports = most_epochs(spec, examples) * spec.objective.reports_per_epoch
    if getattr(rule, "min_reports", 0) >= reports:
        yield f"pruner.min_reports: the longest trial has {reports} reports, so none is ever stopped"
    trials = spec.budget.trials
    if trials is not None and getattr(rule, "startup_trials", 0) >= trials:
        yield f"pruner.startup_trials: the budget has {trials} trials, so none is ever stopped"


def _points(spec: StudySpec) -> Iterator[Params]:
    """All of a small space, some of a large one, in an order of chance: always the same."""
    values = {name: parameter.values(CUTS) or () for name, parameter in spec.search_space.varying().items()}
    dice = random.Random(0)
    if spec.search_space.size(CUTS) < MOST_LOOKED_AT:
        every = list(itertools.product(*values.values()))
        dice.shuffle(every)
        yield from (dict(zip(values, chosen, strict=True)) for chosen in every)
        return
    for _ in range(MOST_LOOKED_AT):
        yield {name: dice.choice(known) for name, known in values.items()}
