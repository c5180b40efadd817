"""Lines become examples, or faults with their numbers."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.dataset import ChatExample, Message, TextExample, read_examples
from hpsearch.dataset.lines import LONGEST_LINE
from hpsearch.errors import InvalidDataset, UnknownDataset

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"prompt": "Q:", "completion": " A"}


def a_file(folder: Path, *lines: object) -> Path:
    """Each line as it is when it is bytes or text, else as JSON."""
    path = folder / "examples.jsonl"
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def chat(*messages: object, **rest: object) -> dict[str, object]:
    return {"messages": list(messages), **rest}


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}

FAULTY_CHATS = {
    "invalid-utf-8": (b'{"messages": "\xff"}', "not UTF-8 (byte 15 is 0xff)"),
    "not-json": ("{'messages': []}", "not JSON (Expecting property name"),
    "half-json": ('{"messages": [', "not JSON"),
    "too-deep": ("[" * 100_000, "not JSON that can be read"),
    "huge-number": ('{"messages": ' + "9" * 5000 + "}", "not JSON that can be read"),
    "not-an-object": ("[1, 2]", "not a JSON object"),
    "a-number": ("3", "not a JSON object"),
    "no-messages": ({"text": "a"}, "'messages' is missing"),
    "the-other-format": (PAIR, "'messages' is missing: this is a prompt/completion example"),
    "messages-empty": (chat(), "not a list with at least one message"),
    "messages-not-a-list": ({"messages": "a"}, "not a list"),
    "message-not-an-object": (chat("a"), "message 1 is not an object"),
    "no-role": (chat(USER, {"content": "b"}), "message 2 has no role"),
    "unknown-role": (
        chat({"role": "bot", "content": "a"}),
        "message 1 has the unknown role 'bot' (known: system, user",
    ),
    "role-not-text": (chat({"role": ["user"], "content": "a"}), "unknown role"),
    "no-content": (chat({"role": "user"}, ASSISTANT), "message 1 (user) has no content"),
    "content-not-text": (chat({"role": "user", "content": 3}, ASSISTANT), "message 1 has content that is not text"),
    "image-part": (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        "message 1 has content that is not text",
    ),
    "empty-answer": (chat(USER, {"role": "assistant", "content": "  "}), "message 2 (assistant) is empty"),
    "null-answer": (chat(USER, {"role": "assistant", "content": None}), "message 2 has content that is not text"),
    "no-answer": (chat(USER), "no assistant message to learn"),
    "only-weight-0": (chat(USER, ASSISTANT | {"weight": 0}), "no assistant message to learn"),
    "odd-weight": (chat(USER, ASSISTANT | {"weight": 0.5}), "message 2 has weight 0.5; it must be 0 or 1"),
    "only-a-tool-call": (
        chat(USER, {"role": "assistant", "content": None, "tool_calls": [{}]}),
        "no assistant message",
    ),
    "half-a-surrogate": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    "too-long": (b" " * LONGEST_LINE + b"{}", "longer than 1,048,576 bytes"),
}
FAULTY_PAIRS = {
    "no-completion": ({"prompt": "a"}, "'completion' is missing"),
    "no-prompt": ({"completion": "a"}, "'prompt' is missing"),
    "the-other-format": (GOOD, "'prompt' is missing: this is a chat example"),
    "empty-completion": ({"prompt": "a", "completion": " \n"}, "the completion is empty"),
    "prompt-not-text": ({"prompt": None, "completion": "b"}, "'prompt' is not text"),
    "half-a-surrogate": ('{"prompt": "a", "completion": "\\udfff"}', "'completion' holds half of a surrogate pair"),
}


@pytest.mark.parametrize(("line", "text"), FAULTY_CHATS.values(), ids=FAULTY_CHATS)
def test_a_faulty_chat_line_is_named(tmp_path, line, text):
    path = a_file(tmp_path, GOOD, GOOD, line, GOOD)
    with pytest.raises(InvalidDataset) as caught:
        read_examples(path, field="data.validation")
    assert str(caught.value).startswith("examples.jsonl: line 3: ")
    assert text in str(caught.value)
    assert "line 4" not in str(caught.value)
    assert (caught.value.line, caught.value.field) == (3, "data.validation")


@pytest.mark.parametrize(("line", "text"), FAULTY_PAIRS.values(), ids=FAULTY_PAIRS)
def test_a_faulty_pair_is_named(tmp_path, line, text):
    path = a_file(tmp_path, PAIR, line)
    with pytest.raises(InvalidDataset) as caught:
        read_examples(path)
    assert f"line 2: {text}" in str(caught.value)
    assert caught.value.line == 2


def test_a_first_line_without_a_format_is_named(tmp_path):
    with pytest.raises(
        InvalidDataset,
        match=r"line 1: neither 'messages' nor 'prompt' and 'completion' nor 'instruction' and 'output' \(keys: text\)",
    ):
        read_examples(a_file(tmp_path, {"text": "a"}))


def test_all_faults_are_named_in_one_error(tmp_path):
    path = a_file(tmp_path, GOOD, "x", GOOD, "y")
    with pytest.raises(InvalidDataset, match=r"examples\.jsonl: lines 2, 4: not JSON") as caught:
        read_examples(path)
    assert caught.value.line == 2


def test_at_most_twenty_faults_are_named(tmp_path):
    with pytest.raises(InvalidDataset) as caught:
        read_examples(a_file(tmp_path, *["x"] * 50))
    assert "lines 1 to 20: not JSON" in str(caught.value)
    assert "later lines were not read" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(gzip.compress(json.dumps(GOOD).encode()), "a gzip file: unpack it first", id="gzip"),
        pytest.param(b"PAR1\x15\x04\n\x15", "a parquet file", id="parquet"),
        pytest.param(json.dumps(GOOD).encode("utf-16"), "UTF-16, not UTF-8", id="utf-16"),
        pytest.param(json.dumps([GOOD] * 3).encode(), "a JSON list, but each line", id="list"),
        pytest.param(json.dumps([GOOD] * 3, indent=1).encode(), "a JSON list, but each line", id="indented-list"),
        pytest.param(json.dumps([GOOD] * 20_000).encode(), "a JSON list, but each line", id="list-above-a-mebibyte"),
    ],
)
def test_a_file_of_another_kind_is_told_once_and_not_line_by_line(tmp_path, content, told):
    (tmp_path / "examples.jsonl").write_bytes(content)
    with pytest.raises(InvalidDataset) as caught:
        read_examples(tmp_path / "examples.jsonl")
    assert str(caught.value).startswith(f"examples.jsonl: line 1: {told}")
    assert ";" not in str(caught.value)


def test_line_numbers_go_on_after_a_line_that_is_too_long(tmp_path):
    with pytest.raises(InvalidDataset, match=r"line 1: longer .*; line 3: not JSON"):
        read_examples(a_file(tmp_path, b"a" * (5 * LONGEST_LINE), GOOD, "x"))


def test_a_line_of_the_longest_length_is_read(tmp_path):
    frame = len(json.dumps({"prompt": "", "completion": " A"}))
    longest = {"prompt": "x" * (LONGEST_LINE - frame), "completion": " A"}
    assert len(read_examples(a_file(tmp_path, longest, PAIR))) == 2


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    path = a_file(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", "  \r", json.dumps(GOOD) + "\r")
    assert [example.line for example in read_examples(path)] == [1, 4]


def test_a_last_line_without_a_line_break_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAIR))
    assert read_examples(path) == [TextExample("Q:", " A", 1)]


def test_a_conversation_of_many_turns_and_tools(tmp_path):
    example = chat(
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What's "}, {"type": "text", "text": "up?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "sky", "tool_call_id": "1"},
        {"role": "assistant", "content": "Hm.", "weight": 0},
        {"role": "user", "content": "", "name": "eva"},
        {"role": "assistant", "content": "The sky.", "weight": 1},
        tools=[],
        custom_id="7",
    )
    (read,) = read_examples(a_file(tmp_path, example), "chat")
    assert isinstance(read, ChatExample)
    assert read.messages == (
        Message("system", "Be brief.", 0),
        Message("user", "What's up?", 0),
        Message("assistant", "", 0),
        Message("tool", "sky", 0),
        Message("assistant", "Hm.", 0),
        Message("user", "", 0),
        Message("assistant", "The sky.", 1),
    )


def test_a_missing_file_is_unknown(tmp_path):
    with pytest.raises(UnknownDataset, match="No such file") as caught:
        read_examples(tmp_path / "none.jsonl", field="data.train")
    assert caught.value.field == "data.train"
    with pytest.raises(UnknownDataset, match="Is a directory"):
        read_examples(tmp_path)


texts = st.text(st.characters(exclude_categories=["Cs"]))
filled = texts.filter(lambda text: bool(text.strip()))


@given(pairs=st.lists(st.tuples(texts, filled), min_size=1, max_size=5), ascii_only=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, pairs, ascii_only):
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": said}, ensure_ascii=ascii_only) for prompt, said in pairs]
    path.write_bytes("\n".join(lines).encode())
    assert [(example.prompt, example.completion) for example in read_examples(path)] == pairs


@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(InvalidDataset):
        assert read_examples(path) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "prompt", "completion", "tool_calls"]),
            inner | st.sampled_from(["user", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(record=json_values)
def test_any_json_is_read_or_refused(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    path.write_text(json.dumps(record))
    with contextlib.suppress(InvalidDataset):
        assert len(read_examples(path)) == 1


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        pytest.param({"instruction": "Translate.", "input": "oui", "output": "yes"}, "Translate.\n\noui", id="input"),
        pytest.param({"instruction": "Say yes.", "input": "", "output": "yes"}, "Say yes.", id="empty-input"),
        pytest.param({"instruction": "Say yes.", "output": "yes"}, "Say yes.", id="no-input"),
        pytest.param({"instruction": "Say yes.", "input": None, "output": "yes"}, "Say yes.", id="null-input"),
    ],
)
def test_alpaca_is_read_as_a_conversation(tmp_path: Path, line: dict[str, object], asked: str) -> None:
    (example,) = read_examples(a_file(tmp_path, line))
    assert example == ChatExample((Message("user", asked, 0), Message("assistant", "yes", 1)), 1, "alpaca")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param({"instruction": "a", "output": " "}, "the output is empty", id="empty-output"),
        pytest.param({"instruction": 1, "output": "b"}, "'instruction' is not text", id="number"),
        pytest.param({"instruction": "a", "input": 3, "output": "b"}, "'input' is not text", id="number-as-input"),
        pytest.param({"instruction": "a"}, "neither 'messages'", id="no-output"),
    ],
)
def test_a_faulty_alpaca_line_is_named(tmp_path: Path, line: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidDataset, match="line 1") as refused:
        read_examples(a_file(tmp_path, line))
    assert said in str(refused.value)
