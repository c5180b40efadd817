"""What may vary, and how: one parameter of the search space is a range, choices, a fixed value or `auto`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from hpsearch.spec.closed import Closed, fault_at
from hpsearch.spec.expression import Condition, names_in
from hpsearch.spec.schedules import LRSchedule

Value = int | float | str
Params = dict[str, Value]
"""What the sampler drew: parameter name -> value."""

MOST_GRID_POINTS = 1_000_000


class _Conditional(Closed):
    when: Condition | None = Field(None, exclude_if=lambda when: when is None)
    """Vary only where this is true (`lr_schedule != 'constant'`); elsewhere the parameter is `auto`."""


class _Range(_Conditional):
    low: Any
    high: Any
    log: bool = False
    """Draw uniformly in the logarithm: for parameters whose ratio matters, such as a learning rate."""
    step: Any = None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0; low is {self.low}")
        if self.step is not None:
            if self.log:
                raise ValueError("log and step exclude each other; leave one out")
            if self.step <= 0:
                raise ValueError(f"step must be positive; it is {self.step}")
            if self.high - self.low > MOST_GRID_POINTS * self.step:
                raise ValueError(f"step {self.step} cuts the range into more than {MOST_GRID_POINTS:,} points")
        return self

    def values(self, points: int | None = None) -> tuple[Value, ...] | None:
        """All its points, lowest first. Of a range without steps, that many even ones, or None without a number."""
        if self.low == self.high:
            return (self.low,)
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return tuple(self.nearest(self.low + place * self.step) for place in range(count))
        if points is None:
            return None
        parts = [place / max(points - 1, 1) for place in range(points)]
        if self.log:
            even = [self.low * (self.high / self.low) ** part for part in parts]
        else:
            even = [self.low + (self.high - self.low) * part for part in parts]
        return tuple(dict.fromkeys(self.nearest(value) for value in even))

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the range's points."""
        if isinstance(value, str) or not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose(value, float(self.nearest(value)), rel_tol=1e-9, abs_tol=1e-12)

    def nearest(self, value: Value) -> Value:
        """The range's point that is nearest to `value`: clipped, then rounded to the step."""
        if isinstance(value, str):
            raise TypeError(f"a range has no point near {value!r}")
        point = min(max(value, self.low), self.high)
        if self.step is not None:
            most = math.floor((self.high - self.low) / self.step + 1e-9)
            point = min(self.low + min(round((point - self.low) / self.step), most) * self.step, self.high)
        nearest: Value = type(self.low)(point)
        return nearest


class IntRange(_Range):
    """Whole numbers from low to high, both included."""

    low: int
    high: int
    step: int | None = None

    def values(self, points: int | None = None) -> tuple[Value, ...] | None:
        """All its whole numbers, lowest first."""
        del points
        return tuple(range(self.low, self.high + 1, self.step or 1))

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the range's whole numbers."""
        return not isinstance(value, str) and float(value).is_integer() and super().contains(value)


class FloatRange(_Range):
    """Numbers from low to high, both included."""

    low: float
    high: float
    step: float | None = None


