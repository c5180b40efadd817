"""Of what matrix products are computed: bfloat16 on GPUs that have it, float32 elsewhere."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


@functools.cache
def computes_in(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it.

    On a CPU it is several times slower than float32. Before Ampere (2020) NVIDIA's GPUs emulate it, and PyTorch has no
    attention kernels for it there, but one that keeps a score for each pair of tokens.
    """
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32


def precision(device: torch.device) -> AbstractContextManager[object]:
    """Inside, matrix products are computed in what the device computes in."""
    dtype = computes_in(device)
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


def wide_logits(head: nn.Linear, states: Tensor) -> Tensor:
    """The logits of states [m, H] in float32, [m, V], of products in bfloat16 that are added up in float32 anyway.

    Rounded to bfloat16, logits around 20 are eighths: of a tenth of all tokens, the two most likely would be alike.

    Raises:
        RuntimeError: PyTorch does not have it on this device; CUDA does.
    """
    with torch.autocast(states.device.type, enabled=False):
        rows, columns = states.to(torch.bfloat16), head.weight.to(torch.bfloat16).t()
        logits = torch.mm(rows, columns, out_dtype=torch.float32)
    return logits if head.bias is None else logits + head.bias.float()


def has_wide_logits(head: nn.Module, states: Tensor) -> bool:
    """Whether `wide_logits` works and agrees with the head where the states are: tried, for nobody says so."""
    if not isinstance(head, nn.Linear) or computes_in(states.device) is torch.float32:
        return False
    with torch.no_grad(), precision(states.device):
        usual = head(states).float()
        try:
            wide = wide_logits(head, states)
        except torch.OutOfMemoryError:  # which says nothing of it: two devices of a study would evaluate differently
            raise
        except (RuntimeError, TypeError):
            return False
    return torch.allclose(wide, usual, rtol=2**-7, atol=1e-2)
