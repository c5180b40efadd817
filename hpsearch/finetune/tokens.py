"""From examples to token ids, with a mark on each completion token.

A token is a completion token when it covers at least one character of a completion: a token that straddles the
border (` Paris`, when the prompt ends with the space) has to be predicted to begin the completion. Offsets are
characters of the rendered text, as a fast tokenizer reports them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from hpsearch.dataset.examples import Example
from hpsearch.errors import InvalidDataset, UnsupportedModel
from hpsearch.finetune.rendering import Rendering, TemplateMode, render
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedSplit
from hpsearch.watchdog import mark

__all__ = ["TokenisedExample", "TokenisedSplit", "tokenise", "tokenizer_fingerprint"]

CHUNK = 1024
"""Examples that are rendered and tokenised at a time."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """One example's tokens, as far as they are kept."""

    ids: list[int]
    completion: list[bool]
    completion_bytes: int
    completion_tokens: int
    whole: int
    """Tokens before the cut."""


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    chat_template: TemplateMode = "auto",
    field: str = "data.train",
) -> TokenisedSplit:
    """Tokenise a split.

    Args:
        examples: In the order of the split.
        tokenizer: A fast tokenizer of transformers.
        max_length: Tokens; what lies beyond is cut at the end.
        chat_template: `auto` takes the tokenizer's template when it has one.
        field: Where the spec names the split, for errors.

    Raises:
        InvalidDataset: The template refuses an example.
        UnsupportedModel: The tokenizer has no fast version, so it has no character offsets.
    """
    backend = _exact_offsets(tokenizer)
    ids, completion = array("i"), bytearray()
    kept: list[tuple[int, int, int, bool]] = []
    truncated = tokens = 0
    try:
        for start in range(0, len(examples), CHUNK):
            mark()
            for rendering, encoding in _encode(examples[start : start + CHUNK], tokenizer, backend, chat_template):
                one = _cut(rendering, encoding, tokenizer.eos_token_id, max_length)
                tokens += one.whole
                truncated += one.whole > max_length
                if one.completion_tokens:
                    ids.extend(one.ids)
                    completion.extend(one.completion)
                    kept.append((len(one.ids), one.completion_tokens, one.completion_bytes, one.whole > max_length))
    except InvalidDataset as error:
        raise InvalidDataset(error.detail, field, error.line) from None
    lengths, completion_tokens, completion_bytes, cut = np.array(kept, dtype=np.int64).reshape(-1, 4).T.copy()
    return TokenisedSplit(
        np.array(ids, dtype=np.int32),
        np.frombuffer(completion, dtype=np.bool_).copy(),
        np.concatenate([[0], lengths.cumsum()]),
        completion_tokens,
        completion_bytes,
        cut.astype(np.bool_),
        truncated,
        len(examples) - len(kept),
        tokens - len(ids),
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of everything that decides the tokens: the tokenizer, its template, its end-of-sequence token."""
    content = [_backend(tokenizer).to_str(), tokenizer.chat_template, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _backend(tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModel(
            f"the tokenizer {type(tokenizer).__name__} has no fast version (tokenizer.json), so the border between "
            "prompt and completion can't be found",
            "model.base",
        )
    return backend


def _exact_offsets(tokenizer: Any) -> Tokenizer:
    """A copy of the fast tokenizer whose offsets cover every character.

    GPT-2's kind trims white space from its tokens' offsets (`trim_offsets`), so that a token of white space would
    cover nothing.
    """
    definition = json.loads(_backend(tokenizer).to_str())
    _set_everywhere(definition.get("post_processor"), "trim_offsets", value=False)
    definition["truncation"] = definition["padding"] = None
    copy: Tokenizer = Tokenizer.from_str(json.dumps(definition))
    return copy


def _set_everywhere(node: Any, key: str, value: bool) -> None:
    if isinstance(node, dict):
        if key in node:
            node[key] = value
        for child in node.values():
            _set_everywhere(child, key, value)
    elif isinstance(node, list):
        for child in node:
            _set_everywhere(child, key, value)


def _encode(
    examples: Sequence[Example], tokenizer: Any, backend: Tokenizer, mode: TemplateMode
) -> Iterator[tuple[Rendering, Encoding]]:
    renderings = [render(example, tokenizer, mode) for example in examples]
    for special, group in itertools.groupby(renderings, key=lambda rendering: rendering.add_special_tokens):
        chosen = list(group)
        encodings = backend.encode_batch([rendering.text for rendering in chosen], add_special_tokens=special)
        yield from zip(chosen, encodings, strict=True)


def _cut(rendering: Rendering, encoding: Encoding, eos: int | None, max_length: int) -> _Cut:
    ids = list(encoding.ids)
    added = encoding.special_tokens_mask
    completion = [
        not special and _covers(start, end, rendering.spans)
        for (start, end), special in zip(encoding.offsets, added, strict=True)
    ]
    if rendering.close and eos is not None:
        if ids and ids[-1] == eos and added[-1]:  # the tokenizer closes the text by itself
            completion[-1] = True
        else:
            ids.append(eos)
            completion.append(True)
    truncated = len(ids) > max_length
    end = encoding.offsets[max_length - 1][1] if truncated else len(rendering.text)
    return _Cut(
        ids[:max_length],
        completion[:max_length],
        sum(len(rendering.text[start : min(stop, end)].encode()) for start, stop in rendering.contents),
        sum(completion[1:max_length]),
        len(ids),
    )


def _covers(start: int, end: int, spans: tuple[tuple[int, int], ...]) -> bool:
    """Whether [start, end) shares a character with a span. An empty token counts where it stands."""
    return any(start < stop and (end > first or start == end == first) for first, stop in spans)
