"""The base model in memory, and where things are in it, for any causal language model of transformers.

Nothing here knows an architecture by name: blocks, embeddings and the output head are found from the model's own
structure and from one tiny probe run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpsearch.basemodel import BaseModel, describe
from hpsearch.errors import TrialFailure, UnsupportedModel
from hpsearch.finetune.packing import Group, is_plain, packed, padded, positions
from hpsearch.finetune.precision import computes_in, has_wide_logits
from hpsearch.spec.finetune import ModelSpec

FIELD = "model.base"


@dataclass(frozen=True)
class Anatomy:
    """Where things are in a causal language model; names are those of `named_parameters`."""

    blocks: str
    """Name of the list of transformer blocks."""
    layers: int
    below: frozenset[str]
    """Parameters that are used before the first block: embeddings, and an output head tied to them."""
    splits: bool
    """Whether the logits are exactly the output head applied to the decoder's last hidden state, so that the
    head can be applied to chosen positions only (not so with soft-capped or scaled logits)."""
    widens: bool
    """Whether logits can be had in float32 where products are bfloat16 (`precision.wide_logits`)."""
    plain: bool
    """Whether padded rows are read right without any mask: making one waits for a GPU in each pass."""
    packs: bool
    """Whether sequences can be read one after the other in one row (`packing`): measured to pay on CPUs only."""

    def depth(self, parameter: str) -> int:
        """Layers above the one that a parameter belongs to: 0 at the top, `layers` for the embeddings."""
        if parameter in self.below:
            return self.layers
        if parameter.startswith(f"{self.blocks}."):
            return self.layers - 1 - int(parameter[len(self.blocks) + 1 :].split(".", 1)[0])
        return 0


@dataclass(frozen=True)
class LoadedModel:
    """A base model on a device, with its tokenizer."""

    facts: BaseModel
    model: Any
    """A `PreTrainedModel` in eval mode; no parameter has a gradient."""
    tokenizer: Any
    device: torch.device
    anatomy: Anatomy


def load_model(spec: ModelSpec, device: torch.device, facts: BaseModel | None = None) -> LoadedModel:
    """Load a base model and its tokenizer: from safetensors, and never with code of its own.

    Weights are float32, but bfloat16 for a frozen base on a GPU that computes in it.

    Args:
        spec: Which model, and whether it will stay frozen.
        device: Where to.
        facts: What `describe` says of it, if that is known.

    Raises:
        UnknownModel, UnsupportedModel: As `hpsearch.basemodel.describe`, or transformers can't load it.
        TrialFailure: PyTorch can't use the GPU.
    """
    facts = facts or describe(spec.base, spec.revision)
    if device.type == "cuda":
        _use(device)
    # A hub model's fingerprint is its commit: facts and weights are then of one version.
    revision = None if Path(spec.base).is_absolute() else facts.fingerprint
    model, tokenizer = read_model(spec.base, revision, computes_in(device) if spec.method == "lora" else torch.float32)
    model.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedModel(facts, model, tokenizer, device, examine(model))


def _use(gpu: torch.device) -> None:
    """Raise TrialFailure for a GPU that PyTorch can't use, and set PyTorch up for what is read here."""
    built = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        why = f"is built for {built}: is the GPU's driver too old for that?" if built else "is a build for CPUs"
        raise TrialFailure(f"there is a GPU, but PyTorch can't use it: PyTorch {torch.__version__} {why}")
    try:
        torch.zeros(1, device=gpu).add_(1)
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        text = f"PyTorch {torch.__version__}, built for {built}, has no kernels for {torch.cuda.get_device_name(gpu)}"
        raise TrialFailure(f"{text}: it may be too old; install a build of PyTorch that still has them") from error
    # cuDNN's attention, which PyTorch prefers on Hopper and Blackwell, plans anew for each shape of a micro-batch, for
    # tens of milliseconds, and there is a new shape in nearly every step. (pytorch/aten/src/ATen/native/cudnn/MHA.cpp)
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def read_model(base: str, revision: str | None, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, Any]:
    """A model as transformers reads it, and its tokenizer; `auto` is the precision that it is stored in.

    Raises:
        UnsupportedModel: transformers can't load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging  # seconds: not before the cheap checks

    logging.disable_progress_bar()  # it would draw into the log of a service
    safely = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, **safely)
        model = AutoModelForCausalLM.from_pretrained(base, **safely, use_safetensors=True, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UnsupportedModel(f"transformers can't load {base}: {reason}", FIELD) from error
    return model, tokenizer


def examine(model: Any) -> Anatomy:
    """Find blocks, embeddings and head, by structure and one probe run."""
    layers = model.config.get_text_config().num_hidden_layers
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not lists:
        raise UnsupportedModel(f"{type(model).__name__} has no list of {layers} blocks that could be found", FIELD)
    blocks = min(lists, key=lambda name: name.count("."))
    below, splits = _probe(model, blocks)
    return Anatomy(
        blocks,
        layers,
        below,
        splits,
        widens=splits and has_wide_logits(model.get_output_embeddings(), hidden_states(model, _few_ids(model))),
        plain=_reads_plainly(model),
        packs=model.device.type == "cpu" and _packs(model),
    )


def _few_ids(model: Any) -> Tensor:
    known: int = model.get_input_embeddings().num_embeddings
    return torch.arange(8, device=model.device).unsqueeze(0) % known


def _probe(model: Any, blocks: str) -> tuple[frozenset[str], bool]:
    """What runs before the first block, and whether the head can be applied by itself."""
    ids = _few_ids(model)
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: order.append(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    first = order.index(f"{blocks}.0")
    early = {
        id(parameter) for name in order[:first] for parameter in model.get_submodule(name).parameters(recurse=False)
    }
    below = frozenset(
        name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in early
    )
    return below, _splits(model, ids, logits)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it is x W^T + b and no more; subclasses may compute what they like."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _splits(model: Any, ids: Tensor, logits: Tensor) -> bool:
    head = model.get_output_embeddings()
    if head is None or model.base_model is model or not is_plain_linear(head):
        return False
    with torch.no_grad():
        return torch.equal(head(hidden_states(model, ids)), logits)


def _reads_plainly(model: Any) -> bool:
    """Whether padded rows give the same when transformers makes no mask."""
    if not is_plain(model):
        return False
    ids = _few_ids(model).view(2, 4)
    with torch.no_grad():
        usual = hidden_states(model, ids)
        with padded(model):
            return torch.allclose(hidden_states(model, ids), usual, rtol=1e-2, atol=1e-2)


def _packs(model: Any) -> bool:
    """Whether a packed row gives what its sequences give alone, also those that share what they begin with."""
    if not is_plain(model):
        return False
    groups = (Group(0, (5, 3)), Group(4, (2, 3)))
    beginning = list(range(8, 12))
    sequences = [list(range(5)), list(range(5, 8)), [*beginning, 12, 13], [*beginning, 14, 15, 16]]
    ids = torch.arange(17).unsqueeze(0) % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        alone = [hidden_states(model, ids[:, places]) for places in sequences]
        try:
            with packed(model, groups):
                together = hidden_states(model, ids, positions(groups))
        except (TypeError, ValueError, RuntimeError):  # it knows no positions, or its attention is called otherwise
            return False
    found = [together[:, places] for places in sequences]
    return all(torch.allclose(one, two, rtol=1e-4, atol=1e-5) for one, two in zip(found, alone, strict=True))


def hidden_states(model: Any, ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """The decoder's last hidden states, [B, T, H], for right-padded ids [B, T], or for a row inside of `packed`.

    A causal model needs no attention mask for right padding: real positions never look at later ones.
    """
    placed = {} if positions is None else {"position_ids": positions}
    states: Tensor = model.base_model(input_ids=ids, use_cache=False, **placed)[0]
    return states
