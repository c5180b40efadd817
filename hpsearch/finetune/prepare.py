"""What the trials of a study share: the loaded base model, the tokenised data and the baseline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from hpsearch.basemodel import describe
from hpsearch.dataset import Split, fingerprint, load
from hpsearch.errors import InvalidDataset, InvalidSpec, UnsupportedModel
from hpsearch.finetune.evaluate import Evaluation, Reader, evaluate, evaluation_contract
from hpsearch.finetune.lora import AdaptedLinear, adapt
from hpsearch.finetune.model import LoadedModel, load_model
from hpsearch.finetune.packing import longest_plain
from hpsearch.finetune.precision import computes_in
from hpsearch.finetune.rendering import TemplateMode
from hpsearch.finetune.step import in_less_memory
from hpsearch.finetune.token_cache import TokenCache, token_key
from hpsearch.finetune.tokenised import TokenisedData, TokenisedSplit
from hpsearch.finetune.tokens import tokenise, tokenizer_fingerprint
from hpsearch.results import Report
from hpsearch.spec.finetune import FinetuneConfig, ModelSpec

TOKEN_BUDGETS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a training micro-batch, by kind of device; halved when memory runs out. More is no faster on a CPU."""

EVALUATION_BUDGETS = {"cpu": 2048, "cuda": 65536}
"""The same for evaluation, which keeps no activations."""


@dataclass(frozen=True, eq=False)
class Base:
    """A base model on a device, loaded once however many studies use it."""

    loaded: LoadedModel
    layers: dict[str, AdaptedLinear]
    """Its adaptable layers; empty for full fine-tunes."""


_bases: WeakValueDictionary[tuple[str, ...], Base] = WeakValueDictionary()


def is_loaded(spec: ModelSpec, device: str) -> bool:
    """Whether the base model is on the device already."""
    facts = describe(spec.base, spec.revision)
    return (facts.path, facts.fingerprint, spec.method, device) in _bases


def load_base(spec: ModelSpec, device: str) -> Base:
    """The base model, which stays loaded as long as anything holds it; only one thread may train on it.

    Raises:
        InvalidInput: As `model.load_model`.
    """
    facts = describe(spec.base, spec.revision)
    key = (facts.path, facts.fingerprint, spec.method, device)
    base = _bases.get(key)
    if base is None:
        loaded = load_model(spec, torch.device(device), facts)
        base = Base(loaded, adapt(loaded.model, loaded.anatomy) if spec.method == "lora" else {})
        _bases[key] = base
    return base


@dataclass(frozen=True)
class Prepared:
    """One base model on one device, with the data of a study. Nothing in it depends on hyperparameters."""

    base: Base
    loaded: LoadedModel
    """The base's, as this data is read."""
    train: TokenisedSplit
    validation: TokenisedSplit
    baseline: Report
    """Report number 0 of every trial: the untouched base model, at exposure 0."""
    evaluation_contract: str
    token_budget: int
    evaluation_budget: int
    warnings: tuple[str, ...] = ()
    """What a person should know of the data: examples that were cut or left out."""