class _Choices(_Conditional):
    choices: tuple[Any, ...]

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"the choices repeat: {list(self.choices)}")
        return self

    def values(self, points: int | None = None) -> tuple[Value, ...] | None:
        """The choices."""
        del points
        return self.choices

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the choices."""
        return value in self.choices

    def nearest(self, value: Value) -> Value:
        """The choice that is `value`, or the nearest number, or else the first choice."""
        if value in self.choices or isinstance(value, str) or any(isinstance(c, str) for c in self.choices):
            known: Value = value if value in self.choices else self.choices[0]
            return known
        if value > 0 and min(self.choices) > 0:  # what matters between positive numbers is their ratio
            nearest: Value = min(self.choices, key=lambda choice: max(choice / value, value / choice))
        else:
            nearest = min(self.choices, key=lambda choice: abs(choice - value))
        return nearest


class IntChoices(_Choices):
    """One of these whole numbers."""

    choices: tuple[int, ...] = Field(min_length=1, max_length=256)


class FloatChoices(_Choices):
    """One of these numbers."""

    choices: tuple[float, ...] = Field(min_length=1, max_length=256)


class ScheduleChoices(_Choices):
    """One of these schedules."""

    choices: tuple[LRSchedule, ...] = Field(min_length=1)


Varying = IntRange | FloatRange | IntChoices | FloatChoices | ScheduleChoices
"""A parameter that the sampler draws."""


def _kind(value: Any) -> str:
    if isinstance(value, _Range) or (isinstance(value, dict) and ("low" in value or "high" in value)):
        return "<range>"
    return "<choices>" if isinstance(value, _Choices | dict) else "<fixed>"


def refuse_truth(value: Any) -> Any:
    """True and False are no numbers, although Python counts with them."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")  # noqa: TRY004 - pydantic turns ValueError into a fault
    return value


def refuse_list(value: Any) -> Any:
    """Choices are named as such."""
    if isinstance(value, list):
        raise ValueError("a list of values is written {choices: [...]}")  # noqa: TRY004 - as above
    return value


IntParameter = Annotated[
    Annotated[IntRange, Tag("<range>")]
    | Annotated[IntChoices, Tag("<choices>")]
    | Annotated[Literal["auto"] | int, Tag("<fixed>")],
    Discriminator(_kind),
    BeforeValidator(refuse_truth),
    BeforeValidator(refuse_list),
]
FloatParameter = Annotated[
    Annotated[FloatRange, Tag("<range>")]
    | Annotated[FloatChoices, Tag("<choices>")]
    | Annotated[Literal["auto"] | float, Tag("<fixed>")],
    Discriminator(_kind),
    BeforeValidator(refuse_truth),
    BeforeValidator(refuse_list),
]
ScheduleParameter = Annotated[
    Annotated[ScheduleChoices, Tag("<choices>")] | Annotated[Literal["auto", LRSchedule], Tag("<fixed>")],
    Discriminator(_kind),
    BeforeValidator(refuse_list),
]


def _within_limits(name: str) -> AfterValidator:
    """Every value that the parameter can take lies within its limits."""

    def check(parameter: Any) -> Any:
        (low, high), above = LIMITS[name], name in OPEN_BELOW
        for value in _extremes(parameter):
            if not (low < value if above else low <= value) or value > high:
                raise ValueError(f"{str(value)[:40]} is outside {'(' if above else '['}{low:g}, {high:g}]")
        return parameter

    return AfterValidator(check)


def _extremes(parameter: Any) -> list[float]:
    if isinstance(parameter, _Range):
        return [parameter.low, parameter.high]
    if isinstance(parameter, _Choices):
        return [choice for choice in parameter.choices if not isinstance(choice, str)]
    return [] if isinstance(parameter, str) else [parameter]


LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 1000),
    "batch_size": (1, 4096),
    "learning_rate_multiplier": (0, 1e6),
    "prompt_loss_weight": (0, 1),
    "dropout": (0, 0.95),
    "weight_decay": (0, 100),
    "warmup_fraction": (0, 0.9),
    "frozen_layers": (0, 1000),
    "layer_lr_decay": (0, 1),
}
"""What no value of a parameter lies below or above; the 0 of `OPEN_BELOW` is not a value itself."""
OPEN_BELOW = frozenset({"learning_rate_multiplier", "layer_lr_decay"})


AFTER_BATCH_SIZE = frozenset({"steps", "learning_rate_multiplier"})
"""What a condition may name that follows from the batch size: the steps of an epoch, and a multiplier left `auto`."""


