"""Facts about a base model from its files."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.basemodel import describe
from hpsearch.errors import UnknownModel, UnsupportedModel

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
}


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\1" * offset


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of 10 * 4 + 4 parameters."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(safetensors({"layers.0.mlp.up_proj.weight": [10, 4], "b": [4]}))
    (path / "tokenizer.json").write_text("{}")
    return path


def configure(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def test_a_folder_is_described(folder):
    found = describe(str(folder), None)
    assert (found.path, found.revision) == (str(folder), None)
    assert (found.model_type, found.layers, found.parameters, found.max_positions) == ("llama", 3, 44, 128)
    assert len(found.fingerprint) == 64


def test_shards_are_counted_by_their_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "one.safetensors").write_bytes(safetensors({"a": [3]}))
    (folder / "two.safetensors").write_bytes(safetensors({"b": [2, 2]}))
    (folder / "stray.safetensors").write_bytes(safetensors({"c": [99]}))
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe(str(folder), None).parameters == 7
    (folder / "two.safetensors").unlink()
    with pytest.raises(UnknownModel, match=r"lacks the weights two\.safetensors"):
        describe(str(folder), None)


def test_an_index_can_not_point_outside_of_the_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnknownModel, match=r"lacks the weights \.\./outside"):
        describe(str(folder), None)


@pytest.mark.parametrize(
    ("config", "layers", "positions"),
    [
        ({"model_type": "gpt2", "n_layer": 12, "n_positions": 1024}, 12, 1024),
        ({"model_type": "bloom", "n_layer": 2, "seq_length": 64, "architectures": None}, 2, 64),
        ({"model_type": "mamba", "num_hidden_layers": 2}, 2, None),
    ],
)
def test_families_name_their_sizes_differently(folder, config, layers, positions):
    (folder / "config.json").write_text(json.dumps(config))
    found = describe(str(folder), None)
    assert (found.layers, found.max_positions) == (layers, positions)


def test_the_fingerprint_changes_with_the_model(folder):
    prints = {describe(str(folder), None).fingerprint}
    configure(folder, rms_norm_eps=1e-5)
    prints.add(describe(str(folder), None).fingerprint)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] = 2
    (folder / "model.safetensors").write_bytes(bytes(weights))
    prints.add(describe(str(folder), None).fingerprint)
    (folder / "model.safetensors").write_bytes(safetensors({"a": [10, 5]}))
    prints.add(describe(str(folder), None).fingerprint)
    assert len(prints) == 4
    shutil.copytree(folder, folder.parent / "copy")
    assert describe(str(folder.parent / "copy"), None).fingerprint in prints


LLAMA = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.mlp.up_proj.weight": [6, 4],
    "model.layers.0.input_layernorm.weight": [4],
    "model.layers.1.self_attn.q_proj.weight": [4, 4],
    "model.layers.1.mlp.up_proj.weight": [6, 4],
    "lm_head.weight": [8, 4],
}
GPT2 = {"wte.weight": [8, 4], "h.0.attn.c_attn.weight": [4, 12], "h.0.attn.c_attn.bias": [12], "h.0.attn.bias": [1, 9]}
NAMED_OTHERWISE = LLAMA | {"model.layers.1.mlp.router.weight": [6, 4]}


@pytest.mark.parametrize(
    ("shapes", "config", "layers"),
    [
        pytest.param(LLAMA, {}, ("mlp.up_proj", "self_attn.q_proj"), id="llama"),
        pytest.param(GPT2, {}, ("attn.c_attn",), id="gpt2-without-its-prefix"),
        pytest.param(NAMED_OTHERWISE, {}, (), id="names-that-loading-may-change"),
        pytest.param({"weight": [4, 4]}, {}, (), id="no-blocks"),
        pytest.param(LLAMA, {"quantization_config": {"bits": 4}}, (), id="quantised"),
    ],
)
def test_linear_layers_are_those_of_the_blocks_where_the_file_says_so_for_certain(folder, shapes, config, layers):
    configure(folder, **config)
    (folder / "model.safetensors").write_bytes(safetensors(shapes))
    assert describe(str(folder), None).linear_layers == layers


MISSING = {
    "config.json": "has no config.json; save one",
    "model.safetensors": "has no weights: model.safetensors",
    "tokenizer.json": "has no tokenizer",
}


@pytest.mark.parametrize(("name", "text"), MISSING.items())
def test_what_is_missing_is_named(folder, name, text):
    (folder / name).unlink()
    with pytest.raises(UnknownModel, match=text) as caught:
        describe(str(folder), None)
    assert caught.value.field == "model.base"


def test_other_kinds_of_tokenizer_files_will_do(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(UnknownModel):
        describe(str(folder), None)
    (folder / "merges.txt").write_text("")
    assert describe(str(folder), None).layers == 3


def test_an_adapter_is_no_base_model(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnknownModel, match="it is an adapter: name the base model"):
        describe(str(folder), None)


def test_no_folder_and_no_id(tmp_path):
    with pytest.raises(UnknownModel, match="there is no folder"):
        describe(str(tmp_path / "none"), None)
    for base in ("a b", "../model", "./model", "a/b/c", "a\n", ""):
        with pytest.raises(UnknownModel, match="neither an absolute folder nor a hub id"):
            describe(base, None)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UnsupportedModel, match="only pickled weights"):
        describe(str(folder), None)


UNSUPPORTED = {
    "code-of-its-own": ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map"),
    "an-encoder": ({"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
    "no-type": ({"model_type": None}, "no model_type"),
    "no-layers": ({"num_hidden_layers": None}, "no number of layers"),
    "architectures-not-a-list": ({"architectures": "LlamaForCausalLM"}, "not a causal language model"),
}


@pytest.mark.parametrize(("changes", "text"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_can_not_be_fine_tuned_is_refused(folder, changes, text):
    configure(folder, **changes)
    with pytest.raises(UnsupportedModel, match=text) as caught:
        describe(str(folder), None)
    assert caught.value.field == "model.base"


def test_code_in_the_folder_is_refused(folder):
    (folder / "modeling_own.py").write_text("")
    with pytest.raises(UnsupportedModel, match=r"modeling_own\.py"):
        describe(str(folder), None)


def test_a_tokenizer_with_code_is_refused(folder):
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(UnsupportedModel, match=r"tokenizer .* code of its own"):
        describe(str(folder), None)


BROKEN_WEIGHTS = {
    "empty": b"",
    "no-header": struct.pack("<Q", 10),
    "header-too-long": struct.pack("<Q", 2**60) + b"{}",
    "not-json": struct.pack("<Q", 4) + b"abcd",
    "not-an-object": struct.pack("<Q", 2) + b"[]",
    "odd-entries": struct.pack("<Q", 8) + b'{"a": 1}',
    "cut-off": safetensors({"a": [10]})[:-1],
    "a-pickle": b"\x80\x04\x95" + b"\0" * 100,
}


@pytest.mark.parametrize("content", BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS)
def test_broken_weights_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"safetensors|cut off"):
        describe(str(folder), None)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_broken_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json is not"):
        describe(str(folder), None)


def in_fresh_interpreter(code: str, home: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    return done.stdout


def cached(home: Path, folder: Path, commit: str) -> None:
    """The hub's cache layout, with one model in it."""
    repository = home / "hub" / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_a_hub_model_is_described_from_the_cache_without_a_network(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached(tmp_path / "home", folder, commit)
    code = "from hpsearch.basemodel import describe; print(describe('org/tiny', None))"
    found = in_fresh_interpreter(code, tmp_path / "home")
    assert "parameters=44" in found
    assert "linear_layers=('mlp.up_proj',)" in found
    assert f"fingerprint='{commit}'" in found


def test_a_hub_model_that_is_not_there_says_what_to_do(tmp_path):
    code = (
        "from hpsearch.basemodel import describe\n"
        "from hpsearch.errors import UnknownModel\n"
        "try: describe('org/none', 'v2')\n"
        "except UnknownModel as error: print(error.field, error)"
    )
    found = in_fresh_interpreter(code, tmp_path)
    assert found.startswith("model.base base model 'org/none' at revision 'v2'")
    assert "give a local folder" in found


def test_reading_facts_and_data_loads_nothing_heavy(folder):
    code = (
        "import sys, hpsearch.dataset\n"
        "from hpsearch.basemodel import describe\n"
        f"describe({str(folder)!r}, None)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    assert in_fresh_interpreter(code, folder).strip() == "[]"
