"""Many trials on one base model: as a cohort, one after another, as processes, and as a stock script runs them.

    python benchmarks/cohort.py ticks     # one optimizer step of K members: together, and one after another
    python benchmarks/cohort.py where     # what the time of a tick is spent on
    python benchmarks/cohort.py trials    # K whole trials: the service, K processes, a stock Ray Tune script
    python benchmarks/cohort.py trials --data instructed  # the same where all examples have one system prompt

`ticks` runs in one warm process with one thread; both ways take turns, and on a CPU what counts is the time that the
process had, so that neighbours disturb less. `trials` uses the whole machine, from the first
import to the last result: `hpsearch run` as it decides by itself; a process for each trial, all at once; Ray Tune with
OptunaSearch and the HF Trainer with PEFT, two trials at a time. It tells seconds and, in brackets, the CPU seconds of
all processes, which neighbours change less. All train one epoch of 400 bundled tickets with rank 8, evaluate twice and
draw batch size and learning rate from the same ranges. Nothing is pruned: what is measured is running, not searching.

Needs `pip install -e '.[dev,bench]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune import DATA as DATASETS
from finetune import PLAIN, SHAPES, prepare_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "studies/models/pydoc-llama"
DATA = Path(os.environ.get("BENCHMARK_DATA", ROOT / "studies/data/tickets"))
"""Of a child process: where the parent has written it."""
BATCH_SIZES = (4, 8, 16)
LEARNING_RATES = (5e-4, 5e-3)


def a_config(batch_size: int, learning_rate: float, seed: int, reports: int = 2) -> Any:
    from hpsearch.spec.finetune import FinetuneConfig

    hyperparameters = PLAIN | {"batch_size": batch_size}
    return FinetuneConfig.model_validate(
        {
            "model": {"base": str(MODEL), "lora": {"rank": 8, "alpha": 16}},
            "data": {"train": str(DATA / "train.jsonl"), "validation": str(DATA / "validation.jsonl")},
            "hyperparameters": hyperparameters,
            "learning_rate": learning_rate,
            "base_learning_rate": learning_rate,
            "seed": seed,
            "reports_per_epoch": reports,
        }
    )


def drawn(trials: int) -> list[tuple[int, float]]:
    """(batch size, learning rate) of each trial."""
    source = random.Random(0)
    low, high = LEARNING_RATES
    return [(source.choice(BATCH_SIZES), low * (high / low) ** source.random()) for _ in range(trials)]


# -- one step ----------------------------------------------------------------------------------------------------------


def ticks(asked: argparse.Namespace) -> None:
    """One optimizer step of K members: one after another, and together."""
    with _prepared(asked) as (prepared, clock):
        print(f"{_machine(asked)}; {asked.shape}, medians of {asked.rounds} rounds: ms for a step of every member\n")
        print("| batch size | tokens a step | K | one after another | together | ratio | tokens/s together |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for batch_size in asked.batch_sizes:
            for count in asked.members:
                _tick(asked, prepared, clock, batch_size, count)
        _print_memory(asked, prepared)


def _tick(asked: argparse.Namespace, prepared: Any, clock: Callable[[], float], batch_size: int, count: int) -> None:
    from hpsearch.finetune import Cohort, Member

    own = [Member(a_config(batch_size, 1e-3, seed, 1), prepared) for seed in range(count)]
    cohort = Cohort()
    for seed in range(count):
        cohort.admit(str(seed), Member(a_config(batch_size, 1e-3, seed, 1), prepared))
    pairs = []
    for _ in range(asked.rounds + 1):
        started = clock()
        before = sum(member.tokens for member in own)
        for member in own:
            member.advance()
        middle = clock()
        cohort.tick()
        pairs.append((middle - started, clock() - middle))
        tokens = sum(member.tokens for member in own) - before
        if own[0].steps >= own[0].total_steps - 1:  # the last step of an epoch evaluates
            break
    pairs = pairs[1:] or pairs
    apart, together = (statistics.median(each) * 1e3 for each in zip(*pairs, strict=True))
    ratio = statistics.median(one / two for one, two in pairs)
    print(
        f"| {batch_size} | {tokens // count} | {count} | {apart:.1f} | {together:.1f} | {ratio:.2f} "
        f"| {tokens / together * 1e3:,.0f} |",
        flush=True,
    )


def where(asked: argparse.Namespace) -> None:
    """Where the time of a tick goes, by the functions that it is made of; timing them takes some itself."""
    import torch

    from hpsearch.finetune import Cohort, Member, loss, optimizer, products, step

    spent: dict[str, float] = {}
    parts = [
        (torch.Tensor, "backward", "backward pass, adapters in it"),
        (products, "add", "adapters, forward"),
        (products, "add_gradients", "adapters, backward"),
        (step, "weighted_nll", "forward pass, adapters and head in it"),
        (loss, "_head_nll", "output head, its gradient too"),
        (optimizer.Optimizer, "step", "clipping and AdamW"),
    ]
    with _prepared(asked) as (prepared, clock):
        for owner, name, told in parts:
            setattr(owner, name, _timed(getattr(owner, name), told, spent, clock))
        print(f"{_machine(asked)}; {asked.shape}: ms of a tick\n")
        print("| batch size | K | tick | " + " | ".join(told for *_, told in parts) + " |")
        print("|---" * (3 + len(parts)) + "|", flush=True)
        for batch_size in asked.batch_sizes:
            for count in asked.members:
                cohort = Cohort()
                for seed in range(count):
                    cohort.admit(str(seed), Member(a_config(batch_size, 1e-3, seed, 1), prepared))
                cohort.tick()
                spent.clear()
                started = clock()
                for _ in range(asked.rounds):
                    cohort.tick()
                whole = (clock() - started) / asked.rounds * 1e3
                each = " | ".join(f"{spent.get(told, 0.0) / asked.rounds * 1e3:.1f}" for *_, told in parts)
                print(f"| {batch_size} | {count} | {whole:.1f} | {each} |", flush=True)


def _timed(function: Any, name: str, spent: dict[str, float], clock: Callable[[], float]) -> Any:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = clock()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + clock() - started

    return timed


@contextlib.contextmanager
def _prepared(asked: argparse.Namespace) -> Iterator[tuple[Any, Callable[[], float]]]:
    """The shape on the device with the tickets, and a clock: on a CPU, of the time that this process had."""
    import torch

    from hpsearch.finetune import prepare

    torch.set_num_threads(1)
    device = torch.device(asked.device)

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        config = a_config(1, 1e-3, 0)
        if asked.shape != "bundled":
            prepare_folder(Path(folder), SHAPES[asked.shape], "tickets", 400)
            model = config.model.model_copy(update={"base": str(Path(folder) / "model")})
            config = config.model_copy(update={"model": model})
        yield prepare(config, asked.device), clock


def _machine(asked: argparse.Namespace) -> str:
    import torch

    if asked.device != "cpu":
        return torch.cuda.get_device_name(asked.device)
    return f"{platform.machine()}, CPU, 1 thread, CPU time"


def _print_memory(asked: argparse.Namespace, prepared: Any) -> None:
    from hpsearch.finetune import Member, memory

    config = a_config(max(asked.batch_sizes), 1e-3, 0)
    held = memory.member_bytes(config, prepared) / 2**20
    kept = memory.kept_bytes_per_token(Member(config, prepared)) / 2**10
    print(f"\na member holds {held:.1f} MiB, a token of a micro-batch keeps {kept:.0f} KiB")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


# -- whole trials ------------------------------------------------------------------------------------------------------


def trials(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        for name, records in zip(("train", "validation"), DATASETS[asked.data](400), strict=True):
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (Path(folder) / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        os.environ["BENCHMARK_DATA"] = folder
        _trials(asked)


def _trials(asked: argparse.Namespace) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, medians of {asked.rounds} rounds: seconds (CPU) for K trials\n"
    )
    print("| K | " + " | ".join(asked.contenders) + " |")
    print("|---" * (1 + len(asked.contenders)) + "|", flush=True)
    for count in asked.trials:
        taken: dict[str, list[tuple[float, float]]] = {contender: [] for contender in asked.contenders}
        for _ in range(asked.rounds):
            for contender in asked.contenders:
                with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, _cpu_seconds() as spent:
                    started = time.perf_counter()
                    WAYS[contender](count, Path(folder))
                    seconds = time.perf_counter() - started
                taken[contender].append((seconds, sum(spent.values())))
        medians = ([statistics.median(each) for each in zip(*rounds, strict=True)] for rounds in taken.values())
        print(f"| {count} | " + " | ".join(f"{wall:.1f} ({cpu:.1f})" for wall, cpu in medians) + " |", flush=True)


@contextlib.contextmanager
def _cpu_seconds() -> Iterator[dict[int, float]]:
    """Of every process that is started inside and inherits this one's environment, at the last look, by its id."""
    import psutil

    tag, spent, over = uuid.uuid4().hex, {}, threading.Event()
    os.environ["BENCHMARK_RUN"] = tag

    def look() -> None:
        while not over.wait(0.3):
            for process in psutil.process_iter(["pid", "cpu_times", "environ"]):
                if (process.info["environ"] or {}).get("BENCHMARK_RUN") == tag:
                    spent[process.info["pid"]] = process.info["cpu_times"].user + process.info["cpu_times"].system

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield spent
    finally:
        over.set()
        looking.join()


