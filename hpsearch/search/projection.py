"""What would be trained of a point of the search space: points that come to the same trial promise the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpsearch.spec.defaults import default_params, hyperparameters
from hpsearch.spec.expression import names_in
from hpsearch.spec.finetune import Hyperparameters
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
    learning_rate_multiplier: float | None = None
    """None where it is not known; then it counts as the others'."""
    batch_size: float | None = None
    """As above."""


Projection = Callable[[Params], Trained]


def projection(spec: StudySpec, examples: int) -> Projection | None:
    """Takes a value for each varying parameter, or the params that matter, to what would be trained.

    Left out are the parameters that don't matter (`hpsearch.spec.points.active`); epochs that are nearly free are
    the most. None where all that is drawn is trained, and what is not drawn is the same for all trials.
    """
    may_be_free = _epochs_may_be_free(spec, examples)
    space = spec.search_space
    moves = space.learning_rate_multiplier == "auto" and "batch_size" in space.varying()
    if not may_be_free and not moves and not space.conditions():
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
        self._anything = default_params(spec, examples)
        self._known: dict[tuple[Value | None, ...], tuple[frozenset[str], Hyperparameters]] = {}

    def __call__(self, params: Params) -> Trained:
        """What would be trained."""
        # Whether there is a warm-up decides if epochs are free; its length decides only what names it.
        decisive = (*map(params.get, self._decisive), params.get("warmup_fraction") == 0)
        known = self._known.get(decisive)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[decisive] = self._resolved(params)
        left_out, otherwise = known
        chosen = {name: value for name, value in params.items() if name not in left_out}
        return Trained(
            chosen,
            float(chosen.get("epochs", otherwise.epochs)),
            float(chosen.get("learning_rate_multiplier", otherwise.learning_rate_multiplier)),
            float(chosen.get("batch_size", otherwise.batch_size)),
        )

    def _resolved(self, params: Params) -> tuple[frozenset[str], Hyperparameters]:
        """The names that don't matter, and the values of what is not among those that do."""
        drawn = {**self._anything, **params}  # what is missing does not matter
        chosen = active(self._spec, drawn, self._examples)
        return frozenset(drawn.keys() - chosen.keys()), hyperparameters(self._spec, chosen, self._examples)


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
