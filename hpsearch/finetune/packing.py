"""Rows that hold several sequences one after the other, so that nothing is padded.

Every token-wise part of a model (embeddings, norms, linear layers) runs over all tokens at once; positions start again
with each sequence; and attention, the only part in which tokens meet, takes the sequences apart. Sequences of equal
length that lie side by side share one attention call. As "padding-free" batches in the field, without a kernel of
their own: on a CPU a call per length costs less than padding does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

ATTENTION = "hpsearch_packed"
"""The name under which transformers knows `packed_attention`."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of attention that are plain for sequences within the sliding window."""

_lengths: ContextVar[Sequence[int]] = ContextVar("lengths", default=())


def can_pack(model: Any) -> bool:
    """Whether a model's attention can be taken apart: it is plain or sliding, and goes through PyTorch's own."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return config._attn_implementation == "sdpa" and set(kinds) <= KNOWN_LAYERS


def longest_packed(model: Any) -> float:
    """Tokens of a sequence up to which attention needs no mask but the causal one: the sliding window, if there is one.

    Some models know their window in the mask only, which a packed row does without.
    """
    return getattr(model.config.get_text_config(), "sliding_window", None) or math.inf


@contextmanager
def packed(model: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Inside, the one row that the model reads holds sequences of these lengths; without any, rows are single ones."""
    if not lengths:
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # A name without a mask function: transformers then makes no mask, which would be as large as the row squared.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = ATTENTION
    outer = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(outer)
        config._attn_implementation = usual


def lengths_read() -> Sequence[int]:
    """Of the sequences in the row that is being read; none outside of `packed`."""
    return _lengths.get()


def positions(lengths: Sequence[int]) -> Tensor:
    """0, 1, ... anew for each sequence: int64, [1, N]."""
    return torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)


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

    runs = [(length, len(list(same))) for length, same in itertools.groupby(lengths_read())]
    sizes = [length * count for length, count in runs]
    outputs = []
    parts = (torch.split(each, sizes, dim=2) for each in (query, key, value))
    for (length, count), *tensors in zip(runs, *parts, strict=True):
        rows = [tensor.unflatten(2, (count, length)).squeeze(0).transpose(0, 1) for tensor in tensors]
        output, _ = sdpa_attention_forward(module, *rows, None, **options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None
