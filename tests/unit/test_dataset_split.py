"""Splitting, fingerprints, loading and lint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.dataset import TextExample, fingerprint, lint, lint_overlap, load, split
from hpsearch.errors import InvalidDataset, TooFewExamples, UnknownDataset
from hpsearch.spec.data import DataSpec


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


def test_lint_of_a_good_file_is_silent(tmp_path):
    report = lint(a_file(tmp_path, "a.jsonl", map(str, range(60))))
    assert report.is_usable
    assert report.as_json() == {"format": "prompt_completion", "examples": 60, "faults": [], "warnings": []}


def test_lint_warns_of_few_examples_and_of_duplicates(tmp_path):
    report = lint(a_file(tmp_path, "a.jsonl", ["x", "y", "x", *map(str, range(20)), "y", "x"]))
    assert report.is_usable
    few, duplicates = report.warnings
    assert few.startswith("only 25 examples")
    assert duplicates == "3 exact duplicates: line 3 repeats line 1, line 24 repeats line 2, line 25 repeats line 1"


def test_lint_names_a_few_duplicates_of_many(tmp_path):
    (duplicates,) = lint(a_file(tmp_path, "a.jsonl", ["x"] * 60)).warnings
    assert duplicates.startswith("59 exact duplicates: line 2 repeats line 1")
    assert duplicates.endswith("line 6 repeats line 1, ...")


def test_lint_finds_the_faults_that_reading_refuses(tmp_path):
    path = a_file(tmp_path, "a.jsonl", map(str, range(30)))
    path.write_text(path.read_text() + "x\n\n{}\n")
    report = lint(path)
    assert not report.is_usable
    assert [line for line, _ in report.faults] == [31, 33]
    assert report.as_json()["faults"][0] == {"line": 31, "text": "not JSON (Expecting value, column 1)"}


def test_lint_refuses_too_few_to_train_on_and_none_to_validate_on(tmp_path):
    few = a_file(tmp_path, "few.jsonl", "abc")
    assert lint(few).faults == ((0, "few.jsonl has 3 examples; at least 10 are needed to train on"),)
    assert lint(few, role="validation").is_usable
    assert not lint(a_file(tmp_path, "empty.jsonl", []), role="validation").is_usable


def test_lint_counts_the_overlap_of_two_files(tmp_path):
    train = a_file(tmp_path, "t.jsonl", map(str, range(30)))
    validation = a_file(tmp_path, "v.jsonl", ["x", "7", "y", "3"])
    (warning,) = lint_overlap(train, validation)
    assert warning == "2 validation examples are also training examples (validation lines 2, 4)"
    assert lint_overlap(train, a_file(tmp_path, "w.jsonl", ["x"])) == ()
