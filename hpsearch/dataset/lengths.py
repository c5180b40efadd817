"""How long prompts and completions are, and which examples are cut off."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Iterable, Iterator

from hpsearch.dataset.examples import ChatExample, Example

EXTREME_RATIO = 10
"""Of the bytes of prompts and completions: beyond it, the prompt loss weight does nothing or takes over."""
COUNTED_BYTES = 8 * 2**20
"""Of texts that are tokenised, seconds of work; further ones are taken to have as many tokens per byte."""
FIRST_BYTES = 64 * 2**10
"""Of all texts: the first ones are tokenised, then some, and those that may be too long."""
SAMPLED = 0.05
MESSAGE_TOKENS = 5
"""That a chat template adds to a message: where it begins, whose it is, where it ends, as ChatML has it."""
LINES_NAMED = 5

Text = tuple[str, bool]
"""A text of an example, and whether it is learned."""


class Lengths:
    """Sums over the examples of a file. Few are tokenised that can't be too long: n bytes are at most n tokens."""

    def __init__(self, max_length: int | None, count_tokens: Callable[[str], int | None] | None) -> None:
        self.prompt_bytes = self.completion_bytes = 0
        self._max_length, self._count_tokens = max_length or 0, count_tokens
        self._can_tokenise = self._can_count = max_length is not None and count_tokens is not None
        self._counted_bytes = self._counted_tokens = 0
        self._rest_bytes = self._sampled_bytes = 0
        self._dice = random.Random(0)  # the same file, the same tokens; every twentieth might always be of one kind
        self._first_tokens = self._sampled_tokens = self._lost_tokens = 0.0
        self._too_long, self._unlearned = array("Q"), array("Q")  # lines

    @property
    def too_long(self) -> int | None:
        """Examples with more than `max_length` tokens; None when they could not be counted."""
        return len(self._too_long) if self._can_count else None

    @property
    def unlearned(self) -> int:
        """Examples whose whole completion is cut off, as far as they could be counted: they are left out."""
        return len(self._unlearned)

    @property
    def tokens(self) -> int | None:
        """That are read of all examples, about; None when they could not be counted."""
        if not self._can_tokenise:
            return None
        sampled = self._sampled_bytes or self._counted_bytes
        tokens = self._sampled_tokens if self._sampled_bytes else self._counted_tokens
        return round(self._first_tokens + self._rest_bytes * tokens / max(sampled, 1))

    def add(self, example: Example) -> None:
        """One more."""
        parts = _parts(example)
        completion = sum(len(text.encode()) for text, learned in parts if learned)
        prompt = sum(len(text.encode()) for text, learned in parts if not learned)
        is_first = self.prompt_bytes + self.completion_bytes <= FIRST_BYTES
        self.prompt_bytes += prompt
        self.completion_bytes += completion
        if not self._can_count:
            return
        is_sampled = not is_first and self._dice.random() < SAMPLED
        may_be_too_long = prompt + completion > self._max_length
        read = 0.0
        if may_be_too_long or ((is_first or is_sampled) and self._can_tokenise):
            read = self._measure(parts, example)
            self._can_count = self._can_tokenise or not may_be_too_long
        if is_first:
            self._first_tokens += read
            return
        self._rest_bytes += prompt + completion
        if is_sampled:
            self._sampled_bytes += prompt + completion
            self._sampled_tokens += read

    def _measure(self, parts: list[Text], example: Example) -> float:
        """The tokens that are read of it; none when its completion is cut off, for then it is left out."""
        tokens = self._tokens(parts)
        lost = tokens - self._max_length
        if lost > 0:
            self._lost_tokens += lost
            self._too_long.append(example.line)
            first = next(place for place, (_, learned) in enumerate(parts) if learned)
            if self._tokens(parts[:first]) >= self._max_length:
                self._unlearned.append(example.line)
                return 0.0
        added = MESSAGE_TOKENS * len(parts) if isinstance(example, ChatExample) else 0
        return min(tokens + added, self._max_length)

    def _tokens(self, parts: list[Text]) -> float:
        """About; 0 when they can't be counted, and `_can_tokenise` is false from then on."""
        text = "".join(text for text, _ in parts)
        size = len(text.encode())
        if self._counted_bytes > COUNTED_BYTES:
            return size * self._counted_tokens / self._counted_bytes
        tokens = self._count_tokens(text) if self._count_tokens and self._can_tokenise else None
        self._can_tokenise = tokens is not None
        self._counted_bytes += size
        self._counted_tokens += tokens or 0
        return tokens or 0

    def ratio_warning(self) -> Iterator[str]:
        """Whether the prompt loss weight can matter (Huerta-Enochian and Ko 2024, arXiv 2401.13586)."""
        prompts, completions = self.prompt_bytes, self.completion_bytes
        if completions > EXTREME_RATIO * prompts:
            share = f"{100 * prompts / (prompts + completions):.2g} %"
            yield f"prompts are only {share} of the text: prompt_loss_weight can hardly matter; give it a fixed value"
        elif completions and prompts > EXTREME_RATIO * completions:
            yield (
                f"prompts are {prompts / completions:,.0f} times as long as completions: above a prompt_loss_weight of "
                f"about {completions / prompts:.1g} they outweigh them in the training loss; search below it"
            )

    def cut_off_warning(self, examples: int, *, limited_by_model: bool) -> Iterator[str]:
        """What is lost at the end of long examples. About: a chat template adds tokens of its own."""
        if not self.too_long:
            return
        lost_bytes = self._lost_tokens * self._counted_bytes / max(self._counted_tokens, 1)
        share = 100 * lost_bytes / (self.prompt_bytes + self.completion_bytes)
        unlearned = "none loses its whole completion"
        if self._unlearned:
            verb = "loses its" if len(self._unlearned) == 1 else "lose their"
            unlearned = f"{len(self._unlearned)} {verb} whole completion (lines {named(self._unlearned)})"
        limit, remedy = "data.max_length", "raise data.max_length if the model can read more, or shorten them"
        if limited_by_model:
            limit, remedy = "what the model can read", "shorten them"
        yield (
            f"about {self.too_long} of {examples} examples are longer than {limit} ({self._max_length} tokens; "
            f"lines {named(self._too_long)}): about {self._lost_tokens:,.0f} tokens ({share:.2g} %) are cut off, and "
            f"{unlearned}; {remedy}"
        )


def named(lines: Iterable[object]) -> str:
    """The first few, and a sign that there are more."""
    texts = [str(line) for line in itertools.islice(lines, LINES_NAMED + 1)]
    return ", ".join(texts[:LINES_NAMED]) + (", ..." if len(texts) > LINES_NAMED else "")


def _parts(example: Example) -> list[Text]:
    if isinstance(example, ChatExample):
        return [(message.content, bool(message.weight)) for message in example.messages]
    return [(example.prompt, False), (example.completion, True)]
