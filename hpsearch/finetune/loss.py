"""The training loss: sum(w * nll) / sum(w) over one optimizer batch, exact under any micro-batching.

w is 1 on completion tokens, the prompt loss weight on prompt tokens and 0 on padding. The normaliser is known before
the first micro-batch runs, so the parts add up to the whole. All sums are float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hpsearch.finetune.batches import MicroBatch
from hpsearch.finetune.model import Anatomy, hidden_states
from hpsearch.finetune.packing import packed, padded
from hpsearch.finetune.precision import wide_logits
from hpsearch.finetune.tokenised import TokenisedExample

LARGEST_LOGITS = 2**27
"""Elements of logits held at a time (512 MiB): a large vocabulary's are computed in chunks."""


def total_weight(examples: Sequence[TokenisedExample], prompt_loss_weight: float) -> float:
    """sum(w) of an optimizer batch."""
    completion = sum(example.completion_tokens for example in examples)
    prompt = sum(example.prompt_tokens for example in examples)
    return completion + prompt_loss_weight * prompt


def weighted_nll(model: Any, anatomy: Anatomy, batch: MicroBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum(weights * nll) of a micro-batch, a scalar with a gradient, and the nll of each prediction, without one.

    Args:
        model: On its device.
        anatomy: Its anatomy.
        batch: With M predictions.
        weights: [M]

    Returns:
        Both float32, in nats.
    """
    if not anatomy.splits:
        nll = F.cross_entropy(_logits(model, anatomy, batch).float(), batch.targets, reduction="none")
        return (nll * weights).sum(), nll.detach()
    head = model.get_output_embeddings()
    return _head_nll(_states(model, anatomy, batch), head.weight, getattr(head, "bias", None), batch.targets, weights)


def scores(model: Any, anatomy: Anatomy, batch: MicroBatch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(nll, whether the target was the most likely token, whether it is a completion token), chunk by chunk, each [m].

    For evaluation: call it without gradients.
    """
    if not anatomy.splits:
        yield (*_scored(_logits(model, anatomy, batch), batch.targets), batch.completion)
        return
    head = model.get_output_embeddings()
    rows = _rows_at_a_time(head.weight)
    parts = (torch.split(each, rows) for each in (_states(model, anatomy, batch), batch.targets, batch.completion))
    for chunk, targets, completion in zip(*parts, strict=True):
        logits = wide_logits(head, chunk) if anatomy.widens else head(chunk)
        yield (*_scored(logits, targets), completion)


def _reading(model: Any, anatomy: Anatomy, batch: MicroBatch) -> AbstractContextManager[None]:
    if batch.groups:
        return packed(model, batch.groups)
    return padded(model) if anatomy.plain else nullcontext()


def _logits(model: Any, anatomy: Anatomy, batch: MicroBatch) -> Tensor:
    """[M, V]: at the places that count, for a model whose head can't be applied by itself."""
    placed = {} if batch.positions is None else {"position_ids": batch.positions}
    with _reading(model, anatomy, batch):
        logits: Tensor = model(input_ids=batch.ids, use_cache=False, **placed).logits
    return logits.flatten(0, 1).index_select(0, batch.places)


def _states(model: Any, anatomy: Anatomy, batch: MicroBatch) -> Tensor:
    """[M, H]: the last hidden states at the places that count."""
    with _reading(model, anatomy, batch):
        states = hidden_states(model, batch.ids, batch.positions)
    return states.flatten(0, 1).index_select(0, batch.places)


class _HeadNLL(torch.autograd.Function):
    """sum(w * nll) of the output head and its gradient, which is softmax minus one-hot, in the same pass.

    Logits exist in chunks of rows, once, and are overwritten by their gradient: neither kept for the backward pass nor
    computed again for it. (Hsu et al. 2024, https://arxiv.org/abs/2410.10989, section 3.2, for the chunks.)
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States [M, H], weight [V, H], bias [V], targets and weights [M] -> a float32 scalar, and nll [M]."""
        wanted_states, wanted_weight, wanted_bias = ctx.needs_input_grad[:3]
        nll = torch.empty(len(states), dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
        states_gradient = torch.empty_like(states) if wanted_states else None
        weight_gradient = torch.zeros_like(weight) if wanted_weight else None
        bias_gradient = torch.zeros_like(bias) if wanted_bias and bias is not None else None
        for start in range(0, len(states), _rows_at_a_time(weight)):
            rows = slice(start, start + _rows_at_a_time(weight))
            logits = F.linear(states[rows], weight, bias)
            gradient = logits.to(nll.dtype)
            places, counts = targets[rows].unsqueeze(1), weights[rows].unsqueeze(1)
            largest, target = gradient.amax(-1, keepdim=True), gradient.gather(1, places)
            norm = gradient.sub_(largest).exp_().sum(-1, keepdim=True)
            nll[rows] = (norm.log() + largest - target).squeeze(1)
            gradient.mul_(counts / norm).scatter_add_(1, places, -counts)
            if states_gradient is not None:
                states_gradient[rows] = gradient @ weight
            if weight_gradient is not None:
                weight_gradient += gradient.t() @ states[rows]
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
        ctx.gradients = states_gradient, weight_gradient, bias_gradient
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scaled by the gradient of the sum."""
        own = tuple(None if each is None else each * gradients[0].to(each.dtype) for each in ctx.gradients)
        return (*own, None, None)


_head_nll: Callable[..., tuple[Tensor, Tensor]] = _HeadNLL.apply  # torch leaves `apply` untyped


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets


def _rows_at_a_time(head: Tensor) -> int:
    return max(1, LARGEST_LOGITS // len(head))
