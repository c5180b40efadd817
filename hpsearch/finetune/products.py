"""The thin products of adapters on rows of several members: one member after another, or grouped into one call.

Each member needs five for each layer and step, and each is small: what they cost is being called. Grouped products
(PyTorch's `grouped_mm`, made for mixtures of experts) take the rows of all members at once. On a CPU they gain nothing
(`benchmarks/README.md`); on a GPU the way that is quicker depends on the sizes, so it is tried out.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 16
"""Bytes: rows of what is grouped must begin at multiples of it."""

TRIES = 3


class Applied(NamedTuple):  # quicker to make than a dataclass: there is one for each member, layer and pass
    """One adapter, A [r, in] and B [out, r], on some rows of a layer's input.

    Both are quickest with r rows in memory: see `lora.Adapter`.
    """

    a: nn.Parameter
    b: nn.Parameter
    start: int
    end: int
    scale: float
    """Of the adapter and of dropout."""


def add(outputs: Tensor, inputs: Tensor, parts: Sequence[Applied]) -> list[Tensor]:
    """Add scale * B A x to each part's rows: what `add_gradients` needs besides.

    Args:
        outputs: [N, out], changed in place.
        inputs: x, [N, in], of the same precision; what is dropped is zero.
        parts: Rows of different parts don't overlap.
    """
    return (_add_grouped if _is_grouped(inputs, outputs.shape[1], parts) else _add_looped)(outputs, inputs, parts)


def add_gradients(
    of_inputs: Tensor | None, gradient: Tensor, inputs: Tensor, parts: Sequence[Applied], known: Sequence[Tensor]
) -> None:
    """Add to the gradients of each A and B, and to the inputs' (unless it is None).

    Args:
        of_inputs: [N, in], changed in place.
        gradient: Of the outputs, [N, out].
        inputs: As given to `add`.
        parts: As given to `add`.
        known: What `add` returned.
    """
    if known[-1].ndim == 3:
        _grouped_gradients(of_inputs, gradient, inputs, parts, known)
    else:
        _looped_gradients(of_inputs, gradient, inputs, parts, known)


# -- one member after another ------------------------------------------------------------------------------------------


def _add_looped(outputs: Tensor, inputs: Tensor, parts: Sequence[Applied]) -> list[Tensor]:
    known = []
    for part in parts:
        inner = _thin(inputs[part.start : part.end], _as(part.a, inputs.dtype))
        outputs[part.start : part.end].addmm_(inner, _as(part.b, inputs.dtype).t(), alpha=part.scale)
        known.append(inner)
    return known


def _looped_gradients(
    of_inputs: Tensor | None, gradient: Tensor, inputs: Tensor, parts: Sequence[Applied], known: Sequence[Tensor]
) -> None:
    for part, inner in zip(parts, known, strict=True):
        own, grown = inputs[part.start : part.end], gradient[part.start : part.end]
        inner_gradient = _thin(grown, _as(part.b, inputs.dtype).t())
        _add_product(part.a.grad, inner_gradient.t(), own, part.scale)
        _add_product(part.b.grad.t(), inner.t(), grown, part.scale)  # type: ignore[union-attr]
        if of_inputs is not None:
            of_inputs[part.start : part.end].addmm_(inner_gradient, _as(part.a, inputs.dtype), alpha=part.scale)


def _thin(rows: Tensor, narrow: Tensor) -> Tensor:
    """Rows [n, wide] times narrow [r, wide], transposed: [n, r].

    A CPU is quicker with r rows than with r columns; a GPU wants rows of aligned length.
    """
    return (narrow @ rows.t()).t() if rows.device.type == "cpu" else rows @ narrow.t()


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this precision; asking first is quicker than `to`, which does so too."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _add_product(total: Any, one: Tensor, two: Tensor, scale: float) -> None:
    """total += scale * one @ two; the total may be more precise."""
    if total.dtype == one.dtype:
        total.addmm_(one, two, alpha=scale)
    else:
        total.add_(one @ two, alpha=scale)


# -- grouped -----------------------------------------------------------------------------------------------------------


def _add_grouped(outputs: Tensor, inputs: Tensor, parts: Sequence[Applied]) -> list[Tensor]:
    ends, rank = _ends(tuple(part.end for part in parts), inputs.device), _rank(inputs.dtype, parts)
    a, b = (
        torch.stack([_padded(each, rank) for each in thin])
        for thin in ([part.a for part in parts], [part.b.t() for part in parts])
    )
    a = a.to(inputs.dtype)
    b = b.mul_(_scales(tuple(part.scale for part in parts), inputs.device)).to(inputs.dtype)
    inner = F.grouped_mm(inputs, a.transpose(1, 2), offs=ends)
    outputs += F.grouped_mm(inner, b, offs=ends)
    return [inner, a, b]


def _grouped_gradients(
    of_inputs: Tensor | None, gradient: Tensor, inputs: Tensor, parts: Sequence[Applied], known: Sequence[Tensor]
) -> None:
    inner, a, b = known
    ends, gradient = _ends(tuple(part.end for part in parts), inputs.device), gradient.contiguous()
    inner_gradient = F.grouped_mm(gradient, b.transpose(1, 2), offs=ends)  # B has the scale in it
    of_a = F.grouped_mm(inner_gradient.t(), inputs, offs=ends)
    of_b = F.grouped_mm(inner.t(), gradient, offs=ends)
    of_b = of_b * _scales(tuple(part.scale for part in parts), inputs.device)
    ranks = [len(part.a) for part in parts]
    totals: list[Any] = [*(part.a.grad for part in parts), *(part.b.grad.t() for part in parts)]  # type: ignore[union-attr]
    added = [own[:r] for each in (of_a, of_b) for own, r in zip(each, ranks, strict=True)]
    torch._foreach_add_(totals, [each.to(totals[0].dtype) for each in added])
    if of_inputs is not None:
        of_inputs += F.grouped_mm(inner_gradient, a, offs=ends)


def _padded(thin: Tensor, rank: int) -> Tensor:
    """With rows of zeros up to the rank; asking first spares a copy."""
    return thin if len(thin) == rank else F.pad(thin, (0, 0, 0, rank - len(thin)))


def _rank(dtype: torch.dtype, parts: Sequence[Applied]) -> int:
    """The largest of all, rounded up so that rows are aligned; what is added is zero."""
    step = ALIGNMENT // dtype.itemsize
    return -(-max(len(part.a) for part in parts) // step) * step


@functools.lru_cache(maxsize=256)
def _ends(ends: tuple[int, ...], device: torch.device) -> Tensor:
    """int32, [parts]: the row after each part's last."""
    with torch.inference_mode(mode=False):  # whoever asks first
        return torch.tensor(ends, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=256)
