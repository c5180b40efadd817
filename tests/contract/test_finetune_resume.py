"""A fine-tune that goes on from its checkpoint is the one that was never interrupted, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetune_reference import a_config, conversation, write_examples
from safetensors import safe_open
from safetensors.torch import save_file

from hpsearch.errors import InvalidInput
from hpsearch.finetune import Cohort, Finished, Member, finetune, memory, prepare, snapshot

HARD = {"dropout": 0.2, "epochs": 2, "batch_size": 6, "lr_schedule": "cosine", "warmup_fraction": 0.2}
"""14 optimizer steps, 7 an epoch."""


def subject(method: str = "lora", **changes):
    varied = {"weight_decay": 0.1, "prompt_loss_weight": 0.3, "layer_lr_decay": 0.8, "reports_per_epoch": 2}
    return a_config(method=method, **(HARD | varied | changes))


def timeless(reports) -> list:
    return [dataclasses.replace(report, seconds=0) for report in reports]


def train_on(member: Member, steps: int = 1000) -> Member:
    while not member.is_done and steps:
        member.advance()
        steps -= 1
    return member


def through_a_file(member: Member, folder: Path) -> snapshot.Snapshot:
    snapshot.write(member.snapshot(), folder)
    read = snapshot.read(folder)
    assert read is not None
    return read


def same(one: snapshot.Snapshot, other: snapshot.Snapshot) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("changes", [{}, {"frozen_layers": 1, "seed": 5}], ids=["all", "frozen"])
def test_a_resumed_curve_is_the_uninterrupted_one(method, changes, tmp_path):
    config = subject(method, **changes)
    prepared = prepare(config)
    whole = train_on(Member(config, prepared))
    interrupted = Member(config, prepared)
    for steps in (0, 1, 4, 7, 10, 13, 14):
        saved = through_a_file(train_on(interrupted, steps - interrupted.steps), tmp_path / str(steps))
        resumed = Member(config, prepared)
        resumed.restore(saved)
        assert resumed.steps == steps
        train_on(resumed)
        assert timeless(resumed.reports) == timeless(whole.reports), steps
        assert resumed.best == resumed.reports[whole.reports.index(whole.best)]
        assert (resumed.exposure, resumed.tokens) == (whole.exposure, whole.tokens)
        assert same(resumed.snapshot(), whole.snapshot())


@pytest.mark.parametrize("architecture", ["gpt2", "llama-untied"])
def test_it_is_so_for_tied_and_transposed_weights(architecture, tmp_path):
    for method in ("lora", "full"):
        config = a_config(architecture, method, **HARD)
        prepared = prepare(config)
        whole = train_on(Member(config, prepared))
        resumed = Member(config, prepared)
        resumed.restore(through_a_file(train_on(Member(config, prepared), 5), tmp_path))
        assert timeless(train_on(resumed).reports) == timeless(whole.reports)


def test_the_best_weights_so_far_are_kept_beside_the_last(tmp_path):
    config = a_config(learning_rate=0.02, epochs=10, lr_schedule="constant", reports_per_epoch=1)
    prepared = prepare(config)
    whole = train_on(Member(config, prepared))
    interrupted = train_on(Member(config, prepared), whole.total_steps - 1)
    assert timeless([interrupted.best]) == timeless([whole.best])
    assert interrupted.best.exposure < interrupted.reports[-1].exposure
    resumed = Member(config, prepared)
    resumed.restore(through_a_file(interrupted, tmp_path))
    assert same(train_on(resumed).snapshot(), whole.snapshot())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_interrupted_many_times_and_in_company(method, tmp_path):
    config = subject(method)
    prepared = prepare(config)
    whole = train_on(Member(config, prepared))
    member = Member(config, prepared)
    while not member.is_done:
        saved = through_a_file(train_on(member, 3), tmp_path)
        member = Member(config, prepared)
        member.restore(saved)
        cohort = Cohort()
        cohort.admit("company", Member(a_config(method=method, dropout=0.5), prepared))
        if not member.is_done:
            cohort.admit("subject", member)
        events = [event for key, event in cohort.tick() if key == "subject"]
        assert not any(event == prepared.baseline for event in events if not isinstance(event, Finished))
    assert timeless(member.reports) == timeless(whole.reports)


def test_a_long_constant_trial_begins_with_the_curve_of_a_short_one():
    long, short = (subject(lr_schedule="constant", warmup_fraction=0, epochs=epochs) for epochs in (3, 1))
    prepared = prepare(long)
    curves = [timeless(train_on(Member(config, prepared)).reports) for config in (long, short)]
    assert curves[0][: len(curves[1])] == curves[1]
    assert len(curves[0]) > len(curves[1])


def test_patience_ends_a_trial_whose_curve_has_turned_and_keeps_its_best(tmp_path):
    turning = {
        "learning_rate": 0.1,
        "lr_schedule": "constant",
        "warmup_fraction": 0,
        "reports_per_epoch": 7,
        "epochs": 3,
    }
    patient, whole = subject(**turning, patience=4), subject(**turning)
    prepared = prepare(whole)
    everything = train_on(Member(whole, prepared))
    losses = [report.validation_loss for report in everything.reports[1:]]
    last = next(place for place in range(21) if place >= 4 and min(losses[: place - 3]) <= min(losses[: place + 1]))
    member = train_on(Member(patient, prepared), 3)
    resumed = Member(patient, prepared)
    resumed.restore(through_a_file(member, tmp_path))
    train_on(resumed)
    assert timeless(resumed.reports) == timeless(everything.reports[: last + 2])
    assert resumed.best.validation_loss == min(losses[: last + 1])
    assert last < 20  # or it shows nothing


def test_training_on_changes_no_snapshot():
    config = subject()
    member = train_on(Member(config, prepare(config)), 5)
    one, other = member.snapshot(), member.snapshot()
    train_on(member)
    restored = Member(config, member.prepared)
    restored.restore(one)
    train_on(restored)
    assert same(one, other)


def test_the_size_of_a_micro_batch_is_the_device_s_and_not_the_curve_s():
    """A trial that a small GPU gave up trains with all that a large one has room for, and the other way round."""
    config = subject()
    member = Member(config, prepare(config))
    member.token_budget, member.evaluation_budget = 64, 128
    saved = train_on(member, 3).snapshot()
    assert not any("budget" in name for name in saved.progress)
    there = Member(config, member.prepared)
    there.token_budget, there.evaluation_budget = 50, 10**6
    there.restore(saved)
    assert (there.token_budget, there.evaluation_budget) == (50, 10**6)


def test_alone_the_room_for_a_micro_batch_is_asked_for_where_one_goes_on_too(tmp_path, monkeypatch):
    config = subject()
    prepared = prepare(config)
    alone = finetune(config, prepared=prepared).reports
    snapshot.write(train_on(Member(config, prepared), 3).snapshot(), tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 0)
    outcome = finetune(config, prepared=prepared, checkpoint=tmp_path)
    assert outcome.member.token_budget == 1
    for one, two in zip(outcome.reports, alone, strict=True):
        assert one.validation_loss == pytest.approx(two.validation_loss, rel=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("reports", [1, 2, 4])
def test_finetune_goes_on_from_its_checkpoint(reports, tmp_path):
    config = subject()
    prepared = prepare(config)
    whole = finetune(config, prepared=prepared, save_to=tmp_path / "whole")
    seen: list = []
    resumed_from: list = []

    def until_killed(report):
        if len(seen) == reports + 1:
            raise Killed
        seen.append(report)

    with contextlib.suppress(Killed):
        finetune(config, until_killed, prepared=prepared, checkpoint=tmp_path / "checkpoint")
    assert len(seen) == reports + 1
    first = len(seen)
    outcome = finetune(
        config,
        seen.append,
        prepared=prepared,
        checkpoint=tmp_path / "checkpoint",
        on_resume=resumed_from.append,
        save_to=tmp_path / "resumed",
    )
    assert timeless(seen) == timeless(whole.reports)
    assert timeless(outcome.reports) == timeless(whole.reports)
    assert resumed_from == [seen[first - 1]]
    files = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("whole", "resumed")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"dropout": 0.1}, r"hyperparameters\.dropout is 0\.2 there and 0\.1 here", id="hyperparameter"),
        pytest.param({"seed": 1}, "seed is 0 there and 1 here", id="seed"),
        pytest.param({"learning_rate": 1e-3}, "learning_rate", id="learning-rate"),
        pytest.param({"reports_per_epoch": 3}, "reports_per_epoch", id="reports"),
        pytest.param({"target_modules": ("q_proj",)}, r"model\.lora\.target_modules", id="targets"),
        pytest.param({"max_length": 32}, "training examples .*evaluation contract|evaluation contract", id="length"),
        pytest.param({"data": "prompt_completion"}, "training examples", id="data"),
        pytest.param({"architecture": "llama-untied"}, "evaluation contract", id="model"),
        pytest.param({"method": "full"}, r"model\.method is lora there and full here", id="method"),
    ],
)
def test_a_checkpoint_of_another_fine_tune_is_refused(changes, named, tmp_path):
    saved = through_a_file(train_on(Member(subject(), prepare(subject())), 4), tmp_path)
    other = subject(**changes)
    with pytest.raises(InvalidInput, match=named):
        Member(other, prepare(other)).restore(saved)


def test_the_same_contents_elsewhere_are_the_same_fine_tune(tmp_path):
    config = subject()
    saved = through_a_file(train_on(Member(config, prepare(config)), 4), tmp_path)
    moved = write_examples("moved-train.jsonl", map(conversation, range(40)))
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"train": moved})})
    Member(elsewhere, prepare(elsewhere)).restore(saved)
    swapped = write_examples("swapped-train.jsonl", map(conversation, reversed(range(40))))
    other = config.model_copy(update={"data": config.data.model_copy(update={"train": swapped})})
    with pytest.raises(InvalidInput, match="training examples"):
        Member(other, prepare(other)).restore(saved)


def test_another_metric_keeps_another_best(tmp_path):
    prepared = prepare(subject())
    saved = through_a_file(train_on(Member(subject(), prepared), 4), tmp_path)
    with pytest.raises(InvalidInput, match="metric"):
        Member(subject(), prepared, "validation_token_accuracy").restore(saved)


def test_a_damaged_checkpoint_is_refused_whatever_the_damage(tmp_path):
    config = subject()
    snapshot.write(train_on(Member(config, prepare(config)), 4).snapshot(), tmp_path)
    path = tmp_path / snapshot.FILE
    content = path.read_bytes()
    cuts = [0, 4, 9, 500, len(content) // 2, len(content) - 1]
    flips = [*range(0, 40, 3), *range(40, len(content), len(content) // 60)]
    flipped = [content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :] for place in flips]
    for damaged in [*(content[:cut] for cut in cuts), *flipped, os.urandom(2000)]:
        path.write_bytes(damaged)
        with pytest.raises(InvalidInput, match="delete it to start over"):
            snapshot.read(tmp_path)
    path.write_bytes(content)
    assert snapshot.read(tmp_path) is not None


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    config = subject()
    snapshot.write(Member(config, prepare(config)).snapshot(), tmp_path)
    with safe_open(tmp_path / snapshot.FILE, "pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / snapshot.FILE, metadata | {"hpsearch.version": "1"})
    with pytest.raises(InvalidInput, match="another version of hpsearch"):
        snapshot.read(tmp_path)
    save_file(tensors, tmp_path / snapshot.FILE)
    with pytest.raises(InvalidInput, match="another version of hpsearch"):
        snapshot.read(tmp_path)


def test_no_checkpoint_is_none(tmp_path):
    assert snapshot.read(tmp_path / "nowhere") is None


def test_a_write_that_dies_half_way_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    def at(number: int) -> snapshot.Snapshot:
        return snapshot.Snapshot({}, {"number": number}, {"last.w": torch.full((100,), float(number))})

    def half(_tensors, path, _metadata):
        path.write_bytes((tmp_path / snapshot.FILE).read_bytes()[:200])
        (path.parent / ".tmp-of-the-library").write_bytes(b"half")
        raise Killed

    snapshot.write(at(1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save_file", half)
        with pytest.raises(Killed):
            snapshot.write(at(2), tmp_path)
    old = snapshot.read(tmp_path)
    assert old is not None
    assert old.progress == {"number": 1}
    snapshot.write(at(3), tmp_path)
    new = snapshot.read(tmp_path)
    assert new is not None
    assert same(new, at(3))
    assert [path.name for path in tmp_path.iterdir()] == [snapshot.FILE]


WRITER = """
import sys, pathlib, torch
from hpsearch.finetune import snapshot
for number in range(100000):
    tensors = {"last.w": torch.full((300_000,), float(number))}
    snapshot.write(snapshot.Snapshot({}, {"number": number}, tensors), pathlib.Path(sys.argv[1]))
    print(number, flush=True)
"""


def test_kill_9_while_writing_leaves_a_whole_checkpoint(tmp_path):
    for writes in (1, 5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(writes):
                written = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            process.wait()
        read = snapshot.read(tmp_path)
        assert read is not None
        assert read.progress["number"] >= written
        assert set(read.tensors["last.w"].tolist()) == {float(read.progress["number"])}
    snapshot.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
