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

from hpsearch.finetune import products
from hpsearch.finetune.dropout import Dropout
from hpsearch.finetune.model import Anatomy, LoadedModel, is_plain_linear
from hpsearch.finetune.products import Applied
from hpsearch.finetune.seeds import derived_seed
from hpsearch.spec.finetune import LoraSpec, is_named, no_such_layer


@dataclass(frozen=True)
class Adapter:
    """One layer's adapter. A: [rank, in], B: [out, rank], both float32.

    B lies in memory as [rank, out]: products of a few long rows are up to three times as fast on a CPU as those of
    many short ones.
    """

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
    rate: float = 0.0
    """Of dropout."""


class _Adapted(torch.autograd.Function):
    """A frozen linear layer with the adapters of all members whose rows it reads.

    The frozen product runs once over all rows; adapters add to theirs in place. Left to autograd, each of an adapter's
    four products would read or write a copy of its own, and the two gradients of the input would be added in a pass of
    their own: that costs more than the products. For the same reason the adapters' gradients are added right to their
    `grad`, which must be there.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parts: Sequence[products.Applied],
        kept: Tensor | None,
        _anchor: Tensor,
    ) -> Tensor:
        """Inputs and kept [N, in], weight [out, in], bias [out] -> [N, out].

        The anchor only has to require a gradient.
        """
        # As autocast does: the products are of the base's precision, the adapters themselves stay float32. Not by
        # autocast itself, which the backward pass runs outside of.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.to(weight.dtype)
            outputs = F.linear(inputs, weight, bias)
            known = products.add(outputs, inputs if kept is None else inputs * kept, parts)
        ctx.save_for_backward(inputs, weight, kept, *known)
        ctx.parts = parts
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the inputs (unless nothing below is trained); each A and B adds to its own."""
        inputs, weight, kept, *known = ctx.saved_tensors
        of_inputs = gradients[0] @ weight if ctx.needs_input_grad[0] else None
        if kept is None:
            products.add_gradients(of_inputs, gradients[0], inputs, ctx.parts, known)
        else:
            through = None if of_inputs is None else torch.zeros_like(of_inputs)
            products.add_gradients(through, gradients[0], inputs * kept, ctx.parts, known)
            if of_inputs is not None and through is not None:
                of_inputs += through.mul_(kept)
        return of_inputs, None, None, None, None, None


_ANCHOR = torch.zeros((), requires_grad=True)
"""The lowest adapted layer's input needs no gradient, and autograd must come to its adapters all the same."""

_adapted: Callable[..., Tensor] = _Adapted.apply  # torch leaves `apply` untyped


class AdaptedLinear(nn.Module):
    """A frozen linear layer and the adapters that are active now, if any."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen: Any = frozen
        self.active: list[Applied] = []
        self.dropout: tuple[Dropout, int] | None = None
        """Of the active ones, and a number for the layer."""
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
        kept = None
        if self.dropout is not None:
            dropout, number = self.dropout
            kept = dropout.kept(number, self.in_features)
        outputs = _adapted(flat, weight, self.bias, self.active, kept, _ANCHOR)
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
        matches = {name for name in known if is_named(name, asked)}
        if not matches:
            raise no_such_layer(asked, known)
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
            nn.Parameter(torch.zeros(spec.rank, layer.out_features, device=loaded.device).t()),
            spec.alpha / spec.rank,
            derived_seed(0, "layer", name),
        )
    return adapters


@contextmanager
def activated(
    layers: Mapping[str, AdaptedLinear], parts: Sequence[MemberRows], dropout: Dropout | None = None
) -> Iterator[None]:
    """Inside, every layer has these adapters, each for its own rows; other rows and layers are the base's."""
    try:
        for name, layer in layers.items():
            present = [(part.adapters[name], part) for part in parts if name in part.adapters]
            layer.active = [
                Applied(adapter.a, adapter.b, part.start, part.end, adapter.scale / (1 - part.rate))
                for adapter, part in present
            ]
            layer.dropout = (dropout, present[0][0].layer) if dropout is not None and present else None
        yield
    finally:
        for layer in layers.values():
            layer.active, layer.dropout = [], None
