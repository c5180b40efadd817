"""What `auto` means: provider-style defaults, and the learning rate that a multiplier multiplies.

Sources. Epochs 4, batch size 0.2 % of the examples (1 to 256), multiplier 0.05 / 0.1 / 0.2 growing with
the batch size and prompt loss weight 0.01 are what OpenAI documented for its fine-tunes endpoint. LoRA's
best learning rate is about ten times that of a full fine-tune and hardly depends on the rank (Schulman et
al. 2025, "LoRA Without Regret"). Pre-training learning rates by size: GPT-3, table 2.1
(https://arxiv.org/abs/2005.14165); families: their papers or model cards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from hpsearch.spec.expression import holds, names_in
from hpsearch.spec.finetune import FinetuneConfig, Hyperparameters
from hpsearch.spec.sampler import GridSpec
from hpsearch.spec.space import Params, Value, Varying
from hpsearch.spec.study import StudySpec

GPT3_LEARNING_RATES = (
    (125e6, 6.0e-4),
    (350e6, 3.0e-4),
    (760e6, 2.5e-4),
    (1.3e9, 2.0e-4),
    (2.7e9, 1.6e-4),
    (6.7e9, 1.2e-4),
    (13e9, 1.0e-4),
)
"""(parameters, peak pre-training learning rate), GPT-3 paper, table 2.1."""

FAMILY_LEARNING_RATES: dict[str, tuple[tuple[float, float], ...]] = {
    # Touvron et al. 2023 (Llama 2), table 1, and Dubey et al. 2024 (Llama 3), table 3; below 7B as GPT-3.
    "llama": (*GPT3_LEARNING_RATES[:5], (6.7e9, 3.0e-4), (13e9, 3.0e-4), (33e9, 1.5e-4), (70e9, 1.5e-4), (405e9, 8e-5)),
    # Biderman et al. 2023 (Pythia), table 1.
    "gpt_neox": (
        (70e6, 1e-3),
        (160e6, 6e-4),
        (410e6, 3e-4),
        (1e9, 3e-4),
        (1.4e9, 2e-4),
        (2.8e9, 1.6e-4),
        (12e9, 1.2e-4),
    ),
    # Zhang et al. 2022 (OPT), table 1.
    "opt": ((125e6, 6e-4), (350e6, 3e-4), (1.3e9, 2e-4), (2.7e9, 1.6e-4), (6.7e9, 1.2e-4), (13e9, 1e-4), (66e9, 8e-5)),
    # Le Scao et al. 2022 (BLOOM), table 3.
    "bloom": ((560e6, 3e-4), (1.1e9, 2.5e-4), (1.7e9, 2e-4), (3e9, 1.6e-4), (7.1e9, 1.2e-4), (176e9, 6e-5)),
}
"""By `model_type` of the model's config.json, where a paper gives better figures than the size alone."""

LORA_FACTOR = 10.0


def base_learning_rate(model_type: str, parameters: int) -> float:
    """Peak pre-training learning rate of a base model with so many parameters.

    Interpolated in log(parameters) between the rows of its family's table, or GPT-3's; constant beyond.
    """
    table = FAMILY_LEARNING_RATES.get(model_type, GPT3_LEARNING_RATES)
    if parameters <= table[0][0]:
        return table[0][1]
    for (smaller, rate_below), (larger, rate_above) in itertools.pairwise(table):
        if parameters <= larger:
            part = math.log(parameters / smaller) / math.log(larger / smaller)
            return math.exp((1 - part) * math.log(rate_below) + part * math.log(rate_above))
    return table[-1][1]


def default_hyperparameters(examples: int, method: str, batch_size: int | None = None) -> Hyperparameters:
    """The provider-style defaults for a training set of this size; a given batch size moves the multiplier."""
    batch = batch_size or min(max(round(0.002 * examples), 1), 256)
    multiplier = 0.05 if batch <= 8 else 0.1 if batch <= 64 else 0.2
    return Hyperparameters(
        epochs=_default_epochs(examples),
        batch_size=batch,
        learning_rate_multiplier=multiplier * (LORA_FACTOR if method == "lora" else 1.0),
        prompt_loss_weight=0.01,
        dropout=0.0,
        weight_decay=0.0,
        lr_schedule="linear",
        warmup_fraction=0.0,
        frozen_layers=0,
        layer_lr_decay=1.0,
    )