class SearchSpace(Closed):
    """The ten parameters; what is left out is `auto`: the provider-style default, resolved per trial."""

    epochs: Annotated[IntParameter, _within_limits("epochs")] = "auto"
    """Passes over the training set."""
    batch_size: Annotated[IntParameter, _within_limits("batch_size")] = "auto"
    """Examples per optimizer step, exactly, however they are split into micro-batches."""
    learning_rate_multiplier: Annotated[FloatParameter, _within_limits("learning_rate_multiplier")] = "auto"
    """Times the base model's pre-training learning rate gives the peak learning rate."""
    prompt_loss_weight: Annotated[FloatParameter, _within_limits("prompt_loss_weight")] = "auto"
    """Weight of prompt tokens in the training loss; completion tokens weigh 1. Validation ignores it."""
    dropout: Annotated[FloatParameter, _within_limits("dropout")] = "auto"
    """LoRA: on the adapters' inputs. Full: every dropout that the architecture has."""
    weight_decay: Annotated[FloatParameter, _within_limits("weight_decay")] = "auto"
    """Decoupled (AdamW); not on norms and biases."""
    lr_schedule: ScheduleParameter = "auto"
    """Shape of the learning rate after warm-up."""
    warmup_fraction: Annotated[FloatParameter, _within_limits("warmup_fraction")] = "auto"
    """Part of the trial's steps over which the learning rate rises linearly from zero."""
    frozen_layers: Annotated[IntParameter, _within_limits("frozen_layers")] = "auto"
    """The lowest k blocks (and the embeddings) are not trained."""
    layer_lr_decay: Annotated[FloatParameter, _within_limits("layer_lr_decay")] = "auto"
    """Learning rate multiplier per layer going down: early layers learn slower than late ones."""

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        conditional = self.conditions()
        for name, condition in conditional.items():
            named = names_in(condition)
            for other in sorted((named | self._behind(named)) & {*conditional, name}):
                itself = "itself" if other == name else f"'{other}', which has a `when` of its own"
                through = "" if other in named else f", through {' and '.join(sorted(named & AFTER_BATCH_SIZE))}"
                raise fault_at(f"{name}.when", f"it depends on {itself}{through}; it may name any other parameter")
        return self

    def _behind(self, named: Collection[str]) -> frozenset[str]:
        """The parameters that decide others which a condition names."""
        given = set[str]() if self.learning_rate_multiplier == "auto" else {"learning_rate_multiplier"}
        return frozenset({"batch_size"} if (AFTER_BATCH_SIZE - given) & set(named) else ())

    def conditions(self) -> dict[str, str]:
        """The parameters that vary only under a condition, and the condition."""
        return {name: parameter.when for name, parameter in self.varying().items() if parameter.when is not None}

    def varying(self) -> dict[str, Varying]:
        """The parameters that the sampler draws, in the order of the table."""
        return {name: value for name, value in self if isinstance(value, get_args(Varying))}

    def values(self, points: int | None = None) -> dict[str, tuple[Value, ...]] | None:
        """The values that each varying parameter takes; None when a range without steps is not cut into `points`."""
        found = {name: parameter.values(points) for name, parameter in self.varying().items()}
        known = {name: values for name, values in found.items() if values is not None}
        return known if len(known) == len(found) else None

    def size(self, points: int | None = None) -> float:
        """How many points there are, before conditions and requirements; infinitely many unless ranges are cut."""
        values = self.values(points)
        return math.inf if values is None else math.prod(map(len, values.values()))

    def fixed(self) -> Params:
        """The parameters with one given value."""
        return {name: value for name, value in self if isinstance(value, Value) and value != "auto"}

    def as_numbers(self, params: Params) -> Params:
        """The params with numbers that were written as text (YAML reads `1e-4` so) made numbers."""
        varying = self.varying()
        return {
            name: float(value) if isinstance(value, str) and _is_number(value) and name in varying else value
            for name, value in params.items()
        }

    def faults(self, params: Params) -> Iterator[str]:
        """What is wrong with params that a person wrote: unknown names, values outside the space."""
        varying = self.varying()
        for name, value in params.items():
            if name not in varying:
                yield f"'{name}' does not vary in this search space (varying: {', '.join(varying) or 'nothing'})"
            elif not varying[name].contains(value):
                yield f"{name} = {value!r} lies outside its part of the search space"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
