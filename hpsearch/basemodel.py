"""Facts about a base model, read from its files without torch: known before anything is queued.

Only models that can be loaded safely are described: weights in safetensors (never pickle), no code of their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch import headers
from hpsearch.errors import HubUnavailable, UnknownModel, UnsupportedModel
from hpsearch.headers import FIELD, Shapes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CAUSAL_ARCHITECTURES = ("ForCausalLM", "LMHeadModel")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_LARGEST_JSON = 64 * 2**20
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
    linear_layers: tuple[str, ...] = ()
    """Those inside a block, named from there on (`self_attn.q_proj`); nothing where its files don't say for certain."""


def describe(base: str, revision: str | None = None, looked_in: Sequence[Path] = ()) -> BaseModel:
    """The facts about a local folder (absolute) or a hub id.

    Args:
        base: Which.
        revision: Of a hub id: branch, tag or commit.
        looked_in: Folders below which no folder of this name was found; whoever is refused may have meant one.

    Raises:
        UnknownModel: There is no such model, or a file of it is missing.
        HubUnavailable: The hub can't be asked, and its cache has no such model.
        UnsupportedModel: It is no causal language model in safetensors, or it needs code of its own.
    """
    if Path(base).is_absolute():
        return _describe_folder(Path(base), revision)
    if not _HUB_ID.fullmatch(base):
        text = f"{_nowhere(base, looked_in)}it is neither an absolute folder nor a hub id such as 'org/name'"
        raise UnknownModel(f"base model '{base}': {text}", FIELD)
    return _describe_hub(base, revision, _nowhere(base, looked_in))


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
    tensors: dict[str, Sequence[int]] = {}
    for file in weights:
        header = headers.read(file)
        tensors |= headers.shapes(header, file)
        digest.update(header)
        digest.update(headers.sample(file))
    return _base_model(str(folder), revision, config, tensors, digest.hexdigest())


def _base_model(
    base: str, revision: str | None, config: dict[str, Any], tensors: Shapes, fingerprint: str
) -> BaseModel:
    layers = _first_int(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not isinstance(config.get("model_type"), str) or layers is None:
        raise UnsupportedModel(f"config.json of {base} has no model_type or no number of layers", FIELD)
    positions = _first_int(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    # The layers of a quantised model compute something else with their weights: which get adapters, training decides.
    linear = () if "quantization_config" in config else headers.linear_layers(tensors)
    parameters = headers.count(tensors)
    return BaseModel(base, revision, config["model_type"], layers, parameters, positions, fingerprint, linear)


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


def _nowhere(base: str, looked_in: Sequence[Path]) -> str:
    """What comes before that the hub doesn't have it either; nothing when no folder was looked for."""
    roots = ", ".join(map(str, looked_in))
    beside = f"one beside the spec is written './{base}'"
    return f"there is no such folder below the allowed roots ({roots}; {beside}), and " if looked_in else ""


def _describe_hub(base: str, revision: str | None, nowhere: str) -> BaseModel:
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
        files = huggingface_hub.get_safetensors_metadata(base, revision=facts.sha).files_metadata.values()
        tensors = {name: tensor.shape for file in files for name, tensor in file.tensors.items()}
        return _base_model(base, revision, config, tensors, str(facts.sha))
    except (UnknownModel, UnsupportedModel):
        raise
    except NotASafetensorsRepoError:
        raise UnsupportedModel(f"{at} has no safetensors weights on the hub; pickles are never loaded", FIELD) from None
    except Exception as error:  # the client raises its own, the HTTP library's and the system's errors
        raise _unknown_on_hub(at, error, nowhere) from None


def _describe_cached(base: str, revision: str | None, at: str) -> BaseModel:
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(base, "config.json", revision=revision, local_files_only=True)
    snapshot = Path(path).parent
    config = _json_object(snapshot / "config.json")
    _check_supported(config, at)
    tensors: dict[str, Sequence[int]] = {}
    for file in _weight_files(snapshot):
        tensors |= headers.shapes(headers.read(file), file)
    return _base_model(base, revision, config, tensors, snapshot.name)


def _check_hub_files(names: set[str], at: str) -> None:
    code = sorted(name for name in names if name.endswith(".py"))
    if code:
        raise UnsupportedModel(f"{at} brings code of its own ({code[0]}), which is never run", FIELD)
    if names and "config.json" not in names:
        raise UnknownModel(f"{at} has no config.json, so it is no transformers model", FIELD)


def _unknown_on_hub(at: str, error: Exception, nowhere: str) -> UnknownModel:
    name = type(error).__name__
    none = "the hub has no such model (for a private one, set HF_TOKEN for the service)"
    reasons = {
        "RepositoryNotFoundError": f"{nowhere}{none}",
        "GatedRepoError": "access to it is restricted: accept its terms on the hub and set HF_TOKEN for the service",
        "RevisionNotFoundError": "the hub has the model, but not this revision",
        "HFValidationError": "this is no hub id",
    }
    if name in reasons:
        return UnknownModel(f"base model {at}: {reasons[name]}", FIELD)
    return HubUnavailable(
        f"base model {at}: {nowhere}the hub can't be reached ({name}) and it is not in the local cache; "
        "give a local folder instead",
        FIELD,
    )
