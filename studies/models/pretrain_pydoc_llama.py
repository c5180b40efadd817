"""Pre-train the small Llama-type base model that the studies fine-tune.

The studies need a base model that is genuinely pre-trained (so that fine-tuning it behaves as fine-tuning
does: too high a learning rate destroys something, too low a one changes nothing), that fine-tunes on one CPU
core in about a minute, and whose whole provenance is known. Every CPython installation carries about 2 MB of
English text with a known licence, its docstrings and the `pydoc` help topics, so the model is made from those
and nothing is downloaded.

Run from the repository root:

    python studies/models/pretrain_pydoc_llama.py              # train, save, measure, write the README
    python studies/models/pretrain_pydoc_llama.py --evaluate   # only measure the saved model again
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import os
import platform
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Nothing here needs the network; saying so before the import keeps the library from trying.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

MODEL_DIR = Path(__file__).resolve().parent / "pydoc-llama"

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCAB_SIZE = 2048
CONTEXT = 512

VALIDATION_PERCENT = 5
# Test suites are mostly fixtures, and site-packages is whatever this machine happens to have installed.
SKIPPED_DIRECTORIES = frozenset({"test", "tests", "idle_test", "site-packages"})

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the weights besides the corpus; printed in the README."""

    seed: int = 20240
    epochs: int = 5
    batch_blocks: int = 2
    peak_learning_rate: float = 4e-3
    final_learning_rate_fraction: float = 0.02
    warmup_fraction: float = 0.05
    weight_decay: float = 0.3
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class Source:
    """One module's docstrings, or one help topic: the unit that is held out as a whole.

    Docstrings of one module repeat each other's wording, so holding out single docstrings would leak.
    """

    name: str
    texts: tuple[str, ...]

    def is_validation(self) -> bool:
        """Decide by content, so that the split depends on neither file order nor the random seed."""
        digest = hashlib.sha256("\0".join(self.texts).encode()).digest()
        return int.from_bytes(digest[:8], "big") % 100 < VALIDATION_PERCENT


@dataclass(frozen=True)
class Corpus:
    """The text, divided into a training and a validation part."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]

    def fingerprint(self) -> str:
        """Digest of the whole text: equal digests mean that a rerun trains on the same bytes."""
        digest = hashlib.sha256()
        for source in (*self.train, *self.validation):
            for text in source.texts:
                digest.update(text.encode() + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Figures:
    """What was measured on the held-out text."""

    loss: float
    unigram_entropy: float
    loss_bits_per_byte: float
    unigram_bits_per_byte: float
    validation_tokens: int
    validation_bytes: int

    def lines(self) -> list[str]:
        """The figures as table rows, shared by the terminal output and the README."""
        return [
            "| held-out text | nats/token | bits/byte |",
            "|---|---|---|",
            f"| this model | {self.loss:.4f} | {self.loss_bits_per_byte:.4f} |",
            f"| unigram frequencies of the training text | {self.unigram_entropy:.4f} "
            f"| {self.unigram_bits_per_byte:.4f} |",
            "",
            f"Ratio of the two: {self.loss / self.unigram_entropy:.3f}. "
            f"Scored: {self.validation_tokens} tokens, {self.validation_bytes} bytes.",
        ]


@dataclass(frozen=True)
class TrainingRun:
    """What the training cost."""

    steps: int
    tokens: int
    seconds: float


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module in source order."""
    documented = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        text = ast.get_docstring(node)
        if text:
            yield text


