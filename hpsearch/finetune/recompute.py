"""Activation checkpointing: keep a block's input only, and run the block again for its gradient.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. About a third more computing, and memory for the activations of one
block instead of all. What is random in a block is drawn again as it was, so curves don't change. (PyTorch keeps the
global generators' states; adapters' dropout has no state.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hpsearch.finetune.packing import groups_read, packed


@contextmanager
def recomputing(model: Any, blocks: nn.Module, *, draws: bool) -> Iterator[None]:
    """Inside, forward and backward passes of the model keep no activations of its blocks.

    Args:
        model: Whose blocks they are.
        blocks: A list of them.
        draws: Whether they draw from the global generators, whose states are kept for each block then.
    """
    try:
        for block in blocks.children():
            block.forward = _again(model, block.forward, draws)  # on the instance: it hides the class's own
        yield
    finally:
        for block in blocks.children():
            vars(block).pop("forward", None)


def _again(model: Any, forward: Callable[..., Any], draws: bool) -> Callable[..., Any]:
    """A block's forward pass that can be repeated when the backward pass asks for it, out of `packed` by then."""

    def checkpointed(*inputs: Any, **named: Any) -> Any:
        groups = groups_read()

        def run(*inputs: Any, **named: Any) -> Any:
            with packed(model, groups):
                return forward(*inputs, **named)

        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=draws, **named)

    return checkpointed
