"""Splitting, fingerprints and loading."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.dataset import TextExample, fingerprint, load, split
from hpsearch.dataset.fingerprint import content_digest
from hpsearch.errors import InvalidDataset, TooFewExamples, UnknownDataset
from hpsearch.spec.data import DataSpec
from tests.unit.test_dataset_duplicates import a_text, edited, families, grouped


def examples(*texts: str) -> list[TextExample]:
    return [TextExample("p", text, line) for line, text in enumerate(texts, start=1)]


def a_file(folder: Path, name: str, texts) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": "p", "completion": text}) + "\n" for text in texts))
    return path


def said(part) -> list[str]:
    return [example.completion for example in part]


some_texts = st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=40)
fractions = st.floats(0.01, 0.99)


@given(texts=some_texts, fraction=fractions)
def test_a_split_divides_and_keeps_duplicates_on_one_side(texts, fraction):
    train, validation = split(examples(*texts), fraction)
    assert sorted(said(train) + said(validation)) == sorted(texts)
    assert not set(said(train)) & set(said(validation))
    assert train
    assert bool(validation) == (len(set(texts)) > 1)


@given(texts=some_texts, more=some_texts, fraction=fractions)
def test_examples_stay_on_their_side_when_others_are_added(texts, more, fraction):
    before = set(said(split(examples(*texts), fraction)[1]))
    after = set(said(split(examples(*more, *texts), fraction)[1]))
    moved = {text for text in texts if (text in before) != (text in after)}
    assert len(moved) <= 2  # only those that were moved so that no side is empty


def sides(texts, fraction: float) -> list[bool]:
    """Of each text whether it is held back."""
    numbered = examples(*texts)
    held = {example.line for example in split(numbered, fraction)[1]}
    return [example.line in held for example in numbered]


def by_its_hash_alone(text: str, fraction: float) -> bool:
    return int.from_bytes(content_digest(TextExample("p", text, 1))[:8], "big") < fraction * 2**64


ANCHORS = [
    next(text for text in map(str, range(10_000)) if by_its_hash_alone(text, 0.005)),
    next(text for text in map(str, range(10_000)) if not by_its_hash_alone(text, 0.995)),
]
"""One far at each end, so that no side is ever empty and nothing moves for that reason."""


@given(texts=families(), fraction=fractions)
def test_near_duplicates_are_on_the_side_of_the_first(texts, fraction):
    texts = ANCHORS + texts
    held = sides(texts, fraction)
    for place, first in enumerate(grouped(f"p {text}" for text in texts)):
        assert held[place] == by_its_hash_alone(texts[first], fraction)


@given(texts=families(), more=families(), fraction=fractions)
def test_appending_moves_only_groups_that_it_joins(texts, more, fraction):
    texts = ANCHORS + texts
    before, after = sides(texts, fraction), sides(texts + more, fraction)[: len(texts)]
    apart, joined = grouped(f"p {text}" for text in texts), grouped(f"p {text}" for text in texts + more)
    for place in range(len(texts)):
        if before[place] != after[place]:
            assert apart[place] != joined[place]


@given(texts=families(), more=families(), fraction=fractions, dice=st.randoms(use_true_random=False))
def test_what_has_no_near_duplicate_never_moves(texts, more, fraction, dice):
    own = [a_text(random.Random(10**7 + number), 200) for number in range(5)]
    everything = ANCHORS + own + texts + more
    dice.shuffle(everything)
    held = dict(zip(everything, sides(everything, fraction), strict=True))
    assert [held[text] for text in own] == [by_its_hash_alone(text, fraction) for text in own]


def test_files_without_near_duplicates_are_split_as_by_hash_alone():
    texts = [a_text(random.Random(number), 120) for number in range(2000)]
    assert sides(texts, 0.1) == [by_its_hash_alone(text, 0.1) for text in texts]


def test_examples_that_are_all_alike_are_divided_by_content():
    dice = random.Random(1)
    text = a_text(dice, 2000)
    texts = [edited(text, dice) for _ in range(12)]
    assert len(set(grouped(texts))) == 1
    for fraction in (0.01, 0.1, 0.5, 0.99):
        train, validation = split(examples(*texts), fraction)
        assert train
        assert validation


def test_the_fraction_is_kept():
    _, validation = split(examples(*map(str, range(5000))), 0.1)
    assert 400 < len(validation) < 600


def test_the_order_is_kept():
    train, validation = split(examples(*map(str, range(100))), 0.3)
    for part in (train, validation):
        assert [example.line for example in part] == sorted(example.line for example in part)


def test_a_fingerprint_is_of_the_content_and_its_order():
    one, other = examples("a", "b"), [TextExample("p", "a", 70), TextExample("p", "b", 80)]
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(one[::-1])
    assert fingerprint([TextExample("ab", "c", 1)]) != fingerprint([TextExample("a", "bc", 1)])
    assert len(fingerprint(one)) == 64


def a_spec(train: Path, validation: Path | None = None, **changes) -> DataSpec:
    return DataSpec(train=str(train), validation=str(validation) if validation else None, **changes)


def test_load_takes_the_validation_file(tmp_path):
    train = a_file(tmp_path, "t.jsonl", map(str, range(10)))
    validation = a_file(tmp_path, "v.jsonl", ["x"])
    data = load(a_spec(train, validation))
    assert (len(data.train), said(data.validation)) == (10, ["x"])


def test_load_holds_examples_back_without_one(tmp_path):
    data = load(a_spec(a_file(tmp_path, "t.jsonl", map(str, range(200))), validation_fraction=0.25))
    assert len(data.train) + len(data.validation) == 200
    assert 30 < len(data.validation) < 70


def test_load_refuses_what_can_not_be_trained_on(tmp_path):
    good = a_file(tmp_path, "t.jsonl", map(str, range(10)))
    few = a_file(tmp_path, "few.jsonl", map(str, range(9)))
    same = a_file(tmp_path, "same.jsonl", ["a"] * 12)
    empty = a_file(tmp_path, "empty.jsonl", [])
    with pytest.raises(TooFewExamples, match=r"few\.jsonl has 9 examples; at least 10") as caught:
        load(a_spec(few))
    assert caught.value.field == "data.train"
    with pytest.raises(InvalidDataset, match="all training examples are the same"):
        load(a_spec(same))
    with pytest.raises(TooFewExamples) as caught:
        load(a_spec(good, empty))
    assert caught.value.field == "data.validation"
    with pytest.raises(UnknownDataset) as caught:
        load(a_spec(tmp_path / "none.jsonl"))
    assert caught.value.field == "data.train"
    with pytest.raises(UnknownDataset) as caught:
        load(a_spec(good, tmp_path / "none.jsonl"))
    assert caught.value.field == "data.validation"