def help_topics(tree: ast.Module) -> dict[str, str]:
    """Return the help texts that `pydoc_data/topics.py` assigns to `topics`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return topics
    raise ValueError("pydoc_data/topics.py does not assign a dictionary")


def read_corpus(stdlib: Path) -> Corpus:
    """Collect the text from the library's sources, parsed and never imported.

    A text that occurs twice is kept once, so that nothing held out is also trained on word for word.
    """
    sources: list[Source] = []
    seen: set[str] = set()

    def add(name: str, texts: Iterator[str]) -> None:
        fresh = tuple(dict.fromkeys(text for text in texts if text not in seen))
        seen.update(fresh)
        if fresh:
            sources.append(Source(name, fresh))

    paths = [path.relative_to(stdlib) for path in stdlib.rglob("*.py")]
    for path in sorted(paths, key=lambda path: path.as_posix()):
        if not SKIPPED_DIRECTORIES.isdisjoint(path.parts):
            continue
        tree = ast.parse((stdlib / path).read_bytes())
        if path.as_posix() == "pydoc_data/topics.py":
            for topic, text in sorted(help_topics(tree).items()):
                add(f"topic:{topic}", iter([text.strip()]))
        else:
            add(path.as_posix(), docstrings(tree))

    return Corpus(
        train=tuple(source for source in sources if not source.is_validation()),
        validation=tuple(source for source in sources if source.is_validation()),
    )


def train_tokenizer(sources: Sequence[Source]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training text alone, so that the held-out figures stay honest."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((text for source in sources for text in source.texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model, of about 1.25 million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            # Wider than the default 0.02, which is meant for hidden sizes in the thousands.
            initializer_range=0.03,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, sources: Sequence[Source]) -> torch.Tensor:
    """Return all texts as one row of tokens, each text between a BOS and an EOS."""
    texts = [f"{BOS}{text}{EOS}" for source in sources for text in source.texts]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in ids for token in row], dtype=torch.long)


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to a small fraction of the peak."""
    warmup = max(1, round(settings.warmup_fraction * steps))
    if step < warmup:
        return settings.peak_learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = settings.final_learning_rate_fraction
    return settings.peak_learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_for(model: LlamaForCausalLM, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves the normalisation gains alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=settings.peak_learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
    )


def train(model: LlamaForCausalLM, stream: torch.Tensor, settings: TrainingSettings) -> TrainingRun:
    """Train over the stream for the given number of epochs, cut into blocks at a new offset each epoch."""
    generator = torch.Generator().manual_seed(settings.seed)
    blocks_per_epoch = (len(stream) - CONTEXT) // CONTEXT
    steps_per_epoch = blocks_per_epoch // settings.batch_blocks
    steps = steps_per_epoch * settings.epochs
    optimizer = optimizer_for(model, settings)
    model.train()
    started = time.monotonic()
    step = 0
    for epoch in range(settings.epochs):
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        blocks = stream[offset : offset + blocks_per_epoch * CONTEXT].view(blocks_per_epoch, CONTEXT)
        order = torch.randperm(blocks_per_epoch, generator=generator)
        total = 0.0
        for start in range(0, steps_per_epoch * settings.batch_blocks, settings.batch_blocks):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, settings)
            ids = blocks[order[start : start + settings.batch_blocks]]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
            step += 1
        seconds = time.monotonic() - started
        rate = step * settings.batch_blocks * CONTEXT / seconds
        print(
            f"epoch {epoch + 1}/{settings.epochs}: training loss {total / steps_per_epoch:.4f}, "
            f"{seconds:.0f} s, {rate:.0f} tokens/s",
            flush=True,
        )
    return TrainingRun(steps, steps * settings.batch_blocks * CONTEXT, time.monotonic() - started)


@torch.no_grad()
def summed_loss(model: LlamaForCausalLM, stream: torch.Tensor, ignored: int) -> float:
    """Return the summed loss in nats over the stream, but for its first token and those equal to `ignored`.

    Neighbouring windows share one token, so that no prediction is lost at a boundary.
    """
    model.eval()
    total = 0.0
    for start in range(0, len(stream) - 1, CONTEXT - 1):
        ids = stream[start : start + CONTEXT]
        logits = model(input_ids=ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], ignore_index=ignored, reduction="sum")
        total += loss.item()
    return total


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> Figures:
    """Score the held-out text, and what token frequencies alone (add-one smoothed) would score on it.

    BOS is not counted: it always follows EOS, and predicting it would flatter both figures.
    """
    bos = tokenizer.convert_tokens_to_ids(BOS)
    counts = torch.bincount(token_stream(tokenizer, corpus.train), minlength=len(tokenizer)).double() + 1
    counts[bos] = 0
    surprise = -(counts / counts.sum()).log()
    stream = token_stream(tokenizer, corpus.validation)
    scored = stream[stream != bos]
    size = sum(len(text.encode()) for source in corpus.validation for text in source.texts)
    unigram_nats = surprise[scored].sum().item()
    model_nats = summed_loss(model, stream, ignored=bos)
    return Figures(
        loss=model_nats / len(scored),
        unigram_entropy=unigram_nats / len(scored),
        loss_bits_per_byte=model_nats / math.log(2) / size,
        unigram_bits_per_byte=unigram_nats / math.log(2) / size,
        validation_tokens=len(scored),
        validation_bytes=size,
    )


