"""From lines of JSON to examples: OpenAI's chat format, prompt and completion, or Alpaca's.

Chat: `{"messages": [{"role", "content", "weight"?}, ...]}`. Roles are system (or developer, its newer name),
user, assistant, tool and function. A content is text, or a list of `{"type": "text", "text"}` parts. Every
assistant message is learned, unless its `weight` is 0. One that only calls tools (no content) is context.
Other keys are tolerated and ignored.

Alpaca: `{"instruction", "input"?, "output"}` becomes a conversation of two messages, so that the model's chat template
applies: the user's is the instruction and, after an empty line, the input; the assistant's is the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpsearch.dataset.examples import (
    ROLES,
    AskedFormat,
    ChatExample,
    Example,
    Format,
    Message,
    Role,
    TextExample,
)
from hpsearch.dataset.lines import Fault, numbered_lines, together
from hpsearch.errors import InvalidDataset

__all__ = ["ChatExample", "Example", "Fault", "Message", "TextExample", "parse_examples", "read_examples"]

MOST_FAULTS = 20
"""Faults that one error names; reading stops there."""


class _FaultyError(Exception):
    """Inside this module only: the text of a fault."""


def read_examples(path: Path, format: AskedFormat = "auto", field: str = "data.train") -> list[Example]:  # noqa: A002
    """All examples of a file, in its order.

    Raises:
        UnknownDataset: The file can't be read.
        InvalidDataset: Lines can't be used; the text names up to the first 20 with their numbers, `line` is the
            first of them.
    """
    examples: list[Example] = []
    faults: list[Fault] = []
    for parsed in parse_examples(path, format, field):
        if not isinstance(parsed, Fault):
            examples.append(parsed)
            continue
        faults.append(parsed)
        if len(faults) == MOST_FAULTS:
            break
    if faults:
        raise invalid_dataset(path, faults, field)
    return examples


def invalid_dataset(path: Path, faults: list[Fault], field: str) -> InvalidDataset:
    """The faults as one error."""
    rest = "; later lines were not read" if len(faults) == MOST_FAULTS else ""
    text = f"{path.name}: " + "; ".join(together((fault.line, fault.text) for fault in faults)) + rest
    return InvalidDataset(text, field, faults[0].line)


def parse_examples(path: Path, format: AskedFormat, field: str = "data.train") -> Iterator[Example | Fault]:  # noqa: A002
    """Each line as an example or a fault, streamed. `auto` is settled by the first line that has a format."""
    settled: Format | None = None if format == "auto" else format
    for number, text in numbered_lines(path, field):
        if isinstance(text, Fault):
            yield text
            continue
        try:
            record = _record(text)
            settled = settled or _format_of(record)
            yield _READERS[settled](record, number)
        except _FaultyError as fault:
            yield Fault(number, str(fault))


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _FaultyError(f"not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise _FaultyError(f"not JSON that can be read ({type(error).__name__})") from None
    if not isinstance(record, dict):
        raise _FaultyError("not a JSON object")
    return record


def _format_of(record: dict[str, Any]) -> Format:
    if "messages" in record:
        return "chat"
    if "prompt" in record and "completion" in record:
        return "prompt_completion"
    if "instruction" in record and "output" in record:
        return "alpaca"
    keys = ", ".join(list(record)[:5])[:100] or "none"
    raise _FaultyError(
        f"neither 'messages' nor 'prompt' and 'completion' nor 'instruction' and 'output' (keys: {keys})"
    )


def _prompt_completion(record: dict[str, Any], number: int) -> TextExample:
    prompt, completion = (_text_of(record, key) for key in ("prompt", "completion"))
    if not completion.strip():
        raise _FaultyError("the completion is empty")
    return TextExample(prompt, completion, number)


def _alpaca(record: dict[str, Any], number: int) -> ChatExample:
    instruction, output = (_text_of(record, key) for key in ("instruction", "output"))
    given = "" if record.get("input") is None else _text_of(record, "input")
    if not output.strip():
        raise _FaultyError("the output is empty")
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    return ChatExample((Message("user", asked, 0), Message("assistant", output, 1)), number, "alpaca")


def _text_of(record: dict[str, Any], key: str) -> str:
    if key not in record:
        other = ": this is a chat example" if "messages" in record else ""
        raise _FaultyError(f"'{key}' is missing{other}")
    if not isinstance(record[key], str):
        raise _FaultyError(f"'{key}' is not text")
    return _encodable(record[key], f"'{key}'")


def _encodable(text: str, what: str) -> str:
    """JSON can spell half a character (`"\\ud800"`), which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _FaultyError(f"{what} holds half of a surrogate pair, which is no character") from None
    return text


def _chat(record: dict[str, Any], number: int) -> ChatExample:
    if "messages" not in record:
        other = ": this is a prompt/completion example" if "prompt" in record else ""
        raise _FaultyError(f"'messages' is missing{other}")
    if not isinstance(record["messages"], list) or not record["messages"]:
        raise _FaultyError("'messages' is not a list with at least one message")
    messages = tuple(_message(message, place) for place, message in enumerate(record["messages"], start=1))
    if not any(message.weight for message in messages):
        raise _FaultyError("no assistant message to learn (with text, and a weight that is not 0)")
    return ChatExample(messages, number)


def _message(message: Any, place: int) -> Message:
    if not isinstance(message, dict):
        raise _FaultyError(f"message {place} is not an object")
    role = _role(message, place)
    content = message.get("content")
    if role != "assistant":
        if content is None:
            raise _FaultyError(f"message {place} ({role}) has no content")
        return Message(role, _content(content, place), 0)
    weight = 1 if message.get("weight") is None else message["weight"]
    if weight not in (0, 1) or isinstance(weight, bool):
        raise _FaultyError(f"message {place} has weight {str(weight)[:20]}; it must be 0 or 1")
    calls_tools = bool(message.get("tool_calls") or message.get("function_call"))
    text = "" if content is None and calls_tools else _content(content, place)
    if not text.strip() and not calls_tools and weight:
        raise _FaultyError(f"message {place} (assistant) is empty")
    return Message(role, text, int(weight) if text.strip() else 0)


def _role(message: dict[str, Any], place: int) -> Role:
    if "role" not in message:
        raise _FaultyError(f"message {place} has no role")
    name = "system" if message["role"] == "developer" else message["role"]
    for role in ROLES:
        if role == name:
            return role
    raise _FaultyError(f"message {place} has the unknown role {str(name)[:40]!r} (known: {', '.join(ROLES)})")


def _content(content: Any, place: int) -> str:
    if isinstance(content, list):
        texts = [part["text"] for part in content if _is_text_part(part)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise _FaultyError(f"message {place} has content that is not text")
    return _encodable(content, f"message {place}")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


_READERS: dict[Format, Callable[[dict[str, Any], int], Example]] = {
    "chat": _chat,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
}
