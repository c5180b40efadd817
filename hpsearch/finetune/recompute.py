"""Activation checkpointing: keep a block's input only, and run the block again for its gradient.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. About a third more computing, and memory for the activations of one
block instead of all. What is random in a block is drawn again as it was, so curves don't change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hpsearch.finetune.packing import lengths_read, packed


@contextmanager
def recomputing(model: Any, blocks: nn.Module, generator: torch.Generator | None = None) -> Iterator[None]:
    """Inside, forward and backward passes of the model keep no activations of its blocks.

    Args:
        model: The blocks' model.
        blocks: Its transformer blocks.
        generator: What they draw from beside the global generators, if anything.
    """
    try:
        for block in blocks.children():
            block.forward = _again(model, block.forward, generator)  # on the instance: it hides the class's own
        yield
    finally:
        for block in blocks.children():
            vars(block).pop("forward", None)


def _again(model: Any, forward: Callable[..., Any], generator: torch.Generator | None) -> Callable[..., Any]:
    """A block's forward pass that can be repeated when the backward pass asks for it."""

    def checkpointed(*inputs: Any, **named: Any) -> Any:
        lengths = lengths_read()
        before = None if generator is None else generator.get_state()
        is_first = True

        def run(*inputs: Any, **named: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return forward(*inputs, **named)
            with packed(model, lengths), _from_state(generator, before):
                return forward(*inputs, **named)

        return checkpoint(run, *inputs, use_reentrant=False, **named)

    return checkpointed


@contextmanager
def _from_state(generator: torch.Generator | None, state: torch.Tensor | None) -> Iterator[None]:
    """A generator as it was then; afterwards as it is now."""
    if generator is None or state is None:
        yield
        return
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
