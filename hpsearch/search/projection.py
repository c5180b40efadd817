"""What would be trained of a point of the search space: points that come to the same trial promise the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpsearch.spec.defaults import hyperparameters
from hpsearch.spec.expression import names_in
from hpsearch.spec.points import active
from hpsearch.spec.space import Params, Value
from hpsearch.spec.study import StudySpec

MOST_KNOWN = 4096
"""Answers that are kept."""


class Trained(NamedTuple):
    """What of a trial the model of its curve knows."""

    params: Params
    """Those that matter."""
    epochs: float
    """Of its schedule."""


Projection = Callable[[Params], Trained]


def projection(spec: StudySpec, examples: int) -> Projection | None:
    """Takes a value for each varying parameter to what would be trained; None where that is always all of them.

    Left out are the parameters that don't matter (`hpsearch.spec.points.active`); epochs that are nearly free are
    the most.
    """
    may_be_free = _epochs_may_be_free(spec, examples)
    if not may_be_free and not spec.search_space.conditions():
        return None
    return _Projected(spec, examples, may_be_free)


class _Projected:
    """A draw has hundreds of candidates, and resolving one takes as long as predicting all of them.

    So each combination of the values that decide what matters is resolved once. Mostly those are a few words.
    """

    def __init__(self, spec: StudySpec, examples: int, may_be_free: bool) -> None:
        self._spec, self._examples = spec, examples
        conditions = [*spec.search_space.conditions().values(), *(spec.require if may_be_free else ())]
        named = frozenset[str]().union(*map(names_in, conditions))
        # By the batch size go `steps` and the multiplier that is `auto`.
        self._decisive = sorted({"batch_size", "lr_schedule", *named} & spec.search_space.varying().keys())
        self._known: dict[tuple[Value | None, ...], tuple[frozenset[str], float]] = {}

    def __call__(self, params: Params) -> Trained:
        """What would be trained."""
        # Whether there is a warm-up decides if epochs are free; its length decides only what names it.
        decisive = (*map(params.get, self._decisive), params.get("warmup_fraction") == 0)
        known = self._known.get(decisive)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[decisive] = self._resolved(params)
        left_out, epochs = known
        chosen = {name: value for name, value in params.items() if name not in left_out}
        return Trained(chosen, float(chosen.get("epochs", epochs)))

    def _resolved(self, params: Params) -> tuple[frozenset[str], float]:
        """The names that don't matter, and the epochs where they are not among the params."""
        chosen = active(self._spec, params, self._examples)
        left_out = frozenset(params.keys() - chosen.keys())
        return left_out, hyperparameters(self._spec, chosen, self._examples).epochs


def _epochs_may_be_free(spec: StudySpec, examples: int) -> bool:
    """Whether there may be points where they are; see `hpsearch.spec.defaults.epochs_are_free`."""
    space = spec.search_space
    if "epochs" not in space.varying() or any("epochs" in names_in(each) for each in space.conditions().values()):
        return False
    otherwise = hyperparameters(spec, {}, examples).model_dump()

    def may_be(name: str, value: Value) -> bool:
        varying = space.varying().get(name)
        if varying is not None and varying.contains(value):
            return True
        return otherwise[name] == value and (varying is None or varying.when is not None)

    return may_be("lr_schedule", "constant") and may_be("warmup_fraction", 0.0)
