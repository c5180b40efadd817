"""One fine-tune beside the HF Trainer and TRL's SFTTrainer: real training tokens per second, in one run.

    python benchmarks/finetune.py                              # the table of benchmarks/README.md, on a CPU
    python benchmarks/finetune.py --device cuda --shapes 135m  # on a GPU
    python benchmarks/finetune.py --shapes bundled --rounds 1  # a quick look

Needs `pip install -e '.[dev,bench]'`. Every measurement is a process of its own; the contenders take turns, round after
round, so that a machine that slows down slows all of them. All get the same tokens, LoRA shape, batch size, optimizer
and schedule, and none is charged for loading, for its first steps or for evaluation:

- `ours`: `hpsearch.finetune.Member`.
- `trainer`: transformers' Trainer with length grouping, padding to the longest, fused AdamW, PEFT for LoRA.
- `trl`: TRL's SFTTrainer, the same, with its completion-only loss.
- `trl-free`: SFTTrainer padding-free: the batch as one row, attention kept apart by positions.
- `trl-packed`: SFTTrainer with best-fit-decreasing packing, as many tokens a step.

What counts is the sum of sequence lengths over seconds: padding is not work. The loss is that of the weights each one
leaves behind, over completion tokens, by one plain transformers loop for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("ours", "trainer", "trl", "trl-free", "trl-packed")
LEARNING_RATE = {"lora": 2e-3, "full": 5e-4}
SEED = 7
PLAIN = {
    "epochs": 1,
    "learning_rate_multiplier": 1.0,
    "prompt_loss_weight": 0.0,
    "dropout": 0.0,
    "weight_decay": 0.01,
    "lr_schedule": "linear",
    "warmup_fraction": 0.0,
    "frozen_layers": 0,
    "layer_lr_decay": 1.0,
}
"""What every contender can do."""


@dataclass(frozen=True)
class Shape:
    """A Llama, and how long it is looked at."""

    sizes: dict[str, int] | None
    """Of a fresh LlamaConfig; None is the bundled model."""
    warmup: int
    """Steps that are not counted."""
    steps: dict[str, int]
    """Counted steps, by kind of device."""
    data: tuple[str, ...] = ("docstrings",)


def _llama(hidden: int, inner: int, layers: int, heads: int, groups: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
    }


SHAPES = {
    "bundled": Shape(None, 3, {"cpu": 60, "cuda": 100}, ("tickets", "instructed", "docstrings")),
    "30m": Shape(_llama(384, 1024, 10, 6, 2, 32000), 2, {"cpu": 10, "cuda": 100}),
    "135m": Shape(_llama(576, 1536, 30, 9, 3, 49152), 1, {"cpu": 4, "cuda": 60}),
    "500m": Shape(_llama(896, 4864, 24, 14, 2, 151936), 2, {"cpu": 2, "cuda": 40}),
}


# -- what every contender gets -----------------------------------------------------------------------------------------


def prepare_folder(folder: Path, shape: Shape, data: str, examples: int) -> None:
    """A model folder and two data files, the same for every contender."""
    import torch
    import transformers

    bundled = ROOT / "studies/models/pydoc-llama"
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled)
    if shape.sizes is None:
        model = transformers.AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32)
    else:
        torch.manual_seed(SEED)
        config = transformers.LlamaConfig(
            **shape.sizes, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    train, validation = DATA[data](examples)
    for name, records in (("train", train), ("validation", validation)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def tickets(examples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The bundled support tickets: all of about one length."""
    read = [
        [json.loads(line) for line in (ROOT / f"studies/data/tickets/{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "validation")
    ]
    train, validation = read
    return (train * (examples // len(train) + 1))[:examples], validation[:40]


INSTRUCTIONS = """You sort the messages that customers write to the support of a shop for electronics. Answer with \
one line of JSON and nothing else. It has three fields. "item" is the product that the message is about, as one lower \
case word. "problem" is what is wrong with it: "power" if it does not turn on or its battery is empty too soon, \
"screen" if something is to be seen that should not be, "billing" if it is about money, and so on. "level" is "high" \
if the customer can't wait, "low" if there is time, else "normal". Names, numbers of orders and greetings don't \
matter."""


def instructed(examples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tickets behind a system prompt, as the chats of a product are."""
    first = {"role": "system", "content": INSTRUCTIONS}
    train, validation = (
        [{"messages": [first, *record["messages"]]} for record in records] for records in tickets(examples)
    )
    return train, validation


def docstrings(examples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Names and docstrings of Python's own library: real text of very different lengths."""
    import ast
    import random
    import sysconfig

    records = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
            if text:
                records.append({"prompt": f"What does {node.name} of {path.stem} do?\n", "completion": text})
    random.Random(SEED).shuffle(records)
    return records[40 : 40 + examples], records[:40]


DATA: dict[str, Callable[[int], tuple[list[dict[str, Any]], list[dict[str, Any]]]]] = {
    "tickets": tickets,
    "instructed": instructed,
    "docstrings": docstrings,
}


def config_of(folder: Path, asked: argparse.Namespace) -> Any:
    from hpsearch.spec.finetune import FinetuneConfig

    rate = LEARNING_RATE[asked.method]
    return FinetuneConfig.model_validate(
        {
            "model": {"base": str(folder / "model"), "method": asked.method, "lora": {"rank": 8, "alpha": 16}},
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "max_length": 512,
            },
            "hyperparameters": PLAIN | {"batch_size": asked.batch_size, "dropout": asked.dropout},
            "learning_rate": rate,
            "base_learning_rate": rate,
            "seed": SEED,
            "reports_per_epoch": 1,
        }
    )


def tokens_of(config: Any) -> dict[str, list[tuple[list[int], list[bool]]]]:
    """(ids, completion marks) of both splits."""
    import transformers

    from hpsearch.dataset import load
    from hpsearch.finetune.tokens import tokenise

    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.base)
    data = load(config.data)
    splits = {"train": data.train, "validation": data.validation}
    return {
        name: [
            (example.ids.tolist(), example.completion.tolist())
            for example in tokenise(examples, tokenizer, config.data.max_length).examples
        ]
        for name, examples in splits.items()
    }


# -- the contenders ----------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Tokens and seconds of the steps after the warm-up."""

    warmup: int
    device: str
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _started: float = 0.0

    def now(self) -> float:
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def step_done(self, tokens: int) -> None:
        """After each optimizer step."""
        self.steps += 1
        if self.steps == self.warmup:
            self._started = self.now()
        elif self.steps > self.warmup:
            self.tokens += tokens

    def stop(self) -> None:
        self.seconds = self.now() - self._started


def run_ours(config: Any, asked: argparse.Namespace, clock: Clock, save_to: Path) -> float:
    from hpsearch.finetune.member import Member, evaluated
    from hpsearch.finetune.prepare import prepare

    prepared = prepare(config, asked.torch_device)
    member = Member(config, prepared)
    while member.steps < member.total_steps - 1:  # the last step of an epoch evaluates
        before = member.tokens
        member.advance()
        clock.step_done(member.tokens - before)
    clock.stop()
    member.advance()
    started = clock.now()
    evaluated([member])
    evaluation_seconds = clock.now() - started
    member.save_best(save_to)
    return evaluation_seconds


def run_trainer(config: Any, asked: argparse.Namespace, clock: Clock, save_to: Path) -> float:
    """The HF Trainer, or TRL's on top of it."""
    import datasets
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    bfloat16 = asked.device == "cuda"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.model.base, dtype=torch.bfloat16 if bfloat16 and asked.method == "lora" else torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.base)
    tokens = tokens_of(config)
    steps = -(-len(tokens["train"]) // asked.batch_size)
    arguments = {
        "output_dir": str(save_to.parent / "checkpoints"),
        "per_device_train_batch_size": asked.batch_size,
        "per_device_eval_batch_size": 32,
        "max_steps": steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear",
        "weight_decay": config.hyperparameters.weight_decay,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "group_by_length",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": asked.device == "cpu",
        "bf16": bfloat16,
        "seed": SEED,
        "dataloader_pin_memory": bfloat16,
        "gradient_checkpointing": False,
    }
    lora = None
    if asked.method == "lora":
        import peft

        lora = peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=asked.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    tables = {
        name: datasets.Dataset.from_dict(
            {
                "input_ids": [ids for ids, _ in split],
                "labels": [[token if said else -100 for token, said in zip(*one, strict=True)] for one in split],
                "length": [len(ids) for ids, _ in split],
            }
        )
        for name, split in tokens.items()
    }
    if asked.contender == "trainer":
        trainer = _hf_trainer(model, tokenizer, arguments, tables, lora)
    else:
        trainer = _trl_trainer(model, tokenizer, arguments, tables, lora, asked)

    class Count(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            clock.step_done(seen.pop() if seen else 0)
            if state.global_step == steps - 1:
                clock.stop()

    seen: list[int] = []
    collate = trainer.data_collator

    def counting(features: list[Any]) -> Any:
        """Real tokens of a batch: batches are collated one ahead of the step that trains on them."""
        seen.insert(0, sum(len(feature["input_ids"]) for feature in features))
        return collate(features)

    trainer.data_collator = counting
    trainer.add_callback(Count())
    trainer.train()
    started = clock.now()
    trainer.evaluate()
    evaluation_seconds = clock.now() - started
    trainer.model.save_pretrained(save_to)
    return evaluation_seconds


def _hf_trainer(model: Any, tokenizer: Any, arguments: dict[str, Any], tables: dict[str, Any], lora: Any) -> Any:
    import transformers

    if lora is not None:
        import peft

        model = peft.get_peft_model(model, lora)
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, padding="longest", label_pad_token_id=-100)
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(**arguments),
        data_collator=lambda features: collator(
            [{"input_ids": feature["input_ids"], "labels": feature["labels"]} for feature in features]
        ),
        train_dataset=tables["train"],
        eval_dataset=tables["validation"],
    )


def _trl_trainer(
    model: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    tables: dict[str, Any],
    lora: Any,
    asked: argparse.Namespace,
) -> Any:
    import trl

    extra: dict[str, Any] = {"max_length": 512}
    if asked.contender == "trl-free":
        extra = {"padding_free": True, "max_length": None}
    elif asked.contender == "trl-packed":
        # One row of about the tokens that a batch has: as many optimizer steps, as much work in each.
        mean = sum(tables["train"]["length"]) / len(tables["train"])
        extra = {"packing": True, "packing_strategy": "bfd", "max_length": max(512, round(mean * asked.batch_size))}
        extra |= {"per_device_train_batch_size": 1, "train_sampling_strategy": "random", "eval_packing": False}
    splits = {name: table.remove_columns(["length"]) for name, table in tables.items()}
    return trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**(arguments | extra)),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        peft_config=lora,
    )


