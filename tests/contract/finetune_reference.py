"""An independent fine-tune, written with plain transformers, PEFT and torch, and tiny models to run it on.

It shares no arithmetic with `hpsearch.finetune`: tokens by tokenising prefixes, a padded forward pass with an
attention mask, one loss over all logits, transformers' schedules. Only what is random by definition (the order of
the examples, the initial adapters) is handed in.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hpsearch.spec.finetune import FinetuneConfig

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

FOLDER = Path(tempfile.mkdtemp(prefix="finetune-contract-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CITIES = ["Paris", "Rome", "Wien", "Łódź", "東京", "São Paulo", "Αθήνα", "Berlin", "Oslo", "Kyiv"]
THINGS = ["river", "capital", "café", "bridge", "weather", "museum", "tram"]


def conversation(number: int) -> dict[str, Any]:
    """A chat example whose length varies with its number."""
    city, thing = CITIES[number % len(CITIES)], THINGS[number % len(THINGS)]
    question = f"Where is the {thing} of {city}?" + " Please tell me." * (number % 4)
    answer = f"The {thing} of {city} is at number {number}." + " It is old." * (number % 3)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def completion(number: int) -> dict[str, Any]:
    """A prompt/completion example."""
    turns = conversation(number)["messages"]
    return {"prompt": f"Q: {turns[0]['content']}\nA:", "completion": f" {turns[1]['content']}"}


def instructed(number: int) -> dict[str, Any]:
    """A chat example that begins as others do: with a system prompt, or with one and an answered question behind it."""
    asked = conversation(number)["messages"]
    if number % 3 == 0:
        content = "Tell me where the museum and the weather of Wien are."
        return {"messages": [{"role": "system", "content": content}, *asked]}
    content, answered = "The capital is old. Please tell me.", conversation(5)["messages"]
    return {"messages": [{"role": "system", "content": content}, *answered, *asked]}


def write_examples(name: str, records: Iterable[dict[str, Any]]) -> str:
    """A JSON lines file; its path."""
    path = FOLDER / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


@functools.cache
def tiny_tokenizer(kind: str = "bytes") -> PreTrainedTokenizerFast:
    """`bytes` is GPT-2's kind (trimmed offsets, adds nothing), `pieces` is Llama's (byte fallback, adds <s>)."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    corpus = [turn["content"] for number in range(200) for turn in conversation(number)["messages"]]
    corpus += ["User: ", "\nAssistant: "] * 50
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        backend.train_from_iterator(corpus, trainer)
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *special, *byte_tokens])
        backend.train_from_iterator([text.encode("ascii", "ignore").decode() for text in corpus], trainer)
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def tiny_config(architecture: str) -> transformers.PretrainedConfig:
    """Three blocks, 32 wide, of an architecture."""
    vocabulary = len(tiny_tokenizer())
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 3, "bos_token_id": 0}
    sizes |= {"eos_token_id": 1, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
    grouped = sizes | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    configs: dict[str, tuple[type[Any], dict[str, Any]]] = {
        "llama": (transformers.LlamaConfig, grouped | {"tie_word_embeddings": True}),
        "llama-untied": (transformers.LlamaConfig, grouped),
        "qwen2": (transformers.Qwen2Config, grouped),
        "mistral": (transformers.MistralConfig, grouped | {"sliding_window": 8}),
        "phimoe": (transformers.PhimoeConfig, grouped | {"sliding_window": 8, "num_local_experts": 4}),
        "gemma": (transformers.GemmaConfig, grouped),
        "gemma2": (transformers.Gemma2Config, grouped | {"sliding_window": 16}),  # soft-caps its logits
        "granite": (transformers.GraniteConfig, grouped | {"logits_scaling": 4.0}),
        "gpt_neox": (transformers.GPTNeoXConfig, sizes),
        "gpt2": (transformers.GPT2Config, sizes),
        "opt": (transformers.OPTConfig, sizes | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}),
    }
    kind, fields = configs[architecture]
    return kind(**fields)


