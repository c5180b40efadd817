"""One example, a conversation or a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool", "function"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool", "function")

Format = Literal["chat", "prompt_completion", "alpaca"]
AskedFormat = Literal["auto", "chat", "prompt_completion", "alpaca"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """Text; empty for an assistant's turn that only calls tools."""
    weight: int
    """1: an assistant's turn to learn; 0: context."""


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation; what is learned are the assistant's turns of weight 1."""

    messages: tuple[Message, ...]
    line: int
    """Line of the file, from 1."""
    format: Format = "chat"
    """How the line was written."""


@dataclass(frozen=True, slots=True)
class TextExample:
    """A prompt and its completion, to be joined as they are."""

    prompt: str
    completion: str
    line: int
    """Line of the file, from 1."""
    format: Format = "prompt_completion"
    """How the line was written."""


Example = ChatExample | TextExample
