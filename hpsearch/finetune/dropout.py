"""What is dropped while training: of adapters' inputs, and inside of models."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Dropout:
    """What the members in a pass drop of their adapters' inputs.

    Whether an input is dropped is a function of the member's seed, the step, the layer, the channel and what the
    sequence says up to the token: neither company nor the way a batch is cut changes it, examples that begin alike
    drop alike there, so that their beginning can be read once, and there is no state to keep. One call draws for all
    members, of 32-bit numbers: drawing is work for each input of each adapted layer.
    """

    rows: Tensor
    """int32, [N, 1]: a key of each row, from the member's seed, the step and the token's number."""
    limits: Tensor
    """int32, [N, 1]: of all 32-bit numbers, those below are dropped."""

    @staticmethod
    def of(members: Iterable[tuple[float, int, Tensor]]) -> Dropout | None:
        """For rows of several members, side by side; None when none of them drops anything.

        Args:
            members: Of each, the rate, a seed of it and of the step (63 bits), and a number for each of its tokens,
                the same wherever it stands: int64, [n].
        """
        rates, seeds, tokens = zip(*members, strict=True)
        if not any(rates):
            return None
        rows = torch.cat([own ^ seed for own, seed in zip(tokens, seeds, strict=True)])
        limits = [
            torch.full((len(own), 1), round(rate * 2**32) - 2**31, dtype=torch.int32, device=own.device)
            for rate, own in zip(rates, tokens, strict=True)
        ]
        return Dropout(_key(rows).unsqueeze(1), torch.cat(limits))

    def kept(self, layer: int, width: int) -> Tensor:
        """1 for each input that is kept, which is to be scaled by 1 / (1 - rate), and 0 for each that is dropped.

        Args:
            layer: A number for the layer; 63 bits.
            width: Channels.

        Returns:
            uint8, [N, width]: products with bool are several times slower on a CPU.
        """
        channels = _channels(layer, width, self.rows.device)
        at_once = max(1, _drawn_at_a_time(self.rows.device) // width)
        parts = zip(torch.split(self.rows, at_once), torch.split(self.limits, at_once), strict=True)
        kept = [_drawn(rows ^ channels).ge_(limits).to(torch.uint8) for rows, limits in parts]
        return kept[0] if len(kept) == 1 else torch.cat(kept)


_ODD, _ALSO_ODD = -0x61C8864680B583EB, -0x40A7B892E31B1A47  # splitmix64's (Steele et al. 2014), as signed numbers
_SHORT_ODD, _ALSO_SHORT_ODD = 0x7FEB352D, -0x7B935975  # lowbias32's (Wellons 2018), as signed numbers


def _drawn_at_a_time(device: torch.device) -> int:
    """Numbers, of 8 bytes for a moment, of which one stays.

    A CPU is quicker with few, which stay near; a GPU with few calls, and 512 MiB is little beside what a pass keeps.
    """
    return 2**22 if device.type == "cpu" else 2**26


def _key(numbers: Tensor) -> Tensor:
    """int64 numbers that differ in any bit become int32 ones that differ in about half of theirs."""
    numbers = numbers * _ODD
    numbers = (numbers ^ (numbers >> 31)).mul_(_ALSO_ODD) >> 31
    return numbers.to(torch.int32)


@functools.lru_cache(maxsize=1024)
def _channels(layer: int, width: int, device: torch.device) -> Tensor:
    """int32, [width]: a key of each channel of a layer."""
    return _key((torch.arange(width, device=device) << 32) ^ layer)


def _drawn(numbers: Tensor) -> Tensor:
    """Any 32-bit numbers become ones that look drawn by chance, above all in their upper bits; in place."""
    numbers ^= numbers >> 16
    numbers.mul_(_SHORT_ODD)
    numbers ^= numbers >> 15
    return numbers.mul_(_ALSO_SHORT_ODD)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout that an architecture has: modules, attributes of modules, and fields of the config.

    Dropouts of classification heads have no part in a causal language model.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, rate)
    config: Any = model.config
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, int | float):
            setattr(config, name, rate)
