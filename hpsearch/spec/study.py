"""What is asked: the study spec."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from hpsearch.spec import population
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.closed import Closed, fault_at
from hpsearch.spec.confirm import ConfirmSpec
from hpsearch.spec.data import DataSpec
from hpsearch.spec.expression import LONGEST, Condition
from hpsearch.spec.finetune import TARGETS_FIELD, ModelSpec
from hpsearch.spec.objective import ObjectiveSpec
from hpsearch.spec.pruner import AutoPrunerSpec, PopulationSpec, PrunerSpec
from hpsearch.spec.sampler import MOST_POINTS, AutoSamplerSpec, GridSpec, SamplerSpec
from hpsearch.spec.space import Params, SearchSpace
from hpsearch.spec.warm_start import WarmStartSpec

LARGEST_SPEC = 2**20
"""Bytes; what is larger is no spec."""

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"


def _explained(name: Any, check: ValidatorFunctionWrapHandler) -> str:
    """Says in words what the pattern says."""
    try:
        checked: str = check(name)
    except ValidationError:
        raise ValueError(
            "a name has 1 to 63 of lower-case letters, digits, '.', '_' and '-', the first and last a letter or digit"
        ) from None
    return checked


StudyName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=63), WrapValidator(_explained)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=100)]


_CONDITION: JsonDict = {"type": "string", "minLength": 1, "maxLength": LONGEST}
_CONDITIONS: JsonDict = {"anyOf": [_CONDITION, {"type": "array", "items": _CONDITION, "maxItems": 16}]}


def _as_list(value: Any) -> Any:
    """One condition is a list of one."""
    return [value] if isinstance(value, str) else value


EXAMPLE: JsonDict = {
    "name": "tickets",
    "model": {"base": "models/pydoc-llama", "base_learning_rate": 0.004},
    "data": {"train": "data/tickets/train.jsonl", "validation": "data/tickets/validation.jsonl"},
    "search_space": {
        "epochs": {"low": 1, "high": 3},
        "batch_size": {"choices": [4, 8, 16]},
        "learning_rate_multiplier": {"low": 0.2, "high": 5, "log": True},
    },
    "budget": {"trials": 8},
}
"""What the API's documentation shows."""


class ParallelismSpec(Closed):
    """How many trials train at once."""

    max_concurrent_trials: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """`auto` is one per device (GPU, or CPU core when there is no GPU), times `trials_per_device`."""
    trials_per_device: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Trials that share a device and its copy of the base model; `auto` is as many as it trains quicker together."""


class StudySpec(Closed):
    """One search: a base model, a dataset, what may vary, and how much may be spent."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: StudyName
    """Lower-case letters, digits, dots, dashes and underscores, at most 63. It names the study everywhere."""
    model: ModelSpec
    data: DataSpec
    search_space: SearchSpace = SearchSpace()
    objective: ObjectiveSpec = ObjectiveSpec()
    sampler: SamplerSpec = AutoSamplerSpec()
    pruner: PrunerSpec = AutoPrunerSpec()
    budget: BudgetSpec = BudgetSpec()
    parallelism: ParallelismSpec = ParallelismSpec()
    first_trials: tuple[Params, ...] = Field((), max_length=1000)
    """Params to try before the sampler's own, after the `auto` defaults; what is left out is drawn."""
    require: Annotated[
        tuple[Condition, ...], Field(max_length=16), BeforeValidator(_as_list), WithJsonSchema(_CONDITIONS)
    ] = ()
    """What every trial must meet, such as `epochs * steps <= 2000`. Names: the ten parameters, `examples` of the
    training set, `steps` of one epoch."""
    warm_start: WarmStartSpec | None = Field(None, exclude_if=lambda warm_start: warm_start is None)
    """Learn from earlier studies."""
    confirm: ConfirmSpec | None = Field(None, exclude_if=lambda confirm: confirm is None)
    """Train the best trials and the defaults again under fresh seeds, for a verdict."""
    priority: int = Field(0, ge=-100, le=100)
    """Ten points more are twice the part of the devices; in the queue, one point is a minute of waiting."""
    verify: int = Field(0, ge=0, le=100_000)
    """So many trials, the first ones, make their first steps again alone: how far their losses are apart is kept."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Makes the search and every fine-tune repeatable."""
    tags: dict[Tag, Tag] = Field(default_factory=dict, max_length=16)
    """Free labels."""
    notify: tuple[StudyName, ...] = Field((), max_length=8, exclude_if=lambda names: not names)
    """Webhooks of the service, by the names that its operator gave them: told how the study ends."""

    @model_validator(mode="after")
    def _check_something_to_search(self) -> Self:
        if not self.search_space.varying() and self.budget.trials != 1:
            raise ValueError(
                "nothing varies in search_space, so every trial would be the same: "
                "give a range or choices for at least one parameter, or set budget.trials to 1"
            )
        return self

    @field_validator("first_trials")
    @classmethod
    def _check_first_trials(cls, trials: tuple[Params, ...], info: ValidationInfo) -> tuple[Params, ...]:
        space: SearchSpace | None = info.data.get("search_space")
        if space is None:  # refused itself
            return trials
        numbers = tuple(space.as_numbers(params) for params in trials)
        for place, params in enumerate(numbers):
            for fault in space.faults(params):
                raise fault_at(str(place), fault)
        return numbers

    @model_validator(mode="after")
    def _check_warm_start(self) -> Self:
        if (
            self.warm_start is not None
            and self.warm_start.studies != "similar"
            and self.name in self.warm_start.studies
        ):
            raise fault_at("warm_start.studies", "it names the study itself, which knows its own trials anyway")
        return self

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        size = self.search_space.size(self.sampler.points) if isinstance(self.sampler, GridSpec) else 0
        if size > MOST_POINTS:
            raise ValueError(
                f"the grid has {size:,} points, and {MOST_POINTS:,} are the most: "
                "let fewer parameters vary, or lower sampler.points"
            )
        return self

    @model_validator(mode="after")
    def _check_population(self) -> Self:
        if isinstance(self.pruner, PopulationSpec):
            reports = self.objective.reports_per_epoch
            for fault in population.faults(self.pruner, self.search_space, self.sampler, self.budget, reports):
                raise ValueError(fault)
            if len(self.first_trials) >= self.pruner.population:
                raise ValueError(
                    f"pruner pbt: {len(self.first_trials)} first_trials and the defaults are more than a population of "
                    f"{self.pruner.population}; raise pruner.population"
                )
        return self

    @model_validator(mode="after")
    def _check_lora_needs_adapters(self) -> Self:
        if self.model.method == "lora" and self.model.lora.target_modules == ():
            raise fault_at(TARGETS_FIELD, "it is empty: no layer would be trained")
        return self

    def fingerprint(self) -> str:
        """SHA-256 of the spec's canonical JSON: equal specs are the same study."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
