"""Tokens are made once and are the same for everyone, whatever happens to the folder in which they are kept."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finetune_reference import CHATML, a_config, completion, conversation, tiny_tokenizer, write_examples
from test_finetune_tokens import LLAMA2, THINKING, with_template

from hpsearch.dataset import load
from hpsearch.finetune import prepare
from hpsearch.finetune.prepare import _tokenised
from hpsearch.finetune.token_cache import STALE_SECONDS, TokenCache, token_key
from hpsearch.finetune.tokenised import TokenisedData, TokenisedSplit
from hpsearch.spec.data import DataSpec

KEY = "k" * 64
PATIENCE = 60
ARRAYS = ("ids", "completion", "offsets", "completion_tokens", "completion_bytes", "cut")
COUNTS = ("truncated", "left_out", "tokens_lost")

forked = multiprocessing.get_context("fork")


def a_split(examples: int = 5, seed: int = 0) -> TokenisedSplit:
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 9, examples)
    offsets = np.concatenate([[0], lengths.cumsum()])
    ids = random.integers(0, 999, offsets[-1]).astype(np.int32)
    return TokenisedSplit(ids, ids % 2 == 0, offsets, lengths // 2, lengths * 3, lengths > 5, 2, 1, 40 + seed)


def some_tokens(examples: int = 5, seed: int = 0) -> TokenisedData:
    return TokenisedData(a_split(examples, seed), a_split(3, seed + 1), f"fingerprint {seed}")


def same(one: TokenisedData, two: TokenisedData) -> bool:
    pairs = [(one.train, two.train), (one.validation, two.validation)]
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in ARRAYS)
    types = all(getattr(a, name).dtype == getattr(b, name).dtype for a, b in pairs for name in ARRAYS)
    counts = all(getattr(a, name) == getattr(b, name) for a, b in pairs for name in COUNTS)
    return arrays and types and counts and one.validation_fingerprint == two.validation_fingerprint


def never() -> TokenisedData:
    raise AssertionError("the tokens should have been there")


def get(folder: Path, make: Callable[[], TokenisedData] = never, key: str = KEY, **options) -> TokenisedData:
    return TokenCache(folder, **options).get(lambda: key, make)


def file_of(folder: Path, key: str = KEY) -> Path:
    return folder / f"{key}.safetensors"


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix not in (".safetensors", ".lock")]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    get(tmp_path / "tokens", some_tokens)
    return tmp_path / "tokens"


@pytest.mark.parametrize("record", [conversation, completion])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("template", [None, CHATML, LLAMA2, THINKING], ids=["none", "chatml", "llama2", "thinking"])
def test_tokens_from_the_cache_are_those_that_were_made(tmp_path, record, kind, template):
    tokenizer = with_template(template, kind)
    data = DataSpec(train=write_examples("cache.jsonl", map(record, range(30))), max_length=40)
    key = token_key(data, tokenizer, 40)
    calls = []

    def make() -> TokenisedData:
        calls.append(1)
        return _tokenised(load(data), tokenizer, 40, "auto")

    made, first, second = make(), *(get(tmp_path, make, key) for _ in range(2))
    assert same(made, first)
    assert same(made, second)
    assert made.train.fingerprint == second.train.fingerprint
    assert len(calls) == 2  # by hand, and the first time
    for one, two in zip(made.train.examples, second.train.examples, strict=True):
        assert one.ids.tolist() == two.ids.tolist()
        assert one.completion.tolist() == two.completion.tolist()


def test_preparing_from_the_cache_reads_no_example_and_changes_nothing(tmp_path, monkeypatch):
    config = a_config(max_length=30)
    without, cold = prepare(config), prepare(config, cache=tmp_path)
    monkeypatch.setattr(sys.modules[prepare.__module__], "load", never)
    warm = prepare(config, cache=tmp_path)
    for prepared in (cold, warm):
        assert prepared.train.fingerprint == without.train.fingerprint
        assert prepared.validation.fingerprint == without.validation.fingerprint
        assert prepared.evaluation_contract == without.evaluation_contract
        assert prepared.baseline == without.baseline
        assert prepared.warnings == without.warnings
    assert without.warnings
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_key_knows_all_that_decides_the_tokens(tmp_path):
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    content = write_examples("key.jsonl", map(conversation, range(20)))
    for path in (train, validation):
        path.write_bytes(Path(content).read_bytes())
    data = DataSpec(train=str(train), validation=str(validation))
    alone = DataSpec(train=str(train))
    tokenizer = with_template(CHATML)
    other_bos = with_template(CHATML)
    other_bos.bos_token = "<|im_start|>"
    keys = [
        token_key(data, tokenizer, 64),
        token_key(data, tokenizer, 65),
        token_key(data.model_copy(update={"chat_template": "plain"}), tokenizer, 64),
        token_key(data.model_copy(update={"format": "chat"}), tokenizer, 64),
        token_key(alone, tokenizer, 64),
        token_key(alone.model_copy(update={"validation_fraction": 0.2}), tokenizer, 64),
        token_key(data, with_template(None), 64),
        token_key(data, with_template(CHATML, "pieces"), 64),
        token_key(data, other_bos, 64),
    ]
    for path in (train, validation):
        path.write_bytes(path.read_bytes().replace(b"Paris", b"paris", 1))
        keys.append(token_key(data, tokenizer, 64))
    assert len(set(keys)) == len(keys)
    assert None not in keys
    moved = tmp_path / "moved.jsonl"
    train.rename(moved)
    assert token_key(data.model_copy(update={"train": str(moved)}), with_template(CHATML), 64) == keys[-1]
    assert token_key(data, tokenizer, 64) is None


def test_data_that_changes_while_it_is_tokenised_is_not_stored(tmp_path):
    keys = itertools.count()
    assert same(TokenCache(tmp_path).get(lambda: str(next(keys)), some_tokens), some_tokens())
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_making_raises_is_raised_and_frees_the_lock(tmp_path):
    def fail() -> TokenisedData:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        get(tmp_path, fail)
    assert same(get(tmp_path, some_tokens, patience_seconds=1), some_tokens())


def test_processes_that_need_the_same_make_it_once(tmp_path):
    barrier = forked.Barrier(4)
    made = forked.Value("i", 0)

    def slowly() -> TokenisedData:
        with made:
            made.value += 1
        time.sleep(0.5)
        return some_tokens(seed=7)

    def child() -> None:
        barrier.wait()
        os._exit(0 if same(get(tmp_path, slowly), some_tokens(seed=7)) else 1)

    children = [forked.Process(target=child) for _ in range(4)]
    for process in children:
        process.start()
    for process in children:
        process.join(PATIENCE)
    assert [process.exitcode for process in children] == [0] * 4
    assert made.value == 1
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"{KEY}.safetensors"]
    assert not leftovers(tmp_path)


def test_who_waits_in_vain_makes_it_himself(tmp_path, caplog):
    started, done = threading.Event(), threading.Event()

    def stuck() -> TokenisedData:
        started.set()
        done.wait(2 * PATIENCE)
        return some_tokens()

    thread = threading.Thread(target=get, args=(tmp_path, stuck))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        assert same(get(tmp_path, some_tokens, patience_seconds=0.1), some_tokens())
        assert "waited for tokens in vain" in caplog.text
        assert same(get(tmp_path), some_tokens())
    finally:
        done.set()
        thread.join()
    assert same(get(tmp_path), some_tokens())


def test_the_lock_of_a_killed_process_is_free(tmp_path, caplog):
    entered = forked.Event()

    def hang() -> TokenisedData:
        entered.set()
        time.sleep(300)
        return some_tokens()

    child = forked.Process(target=get, args=(tmp_path, hang))
    child.start()
    assert entered.wait(PATIENCE)
    child.kill()
    child.join()
    assert same(get(tmp_path, some_tokens, patience_seconds=5), some_tokens())
    assert "in vain" not in caplog.text


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03])
def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_is_trusted(tmp_path, delay):
    large = some_tokens(200_000)
    child = forked.Process(target=get, args=(tmp_path, lambda: large))
    child.start()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not any(tmp_path.glob("unfinished-*")) and child.is_alive():
        pass
    time.sleep(delay)
    child.kill()  # it may have ended by now
    child.join()
    assert same(get(tmp_path, lambda: large), large)
    assert same(get(tmp_path), large)


def test_what_a_kill_left_is_swept_away_in_time(filled):
    old, new = filled / "unfinished-old", filled / "unfinished-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / KEY).write_bytes(b"half")
    then = time.time() - STALE_SECONDS - 60
    os.utime(old, (then, then))
    get(filled, some_tokens, key="other")
    assert leftovers(filled) == ["unfinished-new"]


def test_a_truncated_file_is_made_anew(filled):
    whole = file_of(filled).read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file_of(filled).write_bytes(whole[:length])
        assert same(get(filled, lambda: some_tokens(seed=3)), some_tokens(seed=3))
        assert same(get(filled), some_tokens(seed=3))


def test_a_file_with_any_byte_changed_is_made_anew(filled):
    whole = file_of(filled).read_bytes()
    for place in range(0, len(whole), 13):
        file_of(filled).unlink()
        file_of(filled).write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        # Spaces that pad the header are the only bytes without a meaning.
        assert same(get(filled, some_tokens), some_tokens())


def test_the_file_of_another_key_is_not_taken(filled):
    file_of(filled).rename(file_of(filled, "other"))
    assert same(get(filled, lambda: some_tokens(seed=5), "other"), some_tokens(seed=5))


def test_a_file_of_another_version_is_made_anew(filled, monkeypatch):
    monkeypatch.setattr("hpsearch.finetune.token_cache.VERSION", "0")
    assert same(get(filled, lambda: some_tokens(seed=4)), some_tokens(seed=4))


def test_a_folder_that_cannot_be_made_costs_only_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file" / "tokens", Path("/proc/hpsearch/tokens")):
        with caplog.at_level(logging.WARNING):
            assert same(get(folder, some_tokens), some_tokens())
        assert "tokens not stored" in caplog.text
        caplog.clear()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read_from_and_costs_nothing_else(filled):
    filled.chmod(0o500)
    try:
        assert same(get(filled), some_tokens())
        assert same(get(filled, lambda: some_tokens(seed=1), "other"), some_tokens(seed=1))
    finally:
        filled.chmod(0o700)


def test_a_full_disk_costs_only_the_cache(tmp_path):
    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        made = get(tmp_path, lambda: some_tokens(5000))
        os._exit(0 if same(made, some_tokens(5000)) and not leftovers(tmp_path) else 1)

    process = forked.Process(target=child)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert not list(tmp_path.glob("*.safetensors"))
    assert same(get(tmp_path, lambda: some_tokens(5000)), some_tokens(5000))


def test_the_files_used_longest_ago_go_first(tmp_path):
    get(tmp_path, some_tokens, "a")
    size = file_of(tmp_path, "a").stat().st_size
    get(tmp_path, some_tokens, "b")
    for name, age in (("a", 300), ("b", 200)):
        os.utime(file_of(tmp_path, name), (time.time() - age,) * 2)
    get(tmp_path, key="a")  # used just now
    mapped = get(tmp_path, key="b")
    os.utime(file_of(tmp_path, "b"), (time.time() - 100,) * 2)
    get(tmp_path, some_tokens, "c", most_bytes=int(2.5 * size))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["a", "c"]
    assert sorted(path.stem for path in tmp_path.glob("*.lock")) == ["a", "c"]
    assert same(mapped, some_tokens())  # those who read it keep it


def test_what_is_larger_than_the_whole_cache_is_not_stored(filled):
    assert same(get(filled, lambda: some_tokens(500), "large", most_bytes=3000), some_tokens(500))
    assert not file_of(filled, "large").exists()
    assert same(get(filled), some_tokens())


def test_the_folder_is_private(tmp_path):
    get(tmp_path / "cache" / "tokens", some_tokens)
    for folder in (tmp_path / "cache", tmp_path / "cache" / "tokens"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_readers_map_the_file_and_copy_nothing(filled):
    get(filled, lambda: some_tokens(1000), "mapped")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert not any("mapped.safetensors" in line for line in maps.read_text().splitlines())  # who made it has it
    tokens = get(filled, key="mapped")
    assert any("mapped.safetensors" in line for line in maps.read_text().splitlines())
    file_of(filled, "mapped").unlink()
    assert same(tokens, some_tokens(1000))


def test_cut_examples_are_told_with_numbers():
    prepared = prepare(a_config(max_length=24))
    train, validation = prepared.warnings
    split = prepared.train
    assert f"data.train: {split.truncated} of 40 examples had more than 24 tokens" in train
    assert f"{split.tokens_lost:,} tokens" in train
    assert f"{split.left_out} of 40 examples had no completion left" in train
    assert train.endswith("raise data.max_length")
    assert validation.startswith("data.validation: ")
    assert prepare(a_config(max_length=128)).warnings == ()
    beyond = prepare(a_config(max_length=128, data="prompt_completion"))
    assert beyond.warnings == ()


def test_no_lost_token_is_forgotten():
    tokenizer = tiny_tokenizer()
    data = DataSpec(train=write_examples("lost.jsonl", map(conversation, range(40))), validation_fraction=0.25)
    examples = load(data)
    whole = _tokenised(examples, tokenizer, 10_000, "auto")
    for max_length in (8, 20, 30):
        cut = _tokenised(examples, tokenizer, max_length, "auto")
        for one, two in ((whole.train, cut.train), (whole.validation, cut.validation)):
            assert len(one.ids) == len(two.ids) + two.tokens_lost
            assert len(one.examples) == len(two.examples) + two.left_out
            assert two.truncated == sum(len(example) > max_length for example in one.examples)