def prepared_key(config: FinetuneConfig) -> str:
    """Equal keys can share one `Prepared`: same base model, method and data files (by path, size and time)."""
    data = config.data.unsealed(None)  # what is tested in the end is read then
    terms: list[object] = [config.model.base, config.model.revision, config.model.method, data.model_dump()]
    for path in data.files.values():
        if Path(path).is_file():
            stat = Path(path).stat()
            terms.append([stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(terms).encode()).hexdigest()


def prepare(
    config: FinetuneConfig,
    device: str = "cpu",
    cache: Path | None = None,
    goes_on: Callable[[], bool] = lambda: True,
) -> Prepared:
    """Load the model, tokenise the data, evaluate the baseline.

    Args:
        config: Of any trial of the study.
        device: As torch names it: `cpu`, `cuda:0`.
        cache: Folder of tokenised data that workers share; None to tokenise in any case.
        goes_on: Whether somebody still waits for it: a baseline over a large validation split may take long.

    Raises:
        InvalidInput: The model or the data can't be used; the error's `field` says which part of the spec.
        OutOfMemory: Not even a single sequence of the validation split can be evaluated.
        Abandoned: Nobody waits for it any more.
    """
    data = config.data.unsealed(None)
    examples = load(data) if cache is None else None  # what is wrong with them is found before the model loads
    base = load_base(config.model, device)
    loaded = base.loaded
    max_length = longest(config, loaded)
    _check_positions(loaded, max_length)
    if max_length > longest_plain(loaded.model):
        loaded = dataclasses.replace(loaded, anatomy=dataclasses.replace(loaded.anatomy, plain=False, packs=False))

    def make() -> TokenisedData:
        return _tokenised(examples or load(data), loaded.tokenizer, max_length, config.data.chat_template)

    def key() -> str | None:
        return token_key(data, loaded.tokenizer, max_length)

    tokens = make() if cache is None else TokenCache(cache).get(key, make)
    train, validation = tokens.train, tokens.validation
    for split, name in ((train, "training"), (validation, "validation")):
        if not split.examples:
            text = f"no {name} example has any completion left within {max_length} tokens: raise data.max_length"
            raise InvalidDataset(text, "data.max_length")
        check_vocabulary(loaded, split)
    contract = evaluation_contract(
        validation=tokens.validation_fingerprint,
        model=loaded.facts.fingerprint,
        tokenizer=tokenizer_fingerprint(loaded.tokenizer),
        max_length=max_length,
        chat_template=config.data.chat_template,
        precision=_precision(loaded),
    )
    kind = loaded.device.type
    (baseline,), budget = in_less_memory(
        lambda budget: evaluate(Reader(loaded.model), loaded.anatomy, validation.examples, budget, goes_on),
        EVALUATION_BUDGETS.get(kind, EVALUATION_BUDGETS["cpu"]),
    )
    if not math.isfinite(baseline.loss):
        raise UnsupportedModel(f"{config.model.base} has no finite loss even before training", "model.base")
    return Prepared(
        base,
        loaded,
        train,
        validation,
        as_report(baseline, exposure=0, epoch=0.0),
        contract,
        TOKEN_BUDGETS.get(kind, TOKEN_BUDGETS["cpu"]),
        budget,
        _losses(config, tokens, max_length),
    )


def _precision(loaded: LoadedModel) -> str:
    """Of a loss, in words: what its products, the base's weights and the logits are."""
    products, weights = (
        str(dtype).removeprefix("torch.") for dtype in (computes_in(loaded.device), loaded.model.dtype)
    )
    if products == weights == "float32":
        return products
    return f"{products}, weights in {weights}, logits in {'float32' if loaded.anatomy.widens else products}"


def longest(config: FinetuneConfig, loaded: LoadedModel) -> int:
    """Tokens that are read of an example."""
    return min(config.data.max_length, loaded.facts.max_positions or config.data.max_length)


def _check_positions(loaded: LoadedModel, max_length: int) -> None:
    """Raise InvalidSpec where a model scales its positions by the longest sequence of a pass.

    A trial's losses would then depend on what else is read with it.
    """
    config = loaded.model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # one, or one for each kind of layer
    for each in kinds:
        if each.get("rope_type") not in ("longrope", "dynamic"):
            continue
        original = each.get("original_max_position_embeddings") or config.max_position_embeddings
        if max_length > original:
            raise InvalidSpec(
                f"{loaded.facts.path} rescales its positions beyond {original} tokens by the longest sequence of a "
                f"pass, so trials could not be compared; set data.max_length to at most {original}",
                "data.max_length",
            )


def check_vocabulary(loaded: LoadedModel, split: TokenisedSplit) -> None:
    """Raise UnsupportedModel for a token that the model has no embedding of.

    On a GPU the look-up would not fail as such: it leaves a process in which every later call fails.
    """
    largest, known = int(split.ids.max()), loaded.model.get_input_embeddings().num_embeddings
    if largest >= known:
        text = loaded.tokenizer.convert_ids_to_tokens(largest)
        raise UnsupportedModel(
            f"the tokenizer of {loaded.facts.path} knows more tokens than its model: {text!r} is number {largest}, and "
            f"the model has {known} embeddings; save the model with resize_token_embeddings",
            "model.base",
        )


def _tokenised(examples: Split, tokenizer: Any, max_length: int, mode: TemplateMode) -> TokenisedData:
    return TokenisedData(
        tokenise(examples.train, tokenizer, max_length, mode, "data.train"),
        tokenise(examples.validation, tokenizer, max_length, mode, "data.validation"),
        fingerprint(examples.validation),
    )


def _losses(config: FinetuneConfig, tokens: TokenisedData, max_length: int) -> tuple[str, ...]:
    """What is not learned from or not evaluated on, a sentence for each split."""
    hint = "raise data.max_length" if max_length == config.data.max_length else f"{config.model.base} reads no more"
    sentences = []
    for field, split in (("data.train", tokens.train), ("data.validation", tokens.validation)):
        given, parts = f"{split.given:,} examples", []
        if split.truncated:
            part = split.tokens_lost / (split.tokens_lost + len(split.ids))
            parts += [f"{split.truncated:,} of {given} had more than {max_length:,} tokens"]
            parts += [f"{split.tokens_lost:,} tokens ({part:.1%}) were lost"]
        if split.left_out:
            parts += [f"{split.left_out:,} of {given} had no completion left and were not used"]
        if parts:
            sentences.append(f"{field}: {'; '.join(parts)}; {hint}")
    return tuple(sentences)


def as_report(evaluation: Evaluation, exposure: int, epoch: float) -> Report:
    """An evaluation as a report, before anything was trained."""
    return Report(
        exposure=exposure,
        epoch=epoch,
        validation_loss=evaluation.loss,
        validation_bits_per_byte=evaluation.bits_per_byte,
        validation_token_accuracy=evaluation.token_accuracy,
        validation_prompt_loss=evaluation.prompt_loss,
    )
