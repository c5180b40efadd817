"""From examples to token ids, with a mark on each completion token.

A token is a completion token when it covers at least one character of a completion: a token that straddles the
border (` Paris`, when the prompt ends with the space) has to be predicted to begin the completion. Offsets are
characters of the rendered text, as a fast tokenizer reports them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from hpsearch.dataset.examples import Example
from hpsearch.errors import InvalidDataset, UnsupportedModel
from hpsearch.finetune.rendering import Rendering, TemplateMode, render

CHUNK = 1024
"""Examples that are rendered and tokenised at a time."""


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """One example as a model reads it, cut at the maximum length."""

    ids: Tensor
    """int64, [T]."""
    completion: Tensor
    """bool, [T]: completion tokens. The first token is predicted by nothing and counts nowhere."""
    completion_bytes: int
    """UTF-8 bytes of the completion text that was kept, without end-of-turn markers."""
    completion_tokens: int
    """Completion tokens that are predicted."""
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that are predicted."""
        return max(len(self) - 1, 0) - self.completion_tokens


@dataclass(frozen=True)
class TokenisedSplit:
    """The examples of one split that have completion tokens left, in order."""

    examples: tuple[TokenisedExample, ...]
    truncated: int
    """Examples that were cut at the maximum length, those left out among them."""
    left_out: int
    """Examples whose completion was cut away entirely: they teach nothing."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is learned from: the tokens, which of them are completions, and their order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example).to_bytes(8, "little"))
            digest.update(example.ids.numpy().tobytes())
            digest.update(example.completion.numpy().tobytes())
        return digest.hexdigest()


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
    try:
        tokenised = [
            _cut(rendering, encoding, tokenizer.eos_token_id, max_length)
            for start in range(0, len(examples), CHUNK)
            for rendering, encoding in _encode(examples[start : start + CHUNK], tokenizer, backend, chat_template)
        ]
    except InvalidDataset as error:
        raise InvalidDataset(error.detail, field, error.line) from None
    kept = tuple(example for example in tokenised if example.completion_tokens)
    return TokenisedSplit(kept, sum(example.truncated for example in tokenised), len(tokenised) - len(kept))


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


def _cut(rendering: Rendering, encoding: Encoding, eos: int | None, max_length: int) -> TokenisedExample:
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
    return TokenisedExample(
        torch.tensor(ids[:max_length], dtype=torch.int64),
        torch.tensor(completion[:max_length], dtype=torch.bool),
        sum(len(rendering.text[start : min(stop, end)].encode()) for start, stop in rendering.contents),
        sum(completion[1:max_length]),
        truncated,
    )


def _covers(start: int, end: int, spans: tuple[tuple[int, int], ...]) -> bool:
    """Whether [start, end) shares a character with a span. An empty token counts where it stands."""
    return any(start < stop and (end > first or start == end == first) for first, stop in spans)