@functools.cache
def tiny_model(architecture: str = "llama", templated: bool = False) -> str:
    """The folder of a tiny random model with its tokenizer."""
    folder = FOLDER / f"{architecture}{'-templated' if templated else ''}"
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(architecture))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # far from zero, so that every part of the model matters
                torch.nn.init.normal_(parameter, std=0.3 if "embed" in name or "wte" in name else 0.15)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    if templated:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


def a_config(architecture: str = "llama", method: str = "lora", **changes: Any) -> FinetuneConfig:
    """A small fine-tune: 40 chat examples, steps of 4, a report after every step. Changes go by field name."""
    templated, kind = changes.pop("templated", False), changes.pop("data", "chat")
    record = {"chat": conversation, "prompt_completion": completion, "instructed": instructed}[kind]
    data = {
        "train": write_examples(f"{kind}-train.jsonl", map(record, range(40))),
        "validation": write_examples(f"{kind}-validation.jsonl", map(record, range(1000, 1012))),
        "max_length": changes.pop("max_length", 128),
    }
    lora = {"rank": 4, "alpha": 8.0, "target_modules": changes.pop("target_modules", "all-linear")}
    hyperparameters = {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
        "prompt_loss_weight": 0.0,
        "dropout": 0.0,
        "weight_decay": 0.0,
        "lr_schedule": "linear",
        "warmup_fraction": 0.0,
        "frozen_layers": 0,
        "layer_lr_decay": 1.0,
    }
    rate = changes.pop("learning_rate", 5e-3 if method == "lora" else 1e-3)
    model = {"base": changes.pop("base", None) or tiny_model(architecture, templated), "method": method, "lora": lora}
    rest = {key: changes.pop(key) for key in ("seed", "reports_per_epoch", "patience") if key in changes}
    return FinetuneConfig.model_validate(
        {
            "model": model | {"max_grad_norm": changes.pop("max_grad_norm", 1.0)},
            "data": data,
            "hyperparameters": hyperparameters | changes,
            "learning_rate": rate,
            "base_learning_rate": rate,
            "reports_per_epoch": 10,
            **rest,
        }
    )


Tokens = tuple[list[int], list[bool]]
"""Ids, and which of them are completion tokens."""


def reference_tokens(record: dict[str, Any], tokenizer: Any) -> Tokens:
    """One example by tokenising what stands before the completion, then everything."""
    if "prompt" in record:
        before, text = record["prompt"], record["prompt"] + record["completion"]
    elif tokenizer.chat_template:
        question, answer = (turn["content"] for turn in record["messages"])
        before = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        said = tokenizer(answer)["input_ids"] + tokenizer("<|im_end|>")["input_ids"]
        after = tokenizer("\n")["input_ids"]
        return before + said + after, [False] * len(before) + [True] * len(said) + [False] * len(after)
    elif len(record["messages"]) > 2:
        return several_turns(record["messages"], tokenizer)
    else:
        question, answer = (turn["content"] for turn in record["messages"])
        before = f"User: {question}\nAssistant:"
        text = f"{before} {answer}"
    border = len(tokenizer(before)["input_ids"])
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return ids, [False] * border + [True] * (len(ids) - border)


def several_turns(messages: Sequence[dict[str, str]], tokenizer: Any) -> Tokens:
    """A conversation of several turns without a template: token by token, by where its text ends in the whole."""
    text, marks = "", []
    for message in messages:
        header = f"{message['role'].capitalize()}:"
        text += f"\n{header}" if text else header
        start = len(text)
        text += f" {message['content']}"
        marks += [(start, len(text))] if message["role"] == "assistant" else []
    found = tokenizer(text, return_offsets_mapping=True)
    ends = [end for _, end in found["offset_mapping"]]
    said = [any(start < end <= last for start, last in marks) for end in ends]
    return [*found["input_ids"], tokenizer.eos_token_id], [*said, True]


