"""What safetensors files say of their tensors before the first of them: names and shapes, read without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpsearch.errors import UnsupportedModel

FIELD = "model.base"
Shapes = Mapping[str, Sequence[int]]
"""Of tensors, by name."""

_LARGEST = 100 * 2**20  # the limit of the safetensors library
_SAMPLE = 64 * 2**10

_KEPT_NAMES = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj"),
        *("gate_up_proj", "in_proj", "x_proj", "dt_proj", "fc1", "fc2", "fc_in", "fc_out", "c_attn", "c_proj", "c_fc"),
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "Wqkv", "w1", "w2", "w3"),
        *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "per_layer_input_gate", "per_layer_projection"),
    )
)
"""Kinds of linear layers that are called the same in a file and in the model that transformers makes of it.

Of 165 causal architectures of transformers 5.23, built from their default configs, 9 call layers otherwise in their
files; each of the 9 has a kind there that is not among these."""


def read(file: Path) -> bytes:
    """The JSON header of a safetensors file: 8 bytes of length (little endian), then so many bytes of JSON.

    Raises:
        UnsupportedModel: It is none.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if 2 <= length <= _LARGEST else b""
    if not header or len(header) != length:
        raise UnsupportedModel(f"{file} is not a safetensors file, or is cut off", FIELD)
    return header


def shapes(header: bytes, file: Path) -> Shapes:
    """The tensors that a header names, after checking that the file holds them all.

    Raises:
        UnsupportedModel: It doesn't, or the header can't be understood.
    """
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        found = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise UnsupportedModel(f"{file} is not a safetensors file", FIELD) from None
    if file.stat().st_size < 8 + len(header) + end:
        raise UnsupportedModel(f"{file} is cut off: copy it again", FIELD)
    return found


def sample(file: Path) -> bytes:
    """Size, and 64 KiB each from the middle and the end: fine-tunes of one model differ there, and it is cheap."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        parts = [size.to_bytes(8, "little")]
        for start in (size // 2, size - _SAMPLE):
            stream.seek(max(start, 0))
            parts.append(stream.read(_SAMPLE))
    return b"".join(parts)


def count(tensors: Shapes) -> int:
    """Parameters in all of them."""
    return sum(map(math.prod, tensors.values()))


def linear_layers(tensors: Shapes) -> tuple[str, ...]:
    """The linear layers inside the blocks, named from their block on (`self_attn.q_proj`), each once.

    They are the weights of two dimensions behind a block's number. Nothing when one of them is of a kind that isn't
    known here: transformers calls layers of some architectures otherwise than their files do, and nobody knows which.
    """
    weights = (name.removesuffix(".weight") for name, shape in tensors.items() if _is_linear(name, shape))
    found = sorted(set(filter(None, map(_within_block, weights))))
    return tuple(found) if {name.rpartition(".")[2] for name in found} <= _KEPT_NAMES else ()


def _is_linear(name: str, shape: Sequence[int]) -> bool:
    return name.endswith(".weight") and len(shape) == 2


def _within_block(name: str) -> str:
    """What of a layer's name comes behind the number of its block; nothing when it is in none."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[place + 1 :])
