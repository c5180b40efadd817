"""How rows are read by attention: several sequences one after the other, so that nothing is padded, or padded ones.

Every token-wise part of a model (embeddings, norms, linear layers) runs over all tokens at once; positions start again
with each sequence; and attention, the only part in which tokens meet, takes the sequences apart. Sequences of equal
length that lie side by side share one attention call. As "padding-free" batches in the field, without a kernel of
their own: on a CPU a call per length costs less than padding does.

Sequences that begin alike may share their beginning: it lies in the row once, before what each has of its own.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PACKED, PADDED = "hpsearch_packed", "hpsearch_padded"
"""The names under which transformers knows the attention of either. To names without a mask function of their own it
gives no mask: a packed row's would be as large as the row squared, and to find out whether a padded one's is needed, it
waits for the device in each pass."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of attention that are plain for sequences within the sliding window."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of a row that begin alike, or with nothing in common."""

    shared: int
    """Tokens that all of them begin with."""
    own: tuple[int, ...]
    """Tokens that follow in each."""


_groups: ContextVar[Sequence[Group]] = ContextVar("groups", default=())


def is_plain(model: Any) -> bool:
    """Whether a model's attention needs no mask but the causal one, and can be taken apart.

    So it is where it is plain or sliding, for rows of no more than `longest_plain`, and goes through PyTorch's own.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return config._attn_implementation == "sdpa" and set(kinds) <= KNOWN_LAYERS


def longest_plain(model: Any) -> float:
    """Tokens of a sequence up to which attention needs no mask but the causal one: the sliding window, if there is one.

    Some models know their window in the mask only.
    """
    return getattr(model.config.get_text_config(), "sliding_window", None) or math.inf


@contextmanager
def packed(model: Any, groups: Sequence[Group]) -> Iterator[None]:
    """Inside, the one row that the model reads holds these sequences; without any, rows are single ones."""
    if not groups:
        yield
        return
    outer = _groups.set(groups)
    try:
        with _attending(model, PACKED, packed_attention):
            yield
    finally:
        _groups.reset(outer)


@contextmanager
def padded(model: Any) -> Iterator[None]:
    """Inside, a model whose attention is plain reads rows that are padded at the right, each a sequence."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with _attending(model, PADDED, sdpa_attention_forward):
        yield


@contextmanager
def _attending(model: Any, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = usual


def groups_read() -> Sequence[Group]:
    """Of the row that is being read; none outside of `packed`."""
    return _groups.get()


def positions(groups: Sequence[Group]) -> Tensor:
    """0, 1, ... anew for each sequence, from where what it shares ends: int64, [1, N]."""
    runs = [run for group in groups for run in _runs(group)]
    return torch.cat([torch.arange(first, first + length).repeat(count) for first, length, count in runs]).unsqueeze(0)


def _runs(group: Group) -> Iterator[tuple[int, int, int]]:
    """(first position, length, how many) of what lies side by side and is equally long, as a row has it."""
    if group.shared:
        yield 0, group.shared, 1
    for length, same in itertools.groupby(group.own):
        if length:
            yield group.shared, length, len(list(same))


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001 - part of the signature
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, as transformers calls it.

    Args:
        module: The attention layer.
        query: [1, heads, N, D]; key and value may have fewer heads.
        key: As the query.
        value: As the query.
        attention_mask: Never there.
        options: Dropout and scaling, as the layer has them.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    runs = [run for group in groups_read() for run in _runs(group)]
    sizes = [length * count for _, length, count in runs]
    outputs = []
    beginning: list[Tensor] = []  # key and value of the group's
    parts = (torch.split(each, sizes, dim=2) for each in (query, key, value))
    for (first, length, count), *tensors in zip(runs, *parts, strict=True):
        own, *seen = [tensor.unflatten(2, (count, length)).squeeze(0).transpose(0, 1) for tensor in tensors]
        if first:
            together = zip(beginning, seen, strict=True)
            seen = [torch.cat([one.expand(count, -1, -1, -1), two], dim=2) for one, two in together]
            mask = _seen(first, length, query.device)
        else:
            beginning, mask = seen, None
        output, _ = sdpa_attention_forward(module, own, *seen, mask, **options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


@functools.lru_cache(maxsize=32)  # of one pass: every layer asks for the same ones
def _seen(shared: int, own: int, device: torch.device) -> Tensor:
    """What a sequence's own tokens look at: all shared ones, and own ones up to themselves; bool, [1, 1, own, all]."""
    with torch.inference_mode(mode=False):  # usable anywhere, whoever asked first
        return torch.ones(1, 1, own, shared + own, dtype=torch.bool, device=device).tril_(shared)
