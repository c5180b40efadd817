"""Low-rank adapters that share one frozen base: W x + alpha / rank * B A dropout(x).

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Every linear layer of the blocks becomes an `AdaptedLinear`, once.
Each member holds adapters of its own (a dict by layer name). One pass may read rows of several members: the layers are
told which rows are whose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpsearch.errors import InvalidSpec
from hpsearch.finetune import products
from hpsearch.finetune.model import Anatomy, LoadedModel, is_plain_linear
from hpsearch.finetune.products import Applied
from hpsearch.finetune.seeds import derived_seed
from hpsearch.spec.finetune import LoraSpec

TARGETS_FIELD = "model.lora.target_modules"


@dataclass(frozen=True)
class Dropout:
    """What a member drops of its adapters' inputs in one step.

    Whether an input is dropped is a function of the seed, the layer, the token and the channel: neither company nor the
    way a batch is cut changes it, and there is no state to keep.
    """

    rate: float
    seed: int
    """Of the member and the step; 63 bits."""

    def kept(self, tokens: Tensor, layer: int, width: int) -> Tensor:
        """Which inputs are not dropped; those are to be scaled by 1 / (1 - rate).

        Args:
            tokens: int64, [N]: a number for each token, the same wherever it stands.
            layer: A number for the layer; 63 bits.
            width: Channels.

        Returns:
            bool, [N, width].
        """
        rows = _mixed((tokens ^ (self.seed ^ layer)) * _ODD)
        channels = _mixed(torch.arange(1, width + 1, device=tokens.device) * _ODD)
        limit = round(self.rate * _DRAWS)
        some = torch.split(rows, max(1, _DRAWN_AT_A_TIME // width))
        return torch.cat([_mixed(part.unsqueeze(1) + channels).bitwise_and_(_DRAWS - 1) >= limit for part in some])


_ODD, _ALSO_ODD = -0x61C8864680B583EB, -0x40A7B892E31B1A47  # splitmix64's (Steele et al. 2014), as signed numbers
_DRAWS = 2**24
_DRAWN_AT_A_TIME = 2**22  # 32 MiB of numbers, of which a byte each stays


def _mixed(numbers: Tensor) -> Tensor:
    """Numbers that differ in any bit become ones that differ in about half of the lower 32."""
    return (numbers ^ (numbers >> 31)).mul_(_ALSO_ODD) >> 31


@dataclass(frozen=True)
class Adapter:
    """One layer's adapter. A: [rank, in], B: [out, rank], both float32."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    layer: int
    """A number for the layer; 63 bits."""


Adapters = dict[str, Adapter]
"""By layer name, such as `model.layers.0.self_attn.q_proj`."""


@dataclass(frozen=True)
class MemberRows:
    """The rows of a layer's input that one member's adapters apply to."""

    adapters: Adapters
    start: int
    end: int
    dropout: Dropout | None = None
    """None outside of training."""
    tokens: Tensor | None = None
    """int64, [end - start]: as `Dropout` numbers them."""


class _Adapted(torch.autograd.Function):
    """A frozen linear layer with the adapters of all members whose rows it reads.

    The frozen product runs once over all rows; adapters add to theirs in place. Left to autograd, each of an adapter's
    four products would read or write a copy of its own, and the two gradients of the input would be added in a pass of
    their own: that costs more than the products. For the same reason the adapters' gradients are added right to their
    `grad`, which must be there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parts: Sequence[products.Applied],
        _anchor: Tensor,
    ) -> Tensor:
        """Inputs [N, in], weight [out, in], bias [out] -> [N, out]; the anchor only has to require a gradient."""
        # As autocast does: the products are of the base's precision, the adapters themselves stay float32. Not by
        # autocast itself, which the backward pass runs outside of.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.to(weight.dtype)
            outputs = F.linear(inputs, weight, bias)
            known = products.add(outputs, inputs, parts)
        ctx.save_for_backward(inputs, weight, *known, *(part.kept for part in parts))
        ctx.parts = [part if part.kept is None else part._replace(kept=None) for part in parts]
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the inputs (unless nothing below is trained); each A and B adds to its own."""
        inputs, weight, *rest = ctx.saved_tensors
        known, all_kept = rest[: -len(ctx.parts)], rest[-len(ctx.parts) :]
        parts = [
            part if kept is None else part._replace(kept=kept) for part, kept in zip(ctx.parts, all_kept, strict=True)
        ]
        of_inputs = gradients[0] @ weight if ctx.needs_input_grad[0] else None
        products.add_gradients(of_inputs, gradients[0], inputs, parts, known)
        return of_inputs, None, None, None, None