def readme(
    corpus: Corpus,
    settings: TrainingSettings,
    run: TrainingRun,
    figures: Figures,
    model: LlamaForCausalLM,
) -> str:
    """Describe the saved model. Only this writes the README, so its figures are always a run's own."""

    def size(sources: Sequence[Source]) -> str:
        texts = [text for source in sources for text in source.texts]
        characters = sum(map(len, texts))
        return f"{len(sources)} modules and topics, {len(texts)} texts, {characters} characters"

    setting_rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in vars(settings).items()]
    settings_table = "\n".join(setting_rows)
    figures_table = "\n".join(figures.lines())
    held_out = textwrap.fill(", ".join(f"`{source.name}`" for source in corpus.validation), 110)
    file_size = (MODEL_DIR / "model.safetensors").stat().st_size
    version = platform.python_version()
    torch_version = torch.__version__.split("+")[0]
    copyright_line = sys.copyright.splitlines()[0]
    return f"""# pydoc-llama

A Llama-type base model, small enough to fine-tune on one CPU core in about a minute. It completes text in
the manner of Python's documentation; it follows no instructions and has no chat template.

This file is written by `studies/models/pretrain_pydoc_llama.py`; do not edit it by hand.

## Provenance

Trained from random weights on the English text that comes with CPython {version}: the docstrings of the
standard library (test suites and site-packages left out, repeated docstrings kept once) and the help topics
of `pydoc_data/topics.py`. The sources are parsed, not imported.

- training: {size(corpus.train)}
- held out: {size(corpus.validation)}
- SHA-256 of the text: `{corpus.fingerprint()}`

Modules and topics are held out whole, chosen by a hash of their text:
{held_out}.

Licence of the text: Python Software Foundation License Version 2, {copyright_line}
Some standard library modules carry a compatible licence of their own, named in their source.

## Made with

    python studies/models/pretrain_pydoc_llama.py

Python {version}, torch {torch_version}, transformers {transformers.__version__}, tokenizers
{tokenizers.__version__}, one CPU thread, seeded. The same versions on the same kind of processor give the
same weights; elsewhere rounding may differ.

- {model.num_parameters()} parameters, float32, tied embeddings; `model.safetensors` has {file_size} bytes
- byte-level BPE of {VOCAB_SIZE} tokens, trained on the training part; it adds no BOS or EOS by itself
- each text between `{BOS}` and `{EOS}`, packed in blocks of {CONTEXT} tokens
- AdamW, linear warm-up, cosine decay; no weight decay on the normalisation gains
- {run.steps} steps, {run.tokens} tokens, {run.seconds:.0f} s ({run.tokens / run.seconds:.0f} tokens/s)

| training setting | value |
|---|---|
{settings_table}

## Measured

{figures_table}

Loss is per token, BOS not counted. Measure again with

    python studies/models/pretrain_pydoc_llama.py --evaluate
"""


def evaluate_saved(corpus: Corpus) -> Figures:
    """Measure the model as a user would load it."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    return measure(model, tokenizer, corpus)


def pretrain(corpus: Corpus, settings: TrainingSettings) -> None:
    """Train, save and describe the model."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(corpus.train)
    model = new_model(tokenizer)
    stream = token_stream(tokenizer, corpus.train)
    print(f"{model.num_parameters()} parameters, {len(stream)} training tokens", flush=True)
    run = train(model, stream, settings)
    tokenizer.save_pretrained(MODEL_DIR)
    model.save_pretrained(MODEL_DIR)
    figures = evaluate_saved(corpus)
    (MODEL_DIR / "README.md").write_text(readme(corpus, settings, run, figures, model), encoding="utf-8")
    print("\n".join(figures.lines()))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Pre-train the pydoc-llama base model.")
    parser.add_argument("--evaluate", action="store_true", help="only measure the saved model again")
    arguments = parser.parse_args()
    # One thread, and only deterministic kernels: the sums, and so the weights, come out the same every time.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    corpus = read_corpus(Path(sysconfig.get_paths()["stdlib"]))
    if arguments.evaluate:
        print("\n".join(evaluate_saved(corpus).lines()))
    else:
        pretrain(corpus, TrainingSettings())


if __name__ == "__main__":
    main()