def _default_epochs(examples: int) -> int:
    if examples < 25:
        return min(25, math.ceil(100 / max(examples, 1)))
    return 4 if examples <= 100_000 else 2 if examples <= 250_000 else 1


def hyperparameters(spec: StudySpec, params: Params, examples: int) -> Hyperparameters:
    """All ten parameters of a point: what was drawn, what is fixed, and `auto` for the rest.

    Epochs that vary but were not drawn because they are nearly free are the most that the requirements allow.
    """
    given: Params = {**spec.search_space.fixed(), **params}
    batch_size = given.get("batch_size")
    defaults = default_hyperparameters(examples, spec.model.method, int(batch_size) if batch_size else None)
    chosen = Hyperparameters.model_validate({**defaults.model_dump(), **given})
    if "epochs" in params or not epochs_are_free(spec, chosen, examples):
        return chosen
    values = spec.search_space.varying()["epochs"].values() or (chosen.epochs,)
    longest = (chosen.model_copy(update={"epochs": epochs}) for epochs in sorted(values, reverse=True))
    allowed = (candidate for candidate in longest if meets(spec.require, candidate, examples))
    return next(allowed, chosen.model_copy(update={"epochs": max(values)}))


def epochs_are_free(spec: StudySpec, chosen: Hyperparameters, examples: int) -> bool:
    """Whether one trial of the most epochs answers for all: nothing in its curve depends on where it ends.

    Epochs that another parameter's `when` depends on are never free.
    """
    space, conditions = spec.search_space, spec.search_space.conditions()
    if "epochs" not in space.varying() or any("epochs" in names_in(condition) for condition in conditions.values()):
        return False
    own = conditions.get("epochs")
    varies = own is None or meets([own], chosen, examples)
    return varies and chosen.lr_schedule == "constant" and chosen.warmup_fraction == 0


def meets(conditions: Iterable[str], chosen: Hyperparameters, examples: int) -> bool:
    """Whether every condition holds."""
    return first_unmet(conditions, chosen, examples) is None


def first_unmet(conditions: Iterable[str], chosen: Hyperparameters, examples: int) -> str | None:
    """The first condition that does not hold, if any."""
    names = {**chosen.model_dump(), "examples": examples, "steps": math.ceil(examples / chosen.batch_size)}
    return next((condition for condition in conditions if not holds(condition, names)), None)


def resolve(spec: StudySpec, params: Params, examples: int, model_type: str, parameters: int) -> FinetuneConfig:
    """The config of one fine-tune: what was drawn, what is fixed, and `auto` for the rest.

    Args:
        spec: The study.
        params: What the sampler drew.
        examples: Size of the training set.
        model_type: As in the base model's config.json.
        parameters: Parameters of the base model.
    """
    chosen = hyperparameters(spec, params, examples)
    base_rate = spec.model.base_learning_rate or base_learning_rate(model_type, parameters)
    return FinetuneConfig(
        model=spec.model,
        data=spec.data.unsealed(None),
        hyperparameters=chosen,
        learning_rate=base_rate * chosen.learning_rate_multiplier,
        base_learning_rate=base_rate,
        seed=spec.seed,
        reports_per_epoch=spec.objective.reports_per_epoch,
        patience=spec.objective.patience,
    )


def default_params(spec: StudySpec, examples: int) -> Params:
    """The `auto` defaults as params: for each varying parameter, its point nearest to the default."""
    defaults: dict[str, Value] = default_hyperparameters(examples, spec.model.method).model_dump()
    grid = spec.sampler.points if isinstance(spec.sampler, GridSpec) else None
    return {
        name: _nearest(parameter, defaults[name], None if grid is None else parameter.values(grid))
        for name, parameter in spec.search_space.varying().items()
    }


def _nearest(parameter: Varying, default: Value, grid: tuple[Value, ...] | None) -> Value:
    nearest: Value = parameter.nearest(default)
    if grid is None or isinstance(nearest, str):
        return nearest
    return min(grid, key=lambda value: abs(float(value) - float(nearest)))
