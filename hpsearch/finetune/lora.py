"""Low-rank adapters that share one frozen base: W x + alpha / rank * B A dropout(x).

Hu et al. 2021, https://arxiv.org/abs/2106.09685. Every linear layer of the blocks becomes an `AdaptedLinear`, once.
Each member holds adapters of its own (a dict by layer name); to switch members is to point the layers at others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpsearch.errors import InvalidSpec
from hpsearch.finetune.model import Anatomy, LoadedModel
from hpsearch.finetune.seeds import derived_seed
from hpsearch.spec.finetune import LoraSpec

TARGETS_FIELD = "model.lora.target_modules"


@dataclass
class Dropout:
    """A member's dropout on adapter inputs: its rate, and a stream of random numbers of its own."""

    rate: float
    generator: torch.Generator
    active: bool = False
    """Whether the member trains now; evaluation drops nothing."""

    def kept(self, inputs: Tensor) -> Tensor | None:
        """What to multiply adapter inputs by: 0 where one is dropped, more than 1 elsewhere; None drops nothing."""
        if not self.active or self.rate == 0:
            return None
        kept = torch.empty_like(inputs).bernoulli_(1 - self.rate, generator=self.generator)
        return kept.div_(1 - self.rate)


@dataclass
class Adapter:
    """One layer's adapter. A: [rank, in], B: [out, rank], both float32."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    dropout: Dropout


class _Adapted(torch.autograd.Function):
    """A frozen linear layer with its adapter, in as few passes over its input and output as there are products.

    Left to autograd, each of the four products of the adapter would read or write a copy of its own, and the two
    gradients of the input would be added in a pass of their own: that costs more than the products.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, kept: Any
    ) -> Tensor:
        """Inputs [N, in], weight [out, in], bias [out], A [r, in], B [out, r], kept [N, in] or None -> [N, out]."""
        # As autocast does: the products are of the base's precision, the adapters themselves stay float32.
        ctx.adapters_dtype = a.dtype
        inputs, a, b = inputs.to(weight.dtype), a.to(weight.dtype), b.to(weight.dtype)
        adapted = inputs if kept is None else inputs * kept
        inner = adapted @ a.t()
        outputs = F.linear(inputs, weight, bias).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(inputs, weight, a, b, inner, kept)
        ctx.scale = scale
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the inputs (unless nothing below is trained), A and B."""
        inputs, weight, a, b, inner, kept = ctx.saved_tensors
        gradient = gradients[0]
        inner_gradient = (gradient @ b).mul_(ctx.scale)
        of_b = (gradient.t() @ inner).mul_(ctx.scale)
        of_a = inner_gradient.t() @ (inputs if kept is None else inputs * kept)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = gradient @ weight
            if kept is None:
                of_inputs.addmm_(inner_gradient, a)
            else:
                of_inputs.addcmul_(inner_gradient @ a, kept)
        return of_inputs, None, None, of_a.to(ctx.adapters_dtype), of_b.to(ctx.adapters_dtype), None, None


_adapted: Callable[..., Tensor] = _Adapted.apply  # torch leaves `apply` untyped


class AdaptedLinear(nn.Module):
    """A frozen linear layer and the adapter that is active now, if any."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen: Any = frozen
        self.active: Adapter | None = None
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
        if self.active is None:
            unadapted: Tensor = self.frozen(inputs)
            return unadapted
        adapter, flat = self.active, inputs.flatten(0, -2)
        weight = self.frozen.weight.t() if is_conv1d(self.frozen) else self.frozen.weight
        kept = adapter.dropout.kept(flat)
        outputs: Tensor = _adapted(flat, weight, self.bias, adapter.a, adapter.b, adapter.scale, kept)
        return outputs.view(*inputs.shape[:-1], self.out_features)


Adapters = dict[str, Adapter]
"""By layer name, such as `model.layers.0.self_attn.q_proj`."""


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's transposed linear layer."""
    return type(module).__name__ == "Conv1D"


def adapt(model: Any, anatomy: Anatomy) -> dict[str, AdaptedLinear]:
    """Make every linear layer of the blocks adaptable, in place; by name, lowest first."""
    blocks: nn.Module = model.get_submodule(anatomy.blocks)
    linear = [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear) or is_conv1d(module)]
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
    dropout: Dropout,
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
        dropout: The member's.
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
            dropout,
        )
    return adapters


def activate(layers: Mapping[str, AdaptedLinear], adapters: Mapping[str, Adapter]) -> None:
    """Point every layer at these adapters; layers without one go back to the base model."""
    for name, layer in layers.items():
        layer.active = adapters.get(name)