# -- the measurement ---------------------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """One contender, once; runs in a process of its own."""
    import torch

    torch.set_num_threads(asked.threads)
    folder = Path(asked.folder)
    config = config_of(folder, asked)
    clock = Clock(asked.warmup, asked.device)
    save_to = Path(tempfile.mkdtemp(dir=folder)) / "weights"
    run = run_ours if asked.contender == "ours" else run_trainer
    evaluation_seconds = run(config, asked, clock, save_to)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if asked.device == "cuda" else None
    return {
        "tokens_per_second": clock.tokens / clock.seconds,
        "steps": clock.steps,
        "evaluation_seconds": evaluation_seconds,
        "loss": independent_loss(config, asked, save_to),
        "peak_mib": peak,
        "gpu_peak_mib": gpu_peak,
    }


def independent_loss(config: Any, asked: argparse.Namespace, saved: Path) -> float:
    """Nats per completion token of saved weights, one example at a time, in float32."""
    import torch
    import transformers

    base = config.model.base if asked.method == "lora" else saved
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if asked.method == "lora":
        import peft

        model = peft.PeftModel.from_pretrained(model, saved)
    model.to(asked.torch_device).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, said in tokens_of(config)["validation"]:
            row = torch.tensor(ids, device=asked.torch_device)
            logits = model(input_ids=row[None]).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
            marks = torch.tensor(said[1:], device=asked.torch_device)
            total += float(nll[marks].sum())
            count += int(marks.sum())
    return total / count


