"""Many trials on one base model: as a cohort, one after another, as processes, and as a stock script runs them.

    python benchmarks/cohort.py ticks     # one optimizer step of K members: together, and one after another
    python benchmarks/cohort.py where     # what the time of a tick is spent on
    python benchmarks/cohort.py trials    # K whole trials: the service, K processes, a stock Ray Tune script
    python benchmarks/cohort.py trials --data instructed  # the same where all examples have one system prompt
    python benchmarks/cohort.py searches  # a whole search of K trials: the service's own, and Ray Tune's with ASHA

`ticks` runs in one warm process with one thread; both ways take turns, and on a CPU what counts is the time that the
process had, so that neighbours disturb less. *Of peak* is the work of its matrix products (attention's and half of the
adapters' are not counted) over its time, as a part of what one product of large matrices reaches there.

`trials` uses the whole machine, from the first import to the last result: `hpsearch run` as it decides by itself; a
process for each trial, all at once; Ray Tune with OptunaSearch and the HF Trainer with PEFT, two trials at a time. It
tells seconds and, in brackets, the CPU seconds of all processes, which neighbours change less. All train one epoch of
400 bundled tickets with rank 8, evaluate twice and draw batch size and learning rate from the same ranges. Nothing is
pruned: what is measured is running, not searching.

`searches` is what a person waits for: K trials of one to three epochs with two reports each over five hyperparameters,
by that script with OptunaSearch and Tune's ASHA, by the service with those policies (`halving`), and as it decides by
itself (`service`). All evaluate the same tokens of the same 40 examples. Beside the time of all K trials it tells the
best validation loss that was found, and how long it took to find one as good as the worst of these.

Needs `pip install -e '.[dev,bench]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune import DATA as DATASETS
from finetune import SHAPES, prepare_folder
from trials import a_config, searches, trials

# -- one step ----------------------------------------------------------------------------------------------------------


def ticks(asked: argparse.Namespace) -> None:
    """One optimizer step of K members: one after another, and together."""
    with _prepared(asked) as (prepared, clock):
        peak = _peak(prepared, clock)
        print(
            f"{_machine(asked)}, {peak / 1e9:,.0f} GFLOP/s at most; {asked.shape}, medians of {asked.rounds} rounds: ",
            end="",
        )
        print("ms for a step of every member\n")
        print("| batch size | tokens a step | K | one after another | together | ratio | tokens/s together | of peak |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for batch_size in asked.batch_sizes:
            for count in asked.members:
                _tick(asked, prepared, clock, (batch_size, count), peak)
        _print_memory(asked, prepared)


def _tick(
    asked: argparse.Namespace, prepared: Any, clock: Callable[[], float], kind: tuple[int, int], peak: float
) -> None:
    """One row, for (batch size, members)."""
    from torch.utils.flop_counter import FlopCounterMode

    from hpsearch.finetune import Cohort, Member

    batch_size, count = kind
    own = [Member(a_config(batch_size, 1e-3, seed, 1), prepared) for seed in range(count)]
    cohort = Cohort()
    for seed in range(count):
        cohort.admit(str(seed), Member(a_config(batch_size, 1e-3, seed, 1), prepared))
    rounds = []
    for _ in range(asked.rounds + 1):
        started = clock()
        before = sum(member.tokens for member in own)
        for member in own:
            member.advance()
        middle = clock()
        cohort.tick()
        rounds.append((middle - started, clock() - middle, sum(member.tokens for member in own) - before))
        if own[0].steps >= own[0].total_steps - 1:  # the last step of an epoch evaluates
            break
    rounds = rounds[1:] or rounds
    before = sum(member.tokens for member in own)
    with FlopCounterMode(display=False) as counter:
        for member in own:
            member.advance()
    work = counter.get_total_flops() / (sum(member.tokens for member in own) - before)
    apart, together, tokens = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(one / two for one, two, _ in rounds)
    rate = statistics.median(each / two for _, two, each in rounds)
    print(
        f"| {batch_size} | {tokens / count:.0f} | {count} | {apart * 1e3:.1f} | {together * 1e3:.1f} | {ratio:.2f} "
        f"| {rate:,.0f} | {rate * work / peak:.0%} |",
        flush=True,
    )


def _peak(prepared: Any, clock: Callable[[], float]) -> float:
    """Operations per second of one product of large matrices, in the base model's precision: the best of ten."""
    import torch

    loaded = prepared.loaded
    size, dtype = (1024, torch.float32) if loaded.device.type == "cpu" else (8192, torch.bfloat16)
    one = torch.randn(size, size, device=loaded.device, dtype=dtype)
    taken = []
    for _ in range(10):
        started = clock()
        one @ one
        taken.append(clock() - started)
    return 2 * size**3 / min(taken)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"ticks": ticks, "where": where, "trials": trials, "searches": searches}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--rounds", type=int, help="left out: 15, or 3 for trials and searches")
    parser.add_argument("--shape", choices=SHAPES, default="bundled")
    parser.add_argument("--device", default="cpu", help="as PyTorch names it")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--data", choices=DATASETS, default="tickets", help="of whole trials")
    contenders = ("service", "halving", "processes", "stock")
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=contenders)
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (3 if asked.part in {"trials", "searches"} else 15)
    parts[asked.part](asked)


if __name__ == "__main__":
    main()
