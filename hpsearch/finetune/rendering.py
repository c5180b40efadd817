"""From an example to the text that a model reads, and where in it the completions are.

Three renderings:

- A chat example through the tokenizer's own chat template.
- A chat example without one (`plain`): `System: ...`, `User: ...`, `Assistant: ...`, each on a line of its own,
  joined by newlines. Tools and functions are `Tool: ...`. A prompt ends in `Assistant:`; the space after it belongs
  to the completion.
- A prompt and its completion, joined as they are.

The last two are closed by the tokenizer's end-of-sequence token when the text ends with a completion. Nothing is
ever put in front: a beginning-of-sequence token is there when the tokenizer or the template adds it by itself.

The border between prompt and completion is found without generation marks, which few templates have: each
assistant message is replaced by a sentinel, and what changes in the rendered text is the completion. The text that
a template writes after every assistant message (its end-of-turn marker) belongs to the completion too, up to
trailing white space; it is what the model must write to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpsearch.dataset.examples import ChatExample, Example, Message
from hpsearch.errors import InvalidDataset

TemplateMode = Literal["auto", "plain"]

_TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro +%}"
"""In front of templates that write today's date: trials of two days must read the same tokens. It is the date that
Llama 3's template falls back to."""

_SENTINEL = "\ue0f8sentinel\ue0f9"  # private use characters: no text starts or ends with these by chance


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text, and the character ranges [start, end) of it that are completions."""

    text: str
    spans: tuple[tuple[int, int], ...]
    contents: tuple[tuple[int, int], ...]
    """The spans without end-of-turn markers: what counts as bytes of completion text."""
    add_special_tokens: bool
    """Whether the tokenizer adds its own (a template has written them already)."""
    close: bool
    """Whether the end-of-sequence token follows, as a completion token."""


def render(example: Example, tokenizer: Any, mode: TemplateMode) -> Rendering:
    """The text of an example.

    Raises:
        InvalidDataset: The chat template refuses the conversation or leaves an assistant message out.
    """
    if not isinstance(example, ChatExample):
        border, end = len(example.prompt), len(example.prompt) + len(example.completion)
        span = ((border, end),)
        return Rendering(example.prompt + example.completion, span, span, add_special_tokens=True, close=True)
    if mode == "plain" or not tokenizer.chat_template:
        return _plain(example)
    return _templated(example, tokenizer)


def _plain(example: ChatExample) -> Rendering:
    text = ""
    contents = []
    for message in example.messages:
        role = "Tool" if message.role == "function" else message.role.capitalize()
        text += f"\n{role}: " if text else f"{role}: "
        if message.weight:
            contents.append((len(text), len(text) + len(message.content)))
        text += message.content
    # With the space: the prompt then ends in `Assistant:` whether or not the tokenizer joins the space to a word.
    spans = tuple((start - 1, end) for start, end in contents)
    close = bool(example.messages[-1].weight)
    return Rendering(text, spans, tuple(contents), add_special_tokens=True, close=close)


def _templated(example: ChatExample, tokenizer: Any) -> Rendering:
    text = _apply(example.messages, tokenizer, example.line)
    marker = end_of_turn(tokenizer)
    contents = [
        _changed(text, example, place, tokenizer) for place, message in enumerate(example.messages) if message.weight
    ]
    spans = tuple((start, end + len(marker) if text.startswith(marker, end) else end) for start, end in contents)
    return Rendering(text, spans, tuple(contents), add_special_tokens=False, close=False)


def _changed(text: str, example: ChatExample, place: int, tokenizer: Any) -> tuple[int, int]:
    """The range of `text` that depends on the message at `place`."""
    message = Message("assistant", _SENTINEL, 1)
    messages = (*example.messages[:place], message, *example.messages[place + 1 :])
    other = _apply(messages, tokenizer, example.line)
    start = other.find(_SENTINEL)
    after = other[start + len(_SENTINEL) :]
    if start < 0 or text[:start] != other[:start] or not text.endswith(after):
        # The template looks into the message (such as for a part that is reasoning): compare what it made of both.
        start = _common_start(text, other)
        after = text[len(text) - _common_start(text[start:][::-1], other[start:][::-1]) :]
    end = len(text) - len(after)
    if end <= start:
        said = f"the chat template leaves message {place + 1} out, an assistant's; set its weight to 0"
        raise InvalidDataset(f"line {example.line}: {said}, or data.chat_template to 'plain'", line=example.line)
    return start, end


def _common_start(one: str, two: str) -> int:
    """Characters until two texts differ."""
    differing = (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return next(differing, min(len(one), len(two)))


def end_of_turn(tokenizer: Any) -> str:
    """What the template writes after an assistant message, without trailing white space (unless it is nothing else)."""
    probe = (Message("user", "?", 0), Message("assistant", _SENTINEL, 1))
    _, _, marker = _apply(probe, tokenizer, 0).partition(_SENTINEL)
    return marker.rstrip() or marker


def _apply(messages: Sequence[Message], tokenizer: Any, line: int) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        template = _TODAY + template
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template)
    except Exception as error:  # a template is a program of the model's author: it may raise whatever it likes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        hint = "mend the example, or set data.chat_template to 'plain'"
        raise InvalidDataset(f"line {line}: the chat template refuses it ({reason}); {hint}", line=line) from None
    return text
