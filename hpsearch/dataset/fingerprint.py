"""What identifies content: equal digests are equal examples, wherever they stand in whichever file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from hpsearch.dataset.examples import ChatExample, Example


def content_digest(example: Example) -> bytes:
    """SHA-256 (32 bytes) of what an example says; not of its line, nor of how its JSON was written."""
    content: list[object]
    if isinstance(example, ChatExample):
        content = ["chat", *([message.role, message.content, message.weight] for message in example.messages)]
    else:
        content = ["prompt_completion", example.prompt, example.completion]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over the examples in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(content_digest(example))
    return digest.hexdigest()
