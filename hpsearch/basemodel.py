"""Facts about a base model, read from its files without torch: known before anything is queued.

Only models that can be loaded safely are described: weights in safetensors (never pickle), no code of their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import HubUnavailable, UnknownModel, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIELD = "model.base"
CAUSAL_ARCHITECTURES = ("ForCausalLM", "LMHeadModel")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_LARGEST_JSON = 64 * 2**20
_LARGEST_HEADER = 100 * 2**20  # the limit of the safetensors library
_SAMPLE = 64 * 2**10
HUB_TIMEOUT = 10
"""Seconds to wait for the hub's first answer; without one, its local cache decides."""


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base model without loading it."""

    path: str
    """A local folder or a hub id."""
    revision: str | None
    model_type: str
    """As in config.json: `llama`, `gpt2`, ..."""
    layers: int
    """Transformer blocks."""
    parameters: int
    max_positions: int | None
    """Tokens that the model can read; None when its config names no limit."""
    fingerprint: str
    """Changes when the model does: SHA-256 over config, weight headers, sizes and samples; hub: the commit."""


def describe(base: str, revision: str | None = None) -> BaseModel:
    """The facts about a local folder (absolute) or a hub id.

    Raises:
        UnknownModel: There is no such model, or a file of it is missing.
        HubUnavailable: The hub can't be asked, and its cache has no such model.
        UnsupportedModel: It is no causal language model in safetensors, or it needs code of its own.
    """
    if Path(base).is_absolute():
        return _describe_folder(Path(base), revision)
    if not _HUB_ID.fullmatch(base):
        raise UnknownModel(f"'{base}' is neither an absolute folder nor a hub id such as 'org/name'", FIELD)
    return _describe_hub(base, revision)


def token_counter(model: BaseModel) -> Callable[[str], int | None]:
    """Counts the tokens of a text, special ones aside. It loads the model's tokenizer at the first call.

    The count is None when there is no `tokenizer.json` that can be loaded: then only training can tell.
    """

    @functools.cache
    def tokenizer() -> Tokenizer | None:
        try:
            from tokenizers import Tokenizer

            loaded: Tokenizer = Tokenizer.from_file(str(_tokenizer_file(model)))
            loaded.no_truncation()
            loaded.no_padding()
        except Exception:  # a hint is not worth failing for, and the library raises bare exceptions
            return None
        return loaded

    def count(text: str) -> int | None:
        loaded = tokenizer()
        return None if loaded is None else len(loaded.encode(text, add_special_tokens=False).ids)

    return count


def _tokenizer_file(model: BaseModel) -> Path:
    if Path(model.path).is_absolute():
        return Path(model.path) / "tokenizer.json"
    import huggingface_hub

    return Path(huggingface_hub.hf_hub_download(model.path, "tokenizer.json", revision=model.fingerprint))


def _describe_folder(folder: Path, revision: str | None) -> BaseModel:
    if not folder.is_dir():
        raise UnknownModel(f"there is no folder {folder}", FIELD)
    config = _config(folder)
    code = sorted(path.name for path in folder.glob("*.py"))
    if code:
        raise UnsupportedModel(f"{folder} brings code of its own ({code[0]}), which is never run", FIELD)
    weights = _weight_files(folder)
    _check_tokenizer(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    parameters = 0
    for file in weights:
        header = _header(file)
        parameters += _count(header, file)
        digest.update(header)
        digest.update(_sample(file))
    return _base_model(str(folder), revision, config, parameters, digest.hexdigest())


def _base_model(
    base: str, revision: str | None, config: dict[str, Any], parameters: int, fingerprint: str
) -> BaseModel:
    layers = _first_int(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not isinstance(config.get("model_type"), str) or layers is None:
        raise UnsupportedModel(f"config.json of {base} has no model_type or no number of layers", FIELD)
    positions = _first_int(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    return BaseModel(base, revision, config["model_type"], layers, parameters, positions, fingerprint)


def _first_int(config: dict[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it is an adapter: name the base model instead" if adapter else "save one with `save_pretrained`"
        raise UnknownModel(f"{folder} has no config.json; {hint}", FIELD)
    config = _json_object(folder / "config.json")
    _check_supported(config, str(folder))
    if (folder / "tokenizer_config.json").is_file() and "auto_map" in _json_object(folder / "tokenizer_config.json"):
        raise UnsupportedModel(f"the tokenizer of {folder} needs code of its own (auto_map), which is never run", FIELD)
    return config


def _check_supported(config: dict[str, Any], base: str) -> None:
    if "auto_map" in config:
        raise UnsupportedModel(f"{base} needs code of its own (auto_map in config.json), which is never run", FIELD)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(
        str(architecture).endswith(CAUSAL_ARCHITECTURES) for architecture in architectures
    ):
        raise UnsupportedModel(f"{base} is {architectures}, not a causal language model (...ForCausalLM)", FIELD)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UnsupportedModel(f"{path} is too large", FIELD)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UnknownModel(f"{path} can't be read: {error.strerror}", FIELD) from None
    except (ValueError, RecursionError):
        raise UnsupportedModel(f"{path} is not valid JSON", FIELD) from None
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} is not a JSON object", FIELD)
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: one, or the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _json_object(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise UnknownModel(f"{folder} lacks the weights {name} that {INDEX} names", FIELD)
        if names:
            return [folder / name for name in names]
    pickled = sorted(path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(suffix))
    if pickled:
        text = f"{folder} has only pickled weights ({pickled[0]}), which are never loaded; save it as safetensors"
        raise UnsupportedModel(f"{text}: `model.save_pretrained(folder)`", FIELD)
    raise UnknownModel(f"{folder} has no weights: {WEIGHTS}, or {INDEX} with its shards", FIELD)


def _check_tokenizer(folder: Path) -> None:
    def has(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if not (has("tokenizer.json") or has("tokenizer.model") or has("vocab.json", "merges.txt")):
        text = "has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)"
        raise UnknownModel(f"{folder} {text}; save it with `tokenizer.save_pretrained(folder)`", FIELD)


def _header(file: Path) -> bytes:
    """The JSON header of a safetensors file: 8 bytes of length (little endian), then so many bytes of JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if 2 <= length <= _LARGEST_HEADER else b""
    if not header or len(header) != length:
        raise UnsupportedModel(f"{file} is not a safetensors file, or is cut off", FIELD)
    return header