def records_of(path: str) -> list[dict[str, Any]]:
    """The JSON objects of a file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def reference_model(config: FinetuneConfig, initial: dict[str, torch.Tensor]) -> Any:
    """The base model; for LoRA inside of PEFT, with these initial tensors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.base, dtype=torch.float32)
    if config.model.method == "full":
        return model
    import peft

    lora, chosen = config.model.lora, config.hyperparameters
    asked = lora.target_modules
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=int(lora.alpha),
            lora_dropout=chosen.dropout,
            target_modules=asked if isinstance(asked, str) else list(asked),
            task_type="CAUSAL_LM",
        ),
    )
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in initial.items():
            stem, which, _ = name.rsplit(".", 2)
            own[f"base_model.model.{stem}.{which}.default.weight"].copy_(tensor)
    return model


def reference_run(
    config: FinetuneConfig, order: Callable[[int], Sequence[int]], initial: dict[str, torch.Tensor]
) -> list[tuple[float, float]]:
    """(training loss, validation loss) after every optimizer step.

    Args:
        config: Without dropout, frozen layers and rates by depth. Where one of its phases ends, the optimizer's numbers
            are changed in place.
        order: Epoch to the order of its examples.
        initial: The adapters' first tensors, for LoRA.
    """
    chosen = config.at(0).hyperparameters
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.base)
    train = [reference_tokens(record, tokenizer) for record in records_of(config.data.train)]
    validation = [reference_tokens(record, tokenizer) for record in records_of(config.data.validation or "")]
    model = reference_model(config, initial)
    model.eval()  # no dropout anywhere
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = [parameter for parameter in trained.values() if parameter.ndim > 1]
    spared = [parameter for parameter in trained.values() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": chosen.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.at(0).learning_rate)
    steps = -(-len(train) // chosen.batch_size) * chosen.epochs
    schedule = _schedule(chosen.lr_schedule, optimizer, -int(-steps * chosen.warmup_fraction // 1), steps)
    curve = []
    for epoch in range(chosen.epochs):
        places = order(epoch)
        for start in range(0, len(train), chosen.batch_size):
            batch = [train[place] for place in places[start : start + chosen.batch_size]]
            loss = reference_loss(model, batch, chosen.prompt_loss_weight)
            optimizer.zero_grad()
            loss.backward()
            if config.model.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained.values(), config.model.max_grad_norm)
            optimizer.step()
            seen = epoch * len(train) + min(start + chosen.batch_size, len(train))
            now, chosen = config.at(seen), config.at(seen).hyperparameters
            schedule.base_lrs = [now.learning_rate] * len(schedule.base_lrs)
            optimizer.param_groups[0]["weight_decay"] = chosen.weight_decay  # the other group, of vectors, has none
            schedule.step()
            curve.append((loss.item(), reference_validation(model, validation)))
    return curve


def _schedule(name: str, optimizer: Any, warmup: int, steps: int) -> Any:
    if name == "constant":
        return transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    if name == "linear":
        return transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    return transformers.get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def reference_loss(model: Any, batch: Sequence[Tokens], prompt_loss_weight: float) -> torch.Tensor:
    """sum(w * nll) / sum(w), from one padded pass with an attention mask."""
    width = max(len(ids) for ids, _ in batch)
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
    weights = torch.tensor(
        [[1.0 if said else prompt_loss_weight for said in marks] + [0.0] * (width - len(marks)) for _, marks in batch]
    )
    logits = model(input_ids=padded, attention_mask=mask).logits[:, :-1]
    nll = -logits.log_softmax(-1).gather(-1, padded[:, 1:, None]).squeeze(-1)
    return (nll * weights[:, 1:]).sum() / weights[:, 1:].sum()


def reference_validation(model: Any, validation: Sequence[Tokens]) -> float:
    """Mean nll over the completion tokens, one example at a time."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, marks in validation:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            nll = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
            said = torch.tensor(marks[1:])
            total += nll[said].double().sum().item()
            count += int(said.sum())
    return total / count