_ANCHOR = torch.zeros((), requires_grad=True)
"""The lowest adapted layer's input needs no gradient, and autograd must come to its adapters all the same."""

_adapted: Callable[..., Tensor] = _Adapted.apply  # torch leaves `apply` untyped


class AdaptedLinear(nn.Module):
    """A frozen linear layer and the adapters that are active now, if any."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen: Any = frozen
        self.active: list[tuple[Adapter, MemberRows]] = []
        weight: Any = frozen.weight
        # GPT-2's Conv1D keeps its weight as [in, out].
        self.in_features, self.out_features = weight.shape if is_conv1d(frozen) else reversed(weight.shape)

    @property
    def weight(self) -> Any:
        """The frozen weight: some models look at its type."""
        return self.frozen.weight

    @property
    def bias(self) -> Any:
        """The frozen bias."""
        return self.frozen.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not self.active:
            unadapted: Tensor = self.frozen(inputs)
            return unadapted
        flat = inputs.flatten(0, -2)
        weight = self.frozen.weight.t() if is_conv1d(self.frozen) else self.frozen.weight
        parts = []
        for adapter, part in self.active:
            scale, kept = adapter.scale, None
            if part.dropout is not None and part.tokens is not None:
                scale /= 1 - part.dropout.rate
                kept = part.dropout.kept(part.tokens, adapter.layer, self.in_features)
            parts.append(Applied(adapter.a, adapter.b, part.start, part.end, scale, kept))
        outputs = _adapted(flat, weight, self.bias, parts, _ANCHOR)
        return outputs.view(*inputs.shape[:-1], self.out_features)


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's transposed linear layer."""
    return type(module).__name__ == "Conv1D"


def adapt(model: Any, anatomy: Anatomy) -> dict[str, AdaptedLinear]:
    """Make every linear layer of the blocks adaptable, in place; by name, lowest first.

    Layers that compute something else with their weight (quantised ones, routers that choose experts) are left alone.
    """
    blocks: nn.Module = model.get_submodule(anatomy.blocks)
    linear = [name for name, module in blocks.named_modules() if is_plain_linear(module) or is_conv1d(module)]
    adapted = {}
    for name in linear:
        parent, _, attribute = name.rpartition(".")
        layer = AdaptedLinear(blocks.get_submodule(name))
        setattr(blocks.get_submodule(parent), attribute, layer)
        adapted[f"{anatomy.blocks}.{name}"] = layer
    return adapted


def targets(names: Iterable[str], spec: LoraSpec) -> list[str]:
    """The layers that get an adapter: all, or those whose name ends in one of the given names.

    Raises:
        InvalidSpec: A given name matches no linear layer.
    """
    known = list(names)
    if spec.target_modules == "all-linear":
        return known
    chosen: set[str] = set()
    for asked in spec.target_modules:
        matches = {name for name in known if name == asked or name.endswith(f".{asked}")}
        if not matches:
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
            raise InvalidSpec(f"no linear layer's name ends in '{asked}'; the model's are: {kinds}", TARGETS_FIELD)
        chosen |= matches
    return [name for name in known if name in chosen]


def new_adapters(
    loaded: LoadedModel,
    layers: Mapping[str, AdaptedLinear],
    spec: LoraSpec,
    *,
    seed: int,
    frozen: int,
) -> Adapters:
    """Fresh adapters that change nothing yet: A is random, B is zero.

    A is drawn from the seed and the layer's name alone, so trials of one seed start from the same A wherever both
    have an adapter.

    Args:
        loaded: The base model.
        layers: What `adapt` returned for it.
        spec: Rank, alpha and targets.
        seed: Of the fine-tune.
        frozen: The lowest so many blocks get no adapters.
    """
    trained = [name for name in targets(layers, spec) if loaded.anatomy.depth(name) < loaded.anatomy.layers - frozen]
    adapters = {}
    for name in trained:
        layer = layers[name]
        generator = torch.Generator().manual_seed(derived_seed(seed, "lora", name))
        a = torch.empty(spec.rank, layer.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        adapters[name] = Adapter(
            nn.Parameter(a.to(loaded.device)),
            nn.Parameter(torch.zeros(layer.out_features, spec.rank, device=loaded.device)),
            spec.alpha / spec.rank,
            derived_seed(0, "layer", name),
        )
    return adapters


@contextmanager
def activated(layers: Mapping[str, AdaptedLinear], parts: Sequence[MemberRows]) -> Iterator[None]:
    """Inside, every layer has these adapters, each for its own rows; other rows and layers are the base's."""
    try:
        for name, layer in layers.items():
            layer.active = [(part.adapters[name], part) for part in parts if name in part.adapters]
        yield
    finally:
        for layer in layers.values():
            layer.active = []