def _count(header: bytes, file: Path) -> int:
    """Parameters named in a safetensors header, after checking that the file holds them all."""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        count = sum(math.prod(entry["shape"]) for entry in tensors.values())
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise UnsupportedModel(f"{file} is not a safetensors file", FIELD) from None
    if file.stat().st_size < 8 + len(header) + end:
        raise UnsupportedModel(f"{file} is cut off: copy it again", FIELD)
    return int(count)


def _sample(file: Path) -> bytes:
    """Size, and 64 KiB each from the middle and the end: fine-tunes of one model differ there, and it is cheap."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        parts = [size.to_bytes(8, "little")]
        for start in (size // 2, size - _SAMPLE):
            stream.seek(max(start, 0))
            parts.append(stream.read(_SAMPLE))
    return b"".join(parts)


def _describe_hub(base: str, revision: str | None) -> BaseModel:
    """Through the hub's own client, which honours HF_HUB_OFFLINE and HF_TOKEN; without a network, from its cache."""
    import huggingface_hub
    from huggingface_hub.errors import (
        HFValidationError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"'{base}'" + (f" at revision '{revision}'" if revision else "")
    try:
        try:
            facts = huggingface_hub.HfApi().model_info(base, revision=revision, timeout=HUB_TIMEOUT)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):  # an answer, and it is no
            raise
        except Exception:  # no answer: offline, overloaded, or any of the HTTP library's errors
            return _describe_cached(base, revision, at)
        _check_hub_files({sibling.rfilename for sibling in facts.siblings or ()}, at)
        config = _json_object(Path(huggingface_hub.hf_hub_download(base, "config.json", revision=facts.sha)))
        _check_supported(config, at)
        counts = huggingface_hub.get_safetensors_metadata(base, revision=facts.sha).parameter_count
        return _base_model(base, revision, config, sum(counts.values()), str(facts.sha))
    except (UnknownModel, UnsupportedModel):
        raise
    except NotASafetensorsRepoError:
        raise UnsupportedModel(f"{at} has no safetensors weights on the hub; pickles are never loaded", FIELD) from None
    except Exception as error:  # the client raises its own, the HTTP library's and the system's errors
        raise _unknown_on_hub(at, error) from None


def _describe_cached(base: str, revision: str | None, at: str) -> BaseModel:
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(base, "config.json", revision=revision, local_files_only=True)
    snapshot = Path(path).parent
    config = _json_object(snapshot / "config.json")
    _check_supported(config, at)
    parameters = sum(_count(_header(file), file) for file in _weight_files(snapshot))
    return _base_model(base, revision, config, parameters, snapshot.name)


def _check_hub_files(names: set[str], at: str) -> None:
    code = sorted(name for name in names if name.endswith(".py"))
    if code:
        raise UnsupportedModel(f"{at} brings code of its own ({code[0]}), which is never run", FIELD)
    if names and "config.json" not in names:
        raise UnknownModel(f"{at} has no config.json, so it is no transformers model", FIELD)


def _unknown_on_hub(at: str, error: Exception) -> UnknownModel:
    name = type(error).__name__
    reasons = {
        "RepositoryNotFoundError": "the hub has no such model (for a private one, set HF_TOKEN for the service)",
        "GatedRepoError": "access to it is restricted: accept its terms on the hub and set HF_TOKEN for the service",
        "RevisionNotFoundError": "the hub has the model, but not this revision",
        "HFValidationError": "this is no hub id",
    }
    if name in reasons:
        return UnknownModel(f"base model {at}: {reasons[name]}", FIELD)
    return HubUnavailable(
        f"base model {at}: the hub can't be reached ({name}) and it is not in the local cache; "
        "give a local folder instead",
        FIELD,
    )