def run_service(count: int, folder: Path) -> None:
    (low, high), data = LEARNING_RATES, Path(os.environ["BENCHMARK_DATA"])
    spec = {
        "name": "benchmark",
        "model": {"base": "models/pydoc-llama", "base_learning_rate": 1.0, "lora": {"rank": 8, "alpha": 16}},
        "data": {"train": str(data / "train.jsonl"), "validation": str(data / "validation.jsonl")},
        "search_space": {
            "epochs": 1,
            "batch_size": {"choices": list(BATCH_SIZES)},
            "learning_rate_multiplier": {"low": low, "high": high, "log": True},
            "prompt_loss_weight": 0.0,
            "weight_decay": 0.01,
        },
        "sampler": {"type": "random"},
        "pruner": {"type": "none"},
        "budget": {"trials": count},
    }
    (folder / "benchmark.json").write_text(json.dumps(spec))
    home = {"HPSEARCH_HOME": str(folder / "home"), "HPSEARCH_ALLOWED_ROOTS": f"{ROOT / 'studies'}:{data}"}
    command = [str(Path(sys.executable).parent / "hpsearch"), "run", str(folder / "benchmark.json"), "--port", "8123"]
    done = _run([*command, "--json"], home)
    ranking = json.loads(done.splitlines()[-1])["ranking"]
    assert len(ranking) == count, f"only {len(ranking)} of {count} trials completed"