def _scales(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """float32, [parts, 1, 1]"""
    with torch.inference_mode(mode=False):  # whoever asks first
        return torch.tensor(scales, device=device).view(-1, 1, 1)


# -- which way ---------------------------------------------------------------------------------------------------------


def _is_grouped(inputs: Tensor, width: int, parts: Sequence[Applied]) -> bool:
    """Whether one call for all is possible here, and quicker."""
    if inputs.device.type != "cuda" or len(parts) < 2 or not _has_kernels(inputs.device, inputs.dtype):
        return False
    covered = parts[0].start == 0 and parts[-1].end == len(inputs)
    if not covered or any(one.end != two.start for one, two in pairwise(parts)):
        return False  # rows of a member that has no adapter here
    step = ALIGNMENT // inputs.dtype.itemsize
    if inputs.shape[1] % step or width % step or not inputs.is_contiguous():
        return False
    # Sizes by their logarithms: a way that is quicker for 80 rows is so for 100.
    count, rows = _power_of_two(len(parts)), _power_of_two(len(inputs) // len(parts))
    try:
        return _grouped_is_quicker(inputs.device, inputs.dtype, inputs.shape[1], width, len(parts[0].a), count, rows)
    except torch.OutOfMemoryError:  # beside what the pass keeps; it is tried again when there is room
        return False


def _power_of_two(number: int) -> int:
    """The largest that is not above the number: what is tried out is no larger than what is there."""
    return 1 << max(0, number.bit_length() - 1)


@functools.cache
def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are grouped on the device: elsewhere PyTorch makes one after another, and waits for the device
    before, to read where each part begins (pytorch/aten/src/ATen/native/cuda/GroupedBlas.cpp). Trying it out would not
    show that: nothing else is to be waited for then.
    """
    if not hasattr(F, "grouped_mm") or dtype != torch.bfloat16 or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device)[0] in {9, 10}


@functools.cache
def _grouped_is_quicker(  # noqa: PLR0917 - a key
    device: torch.device, dtype: torch.dtype, width: int, outputs: int, rank: int, count: int, rows: int
) -> bool:
    """Tried out on numbers that mean nothing.

    Raises:
        torch.OutOfMemoryError: There was no room to; nothing is known then.
    """
    with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        parts = [
            Applied(
                nn.Parameter(torch.zeros(rank, width, device=device)),
                nn.Parameter(torch.zeros(rank, outputs, device=device).t()),
                start * rows,
                (start + 1) * rows,
                1.0,
            )
            for start in range(count)
        ]
        for part in parts:
            part.a.grad, part.b.grad = torch.zeros_like(part.a), torch.zeros_like(part.b)
        total = count * rows
        there = (
            torch.zeros(total, width, device=device, dtype=dtype),
            torch.zeros(total, outputs, device=device, dtype=dtype),
        )

        def looped() -> None:
            _looped_gradients(there[0], there[1], there[0], parts, _add_looped(there[1], there[0], parts))

        def grouped() -> None:
            _grouped_gradients(there[0], there[1], there[0], parts, _add_grouped(there[1], there[0], parts))

        try:
            return _seconds(grouped, device) < _seconds(looped, device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError):  # this device or precision knows no grouped products
            return False


def _seconds(compute: Callable[[], None], device: torch.device) -> float:
    """The least of a few tries, after one that is not counted."""
    taken = []
    for _ in range(1 + TRIES):
        started = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
