"""What trials take of a device's memory: measured there, so that none is begun that does not fit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor

from hpsearch.basemodel import describe
from hpsearch.finetune.lora import targets
from hpsearch.finetune.member import Member
from hpsearch.finetune.optimizer import is_trained
from hpsearch.finetune.precision import computes_in
from hpsearch.finetune.prepare import Base, Prepared, is_loaded
from hpsearch.finetune.step import Turn, forward_only
from hpsearch.finetune.tokenised import TokenisedExample
from hpsearch.spec.finetune import FinetuneConfig

HEAD_ROOM = 0.3
"""Part of the free memory that is left alone: for what a backward pass needs for a moment, and for fragments."""

PROBED_TOKENS = 256
"""Of a forward pass that shows what is kept for each."""

_FLOAT = 4

_measured: WeakKeyDictionary[Base, dict[tuple[object, ...], float]] = WeakKeyDictionary()


def member_bytes(config: FinetuneConfig, prepared: Prepared) -> int:
    """What one more member holds: its weights, their gradients, AdamW's two moments, and the whole model of a full one.

    On a GPU with bfloat16, a full one's passes hold a copy of its weights in that besides.

    Raises:
        InvalidSpec: An adapter's target does not exist.
    """
    anatomy, frozen = prepared.loaded.anatomy, config.hyperparameters.frozen_layers
    if config.model.method == "lora":
        layers, lora = prepared.base.layers, config.model.lora
        adapted = [layers[name] for name in targets(layers, lora) if is_trained(anatomy, name, frozen)]
        return 4 * _FLOAT * lora.rank * sum(int(layer.in_features + layer.out_features) for layer in adapted)
    parameters: dict[str, int] = {
        name: parameter.numel() for name, parameter in prepared.loaded.model.named_parameters()
    }
    trained = sum(size for name, size in parameters.items() if is_trained(anatomy, name, frozen))
    return _FLOAT * (sum(parameters.values()) + 3 * trained) + _copied(prepared.loaded.device) * trained


def free_bytes(device: torch.device) -> int:
    """What could be taken now: of a GPU its free memory and what PyTorch holds of it unused; else the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available)


def loading_bytes(config: FinetuneConfig, device: str) -> int:
    """What loading the config's base model takes, and the first whole model trained from it; nothing if it is there.

    Args:
        config: Of a trial.
        device: As torch names it.

    Raises:
        InvalidInput: As `describe`.
    """
    model, copied = config.model, _copied(torch.device(device))
    parameters = describe(model.base, model.revision).parameters
    each = 0
    if not is_loaded(model, device):
        each += copied if copied and model.method == "lora" else _FLOAT
    if model.method == "full":
        each += 4 * _FLOAT + copied
    return each * parameters


def _copied(device: torch.device) -> int:
    """Bytes of a float32 weight's copy for products of a lower precision; 0 where they are computed in float32."""
    if device.type == "cuda" and not torch.cuda.is_available():  # loading says why
        return 0
    dtype = computes_in(device)
    return 0 if dtype is torch.float32 else dtype.itemsize


def has_room(needed: int, device: str, share: float = 1.0) -> bool:
    """Whether so many bytes are free, and head-room besides."""
    return needed <= share * (1 - HEAD_ROOM) * free_bytes(torch.device(device))


def fits(config: FinetuneConfig, prepared: Prepared, share: float, others: Iterable[Member] = ()) -> bool:
    """Whether there is room for one more member, with a micro-batch's activations besides.

    Args:
        config: Of the member.
        prepared: What it trains on.
        share: Part of the free memory that this process may take.
        others: Who trains there already, or is about to.
    """
    left = share * free_bytes(prepared.loaded.device) - sum(map(awaited_bytes, others))
    return member_bytes(config, prepared) <= (1 - HEAD_ROOM) * left


def limit_tokens(member: Member, share: float, others: Iterable[Member] = ()) -> None:
    """Let no micro-batch of a fresh member keep more activations than there is room for.

    Args:
        member: That has made no step yet; a snapshot is restored afterwards.
        share: Part of the free memory that this process may take.
        others: As for `fits`.
    """
    device = member.prepared.loaded.device
    left = share * free_bytes(device) - sum(map(awaited_bytes, [member, *others]))
    if member.config.model.method == "full":
        left -= _copied(device) * _elements(member)
    affordable = int((1 - HEAD_ROOM) * left / kept_bytes_per_token(member))
    member.token_budget = max(1, min(member.token_budget, affordable))


def awaited_bytes(member: Member) -> int:
    """What a member takes in its next step, to hold it from then on: gradients and AdamW's moments.

    Its weights are there, and so are an adapter's gradients.
    """
    gradients = sum(parameter.nbytes for parameter in member.weights.named.values() if parameter.grad is None)
    return gradients + (0 if member.steps else 2 * _FLOAT * _elements(member))


def _elements(member: Member) -> int:
    """Of what it trains."""
    return sum(parameter.numel() for parameter in member.weights.named.values())


def kept_bytes_per_token(member: Member) -> float:
    """What a forward pass keeps for the backward pass, measured once for each way of training a base model."""
    config, prepared = member.config, member.prepared
    chosen, model = config.hyperparameters, config.model
    # Dropout keeps a byte for each input; below the lowest trained layer nothing is kept.
    way = model.method, model.activation_checkpointing, model.lora, chosen.frozen_layers, chosen.dropout > 0
    known = _measured.setdefault(prepared.base, {})
    if way not in known:
        turn = _few(member.turn())
        known[way] = _kept_bytes(prepared, turn) / turn.tokens
        if config.model.activation_checkpointing:  # and of one block at a time, all that is computed again
            keeping = copy.copy(turn.weights)
            plain = config.model.model_copy(update={"activation_checkpointing": False})
            keeping.config = config.model_copy(update={"model": plain})
            everything = _kept_bytes(prepared, replace(turn, weights=keeping)) / turn.tokens
            known[way] += everything / prepared.loaded.anatomy.layers
    return known[way]


def _few(turn: Turn) -> Turn:
    """The first examples of a turn, one at least."""
    examples: list[TokenisedExample] = []
    for example in turn.examples:
        if examples and sum(map(len, examples)) + len(example) > PROBED_TOKENS:
            break
        examples.append(example)
    return replace(turn, examples=examples)


def _kept_bytes(prepared: Prepared, turn: Turn) -> int:
    constant = {tensor.untyped_storage().data_ptr() for tensor in prepared.loaded.model.state_dict().values()}
    constant |= {parameter.untyped_storage().data_ptr() for parameter in turn.weights.named.values()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constant and not _is_copied_weight(tensor):
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = forward_only(prepared.loaded, turn)  # while it lives, no storage is reused
    del kept
    return sum(sizes.values())


def _is_copied_weight(tensor: Tensor) -> bool:
    """Whether it is autocast's copy of a parameter, or a view of that: one for a pass, however many tokens it reads."""
    made = (tensor._base if tensor._base is not None else tensor).grad_fn
    if made is None or made.name() != "ToCopyBackward0":
        return False
    return all(before is not None and before.name().endswith("AccumulateGrad") for before, _ in made.next_functions)
