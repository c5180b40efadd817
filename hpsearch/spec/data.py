"""What is learned from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from hpsearch.spec.closed import Closed


class DataSpec(Closed):
    """Training and validation examples, one JSON object per line.

    A data file is a path below an allowed root (absolute, or relative to one of the roots), or the
    id of an uploaded dataset (`dataset:<id>`). `hpsearch submit` uploads the files that a spec names
    relative to itself.
    """

    train: str = Field(min_length=1, max_length=1024)
    """The training examples."""
    validation: str | None = Field(None, min_length=1, max_length=1024)
    """The validation examples; left out, a part of the training examples is held back."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """The part that is held back, chosen by content hash, when there is no validation file."""
    format: Literal["auto", "chat", "prompt_completion", "alpaca"] = "auto"
    """`chat` is `{"messages": [...]}`, `prompt_completion` is `{"prompt": ..., "completion": ...}`, `alpaca` is
    `{"instruction": ..., "input": ..., "output": ...}`; `auto` looks at the first line."""
    max_length: int = Field(1024, ge=8, le=1_000_000)
    """Tokens per example; longer ones are cut at the end (never above what the model can read)."""
    chat_template: Literal["auto", "plain"] = "auto"
    """`auto` takes the tokenizer's template when it has one; `plain` writes `Role: text` lines."""

    @model_validator(mode="after")
    def _check_files_differ(self) -> Self:
        if self.validation == self.train:
            raise ValueError(f"train and validation are the same file ({self.train}): the loss would say nothing")
        return self