def compare(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the table."""
    for name in asked.shapes:
        shape = SHAPES[name]
        for data in asked.data or shape.data:
            for method in asked.methods:
                with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
                    folder = Path(temporary)
                    steps = shape.warmup + shape.steps[asked.device] + 1
                    prepare_folder(folder, shape, data, steps * asked.batch_size)
                    yield _row(asked, name, data, method, folder, shape.warmup)


def _row(asked: argparse.Namespace, shape: str, data: str, method: str, folder: Path, warmup: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in asked.contenders}
    for _ in range(asked.rounds):
        for contender in asked.contenders:
            command = [sys.executable, __file__, "--child", "--contender", contender, "--folder", str(folder)]
            command += ["--methods", method, "--warmup", str(warmup), "--device", asked.device]
            command += ["--batch-size", str(asked.batch_size), "--threads", str(asked.threads)]
            command += ["--dropout", str(asked.dropout)]
            environment = os.environ | {"OMP_NUM_THREADS": str(asked.threads), "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                print(f"{contender} failed: {done.stderr[-2000:]}", file=sys.stderr)
                continue
            runs[contender].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {shape} {data} {method} {contender}: {runs[contender][-1]}", file=sys.stderr, flush=True)
    figures = {
        contender: {key: statistics.median(run[key] for run in each) for key in each[0] if each[0][key] is not None}
        for contender, each in runs.items()
        if each
    }
    return {"shape": shape, "data": data, "method": method, "figures": figures}


def print_table(rows: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    """Markdown; the ratio is to the fastest of the others."""
    print(f"\n{platform.machine()}, {asked.device}, {asked.threads} thread(s), batch size {asked.batch_size}, ", end="")
    print(f"medians of {asked.rounds} rounds; real tokens/s | loss | evaluation s | peak MiB\n")
    print("| shape | data | method | " + " | ".join(asked.contenders) + " | ours / best other |")
    print("|---" * (4 + len(asked.contenders)) + "|")
    for row in rows:
        figures = row["figures"]
        cells = []
        for contender in asked.contenders:
            found = figures.get(contender)
            peak = "gpu_peak_mib" if asked.device == "cuda" else "peak_mib"
            cells.append(
                "failed"
                if found is None
                else f"{found['tokens_per_second']:,.0f} / {found['loss']:.4f} / {found['evaluation_seconds']:.2f} / "
                f"{found[peak]:,.0f}"
            )
        others = [figures[other]["tokens_per_second"] for other in figures if other != "ours"]
        ratio = f"{figures['ours']['tokens_per_second'] / max(others):.2f}" if others and "ours" in figures else "-"
        print(f"| {row['shape']} | {row['data']} | {row['method']} | " + " | ".join(cells) + f" | {ratio} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["bundled", "30m", "135m"])
    parser.add_argument("--data", nargs="+", choices=DATA, help="left out: as each shape has it")
    parser.add_argument("--methods", nargs="+", choices=LEARNING_RATE, default=["lora", "full"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0, help="of adapters: with --methods lora")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    for hidden in ("--child", "--contender", "--folder", "--warmup"):
        kind: dict[str, Any] = {"action": "store_true"} if hidden == "--child" else {}
        parser.add_argument(hidden, help=argparse.SUPPRESS, **kind)
    asked = parser.parse_args()
    if asked.dropout and asked.methods != ["lora"]:
        parser.error("--dropout is that of adapters: add --methods lora")
    asked.torch_device = "cuda:0" if asked.device == "cuda" else "cpu"
    if asked.child:
        asked.method, asked.warmup = asked.methods[0], int(asked.warmup)
        print(json.dumps(measure(asked)))
        return
    print_table(list(compare(asked)), asked)


if __name__ == "__main__":
    main()
