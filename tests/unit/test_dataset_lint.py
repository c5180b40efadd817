"""Lint: what is refused and what is warned of, each with its line, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpsearch.api.preflight import Preflight
from hpsearch.basemodel import describe, token_counter
from hpsearch.dataset import LintReport, lengths, lint, lint_overlap, load
from hpsearch.errors import UnsupportedModel
from hpsearch.storage import Database, Datasets
from tests.builders import a_spec
from tests.conftest import STUDIES
from tests.unit.test_dataset_duplicates import a_text, edited


def a_line(completion: str, prompt: str = "p") -> str:
    return json.dumps({"prompt": prompt, "completion": completion})


def a_file(folder: Path, name: str, texts) -> Path:
    return written(folder / name, map(a_line, texts))


def written(path: Path, lines) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def words(text: str) -> int:
    """A tokenizer for tests: a token is a word."""
    return len(text.split())


def only(warnings, start: str) -> str:
    """The one warning that begins with so."""
    (warning,) = (warning for warning in warnings if start in warning)
    return warning


def of_validation(path: Path) -> LintReport:
    return lint(path, role="validation")


def chat(*messages: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]})


GOOD = chat(("user", "A question?"), ("assistant", "An answer."))


def test_one_file_with_each_fault(tmp_path):
    lines = [
        GOOD,
        '{"messages": [',
        "[1]",
        chat(("user", "A question?"), ("robot", "An answer.")),
        chat(("user", "A question?"), ("system", "Be brief.")),
        chat(("user", "A question?"), ("assistant", "  ")),
        json.dumps({"prompt": "A question?", "completion": "An answer."}),
        json.dumps({"messages": "A question?"}),
        json.dumps({"messages": [{"role": "user"}]}),
        GOOD,
    ]
    report = lint(written(tmp_path / "faulty.jsonl", lines))
    assert not report.is_usable
    assert report.examples == 2
    expected = {
        2: "not JSON",
        3: "not a JSON object",
        4: "unknown role 'robot'",
        5: "no assistant message to learn",
        6: "message 2 (assistant) is empty",
        7: "'messages' is missing",
        8: "not a list",
        9: "has no content",
    }
    assert [line for line, _ in report.faults] == list(expected)
    for line, text in report.faults:
        assert expected[line] in text


def test_an_empty_completion_is_a_fault(tmp_path):
    report = lint(a_file(tmp_path, "a.jsonl", [*map(str, range(20)), " "]))
    assert report.faults == ((21, "the completion is empty"),)


def test_one_file_with_each_suspicion(tmp_path):
    dice = random.Random(1)
    texts = [a_text(dice, 400) for _ in range(20)]
    long = a_text(dice, 1200)
    lines = [a_line(text) for text in texts]
    lines += [a_line(texts[4]), a_line(edited(texts[6], dice)), a_line(long), a_line("yes", prompt=a_text(dice, 900))]
    report = lint(written(tmp_path / "a.jsonl", lines), max_length=100, count_tokens=words)
    few, exact, near, ratio, cut = report.warnings
    assert report.is_usable
    assert few.startswith("only 24 examples")
    assert exact == "1 exact duplicate: line 21 repeats line 5"
    assert near == "1 near-duplicate: line 22 is like line 7; take out those that teach nothing new"
    share = 100 * report.prompt_bytes / (report.prompt_bytes + report.completion_bytes)
    assert ratio.startswith(f"prompts are only {share:.2g} % of the text: prompt_loss_weight can hardly matter")
    over = words(f"p{long}") - 100 + words(json.loads(lines[-1])["prompt"] + "yes") - 100
    assert cut.startswith("about 2 of 24 examples are longer than data.max_length (100 tokens; lines 23, 24): about")
    assert f"about {over} tokens (" in cut
    assert "1 loses its whole completion (lines 24); raise data.max_length" in cut
    figures = report.as_json()
    assert (figures["exact_duplicates"], figures["near_duplicates"], figures["too_long"]) == (1, 1, 2)


def test_lint_of_a_good_file_is_silent(tmp_path):
    report = lint(a_file(tmp_path, "a.jsonl", map(str, range(60))))
    assert report.is_usable
    assert report.as_json() == {
        "format": "prompt_completion",
        "examples": 60,
        "faults": [],
        "warnings": [],
        "exact_duplicates": 0,
        "near_duplicates": 0,
        "prompt_bytes": 60,
        "completion_bytes": 110,
        "too_long": None,
        "left_out": 0,
        "tokens": None,
    }


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


def test_lint_names_a_few_near_duplicates_of_many(tmp_path):
    dice = random.Random(2)
    text = a_text(dice, 300)
    near = only(lint(a_file(tmp_path, "a.jsonl", [text, *(f"{text} {n}" for n in range(12))])).warnings, "near-dup")
    assert near.startswith("12 near-duplicates: line 2 is like line 1, line 3 is like line 1, ")
    assert "line 6 is like line 1, ...; take out" in near


def test_long_prompts_let_the_prompt_loss_weight_take_over(tmp_path):
    dice = random.Random(3)
    lines = [a_line("0123456789", a_text(dice, 200)) for _ in range(60)]
    path = written(tmp_path / "a.jsonl", lines)
    (warning,) = lint(path).warnings
    assert warning.startswith("prompts are 20 times as long as completions: above a prompt_loss_weight of about 0.05 ")
    assert lint(path, role="validation").warnings == ()
    assert lint(path, role="either").warnings == (warning,)


def test_context_that_is_not_learned_counts_as_prompt(tmp_path):
    turn = [("system", "1234"), ("user", "12"), ("assistant", "123"), ("user", "1"), ("assistant", "é")]
    report = lint(written(tmp_path / "a.jsonl", [chat(*turn)] * 10))
    assert (report.prompt_bytes, report.completion_bytes) == (70, 50)


def test_behind_the_first_ones_only_texts_that_may_be_too_long_are_tokenised(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "FIRST_BYTES", 50)
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return words(text)

    path = a_file(tmp_path, "a.jsonl", ["x" * 99, "z" * 99, "y" * 100, *map(str, range(10))])
    assert lint(path, max_length=100, count_tokens=count).too_long == 0
    assert asked == ["p" + "x" * 99, "p" + "y" * 100]


def test_the_tokens_of_a_file_are_told_from_its_first_texts(tmp_path, monkeypatch):
    texts = ["a " * 20 + str(number) for number in range(100)]
    path = a_file(tmp_path, "a.jsonl", texts)
    exact = sum(words(f"p{text}") for text in texts)
    assert lint(path, max_length=100, count_tokens=words).tokens == exact
    assert lint(path, max_length=10, count_tokens=words).tokens == 10 * len(texts), "what is cut off is not read"
    monkeypatch.setattr(lengths, "FIRST_BYTES", 500)
    assert lint(path, max_length=100, count_tokens=words).tokens == pytest.approx(exact, rel=0.02)
    without = lint(path, max_length=100, count_tokens=lambda _: None)
    assert (without.tokens, without.too_long) == (None, 0), "by their bytes, none can be too long"


def test_what_comes_later_is_sampled_too_and_what_is_left_out_is_not_counted(tmp_path):
    """Sorted files: short words first, then long ones; and examples whose completions are cut off."""
    texts = [f"{'ab ' * 100}{number}" for number in range(1000)] + [
        f"{'abcdef ' * 40}{number}" for number in range(1000)
    ]
    for order in (texts, texts[::-1]):
        exact = sum(words(f"p{text}") for text in order)
        assert lint(a_file(tmp_path, "a.jsonl", order), max_length=200, count_tokens=words).tokens == pytest.approx(
            exact, rel=0.02
        )
    whole, lost = chat(("user", "a " * 50), ("assistant", "b " * 50)), chat(("user", "a " * 300), ("assistant", "b"))
    path = written(tmp_path / "cut.jsonl", [whole, lost] * 2000)
    report = lint(path, max_length=200, count_tokens=words)
    assert report.tokens == pytest.approx(2000 * (100 + 2 * lengths.MESSAGE_TOKENS), rel=0.15)


def test_a_chat_loses_its_completion_when_the_first_answer_is_cut_off(tmp_path):
    first = chat(("system", "a " * 30), ("user", "b " * 30), ("assistant", "c " * 60))
    later = chat(("user", "a " * 10), ("assistant", "c " * 10), ("user", "b " * 90), ("assistant", "d"))
    report = lint(written(tmp_path / "a.jsonl", [first, later] * 5), max_length=50, count_tokens=words)
    cut = only(report.warnings, "data.max_length")
    assert "about 10 of 10 examples" in cut
    assert "5 lose their whole completion (lines 1, 3, 5, 7, 9)" in cut


def test_very_much_long_text_is_estimated_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths, "COUNTED_BYTES", 1000)
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return words(text)

    path = a_file(tmp_path, "a.jsonl", ["a " * 200 + str(number) for number in range(50)])
    report = lint(path, max_length=100, count_tokens=count)
    assert len(asked) < 8, "a text and its prompt each"
    assert report.too_long == 50
    assert "about 5,0" in only(report.warnings, "data.max_length")  # 201 words each


def test_without_a_tokenizer_nothing_is_said_of_long_examples(tmp_path):
    path = a_file(tmp_path, "a.jsonl", [f"{number} " * 500 for number in range(60)])
    for report in (lint(path, max_length=100), lint(path, max_length=100, count_tokens=lambda _: None)):
        assert (report.too_long, report.tokens) == (None, None)
        assert not any("max_length" in warning for warning in report.warnings)


def test_a_models_tokenizer_counts_tokens(tmp_path):
    model = describe(str((STUDIES / "models" / "pydoc-llama").resolve()))
    text = "def read(path): return the lines of a file, é and all " * 20
    counted = token_counter(model)(text)
    assert counted is not None
    assert 100 < counted <= len(text.encode())


def test_checking_a_study_says_what_the_model_cuts_off(tmp_path, home):
    texts = [f"Example {number}" for number in range(60)]
    path = a_file(tmp_path, "a.jsonl", [*texts, a_text(random.Random(5), 9000)])
    data = {"train": str(path), "validation_fraction": 0.2, "max_length": 1_000_000}
    settings = home.model_copy(update={"allowed_roots": (STUDIES, tmp_path)})
    uploads = Datasets(Database(settings.sql_url), settings.datasets_folder)
    checked = Preflight(a_spec(data=data), settings, uploads)
    most = checked.model.max_positions
    cut = only(checked.warnings, "data.train: about 1 of 61")
    assert f"longer than what the model can read ({most} tokens; lines 61)" in cut
    assert "data.max_length" not in cut
    assert sum(checked.examples.values()) == 61
    split = load(checked.spec.data)
    assert checked.examples == {"train": len(split.train), "validation": len(split.validation)}


def test_data_of_which_next_to_nothing_is_left_to_learn_is_refused(tmp_path):
    lost = chat(("user", "a " * 60), ("assistant", "b"))
    for role, fewest in (("train", 10), ("validation", 1)):
        kept = [chat(("user", f"{number}"), ("assistant", "b")) for number in range(fewest)]
        sound = lint(written(tmp_path / "a.jsonl", [*kept, *[lost] * 30]), "auto", role, 50, words)
        assert sound.is_usable
        short = lint(written(tmp_path / "a.jsonl", [*kept[1:], *[lost] * 30]), "auto", role, 50, words)
        ((line, text),) = short.faults
        assert line == 0
        assert text == (
            f"only {fewest - 1} of {fewest + 29} examples keep any completion within 50 tokens, and {fewest} are "
            "needed: raise data.max_length, or shorten them"
        )


def test_a_model_whose_tokenizer_is_damaged_is_refused_before_anything_is_queued(tmp_path, home):
    shutil.copytree(STUDIES / "models/pydoc-llama", tmp_path / "damaged")
    (tmp_path / "damaged/tokenizer.json").write_text("{")
    settings = home.model_copy(update={"allowed_roots": (STUDIES, tmp_path)})
    uploads = Datasets(Database(settings.sql_url), settings.datasets_folder)
    with pytest.raises(UnsupportedModel, match=r"model\.base: .*tokenizer\.json can't be loaded"):
        Preflight(a_spec(model={"base": "damaged"}), settings, uploads)


@pytest.mark.parametrize("content", [None, "{}", "not JSON"], ids=["missing", "no tokenizer", "broken"])
def test_a_tokenizer_that_can_not_be_loaded_counts_nothing(tmp_path, content):
    model = describe(str((STUDIES / "models" / "pydoc-llama").resolve()))
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    assert token_counter(replace(model, path=str(tmp_path)))("a text") is None


def test_lint_counts_the_overlap_of_two_files(tmp_path):
    train = lint(a_file(tmp_path, "t.jsonl", map(str, range(30))))
    validation = of_validation(a_file(tmp_path, "v.jsonl", ["x", "7", "y", "3"]))
    (warning,) = lint_overlap({"train": train, "validation": validation})
    assert warning == "2 validation examples are also training examples (validation lines 2, 4)"
    other = of_validation(a_file(tmp_path, "w.jsonl", ["x"]))
    assert lint_overlap({"train": train, "validation": other}) == ()


def test_test_examples_that_were_seen_before_are_told_with_where(tmp_path):
    train = lint(a_file(tmp_path, "t.jsonl", map(str, range(30))))
    validation = of_validation(a_file(tmp_path, "v.jsonl", ["x", "y"]))
    test = lint(a_file(tmp_path, "s.jsonl", ["z", "y", "12"]), role="test")
    assert test.is_usable
    assert test.warnings == ("only 3 examples: what a trial gains on so few is known within wide limits only",)
    assert lint(a_file(tmp_path, "many.jsonl", map(str, range(100, 140))), role="test").warnings == ()
    assert lint_overlap({"train": train, "validation": validation, "test": test}) == (
        "1 test examples are also training examples (test lines 3)",
        "1 test examples are also validation examples (test lines 2)",
    )
    assert lint_overlap({"train": train, "test": test}) == (
        "1 test examples are also training examples (test lines 3)",
    ), "where the validation examples are held back from the training file"


def test_lint_counts_the_near_overlap_apart(tmp_path):
    dice = random.Random(4)
    texts = [a_text(dice, 300) for _ in range(30)]
    train = lint(a_file(tmp_path, "t.jsonl", texts))
    validation = of_validation(a_file(tmp_path, "v.jsonl", [texts[3], edited(texts[5], dice), a_text(dice, 300)]))
    exact, near = lint_overlap({"train": train, "validation": validation})
    assert exact == "1 validation examples are also training examples (validation lines 1)"
    assert near.startswith(
        "1 validation examples are near-duplicates of training examples: validation line 2 is like training line 6; "
    )


MEASURE = """
import resource, sys, tracemalloc
from pathlib import Path
from hpsearch.dataset import duplicates, lint
peaks = []
for path in sys.argv[1:]:
    tracemalloc.start()
    report = lint(Path(path))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert report.is_usable and report.near_duplicates == 0, report
print(*peaks)
"""


def test_a_large_file_streams_through_in_bounded_memory(tmp_path):
    """Everything that Python and numpy allocate is counted; all lines differ, the worst case."""
    sizes = 5_000, 20_000
    paths = [
        a_file(tmp_path, f"{size}.jsonl", (hashlib.sha256(b"%d" % number).hexdigest() for number in range(size)))
        for size in sizes
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True, timeout=250
    )
    small, large = map(int, done.stdout.split())
    assert (large - small) / (sizes[1] - sizes[0]) < 400
    assert large < 10e6 + 400 * sizes[1]