def run_processes(count: int, folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "one", str(batch_size), str(rate)], env=environment, stdout=subprocess.DEVNULL
        )
        for batch_size, rate in drawn(count)
    ]
    assert not any(child.wait() for child in children)


def run_stock(count: int, folder: Path) -> None:
    _run([sys.executable, __file__, "stock", str(count), str(folder)], {})


def _run(command: list[str], environment: dict[str, str]) -> str:
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed: {done.stderr[-3000:]}")
    return done.stdout


WAYS = {"service": run_service, "processes": run_processes, "stock": run_stock}


def one(asked: argparse.Namespace) -> None:
    """A trial in a process of its own."""
    import torch

    from hpsearch.finetune import finetune

    torch.set_num_threads(1)
    finetune(a_config(int(asked.rest[0]), float(asked.rest[1]), 0))


def stock(asked: argparse.Namespace) -> None:
    """What one writes today: Ray Tune, OptunaSearch, the HF Trainer, PEFT."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(_stock_trial, {"cpu": 1}),
        param_space={"batch_size": tune.choice(list(BATCH_SIZES)), "learning_rate": tune.loguniform(*LEARNING_RATES)},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric="eval_loss", mode="min", seed=0),
            num_samples=int(asked.rest[0]),
            max_concurrent_trials=os.cpu_count(),
        ),
        run_config=tune.RunConfig(storage_path=asked.rest[1], verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    assert len(results) == int(asked.rest[0])


def _stock_trial(config: dict[str, Any]) -> None:
    import datasets
    import peft
    import torch
    import transformers
    from ray import tune

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")

    def tokenised(name: str) -> Any:
        rows = []
        for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines():
            *before, last = json.loads(line)["messages"]
            prompt = "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in before) + "\nAssistant:"
            known, ids = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {last['content']}"))
            ids.append(tokenizer.eos_token_id)
            rows.append({"input_ids": ids, "labels": [-100] * len(known) + ids[len(known) :], "length": len(ids)})
        return datasets.Dataset.from_list(rows)

    class Reporting(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            tune.report({"eval_loss": metrics["eval_loss"]})

    train = tokenised("train")
    steps = -(-len(train) // config["batch_size"])
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=config["batch_size"],
        per_device_eval_batch_size=32,
        num_train_epochs=1,
        learning_rate=config["learning_rate"],
        weight_decay=0.01,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=-(-steps // 2),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    transformers.Trainer(
        peft.get_peft_model(model, lora),
        arguments,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        train_dataset=train,
        eval_dataset=tokenised("validation"),
        callbacks=[Reporting()],
    ).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"ticks": ticks, "where": where, "trials": trials, "one": one, "stock": stock}
    parser.add_argument("part", choices=parts)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="left out: 15, or 3 for trials")
    parser.add_argument("--shape", choices=SHAPES, default="bundled")
    parser.add_argument("--device", default="cpu", help="as PyTorch names it")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--data", choices=DATASETS, default="tickets", help="of whole trials")
    parser.add_argument("--contenders", nargs="+", choices=WAYS, default=list(WAYS))
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (3 if asked.part == "trials" else 15)
    parts[asked.part](asked)


if __name__ == "__main__":
    main()
