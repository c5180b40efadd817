"""A fine-tune whose hyperparameters change in the middle, and one that takes another one's weights over."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from finetune_reference import a_config, reference_run
from pydantic import ValidationError

from hpsearch.errors import InvalidInput, WorkerLost
from hpsearch.finetune import Cohort, Finished, Member, finetune, prepare, snapshot
from hpsearch.finetune.attempts import Attempt
from hpsearch.finetune.order import epoch_order
from hpsearch.spec.finetune import FinetuneConfig
from tests.contract.test_finetune_resume import same, subject, through_a_file, timeless, train_on

TOLERANCE = 1e-5
OTHER = {"learning_rate_multiplier": 2.0, "weight_decay": 0.4, "prompt_loss_weight": 0.05}
ALL_OTHER = {**OTHER, "dropout": 0.4, "layer_lr_decay": 0.5}


def changed(config: FinetuneConfig, exposure: int, **values: Any) -> FinetuneConfig:
    return config.changed(exposure, config.hyperparameters.model_copy(update=values))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_curve_is_that_of_a_plain_torch_optimizer_whose_numbers_are_changed_in_place(method: str) -> None:
    config = a_config(method=method, epochs=2, weight_decay=0.1, prompt_loss_weight=0.3, warmup_fraction=0.1)
    config = changed(changed(config, 24, **OTHER), 56, learning_rate_multiplier=0.3, weight_decay=0.0)
    assert [phase.until for phase in config.earlier] == [24, 56]
    prepared = prepare(config)
    initial = {name: each.detach().clone() for name, each in Member(config, prepared).weights.named.items()}
    order = functools.partial(epoch_order, config.seed, count=len(prepared.train.examples))
    expected = reference_run(config, order, initial if method == "lora" else {})
    reports = finetune(config, prepared=prepared).reports[1:]
    assert len(expected) == len(reports)
    for step, (report, (training_loss, validation_loss)) in enumerate(zip(reports, expected, strict=True)):
        assert report.training_loss == pytest.approx(training_loss, rel=TOLERANCE), step
        assert report.validation_loss == pytest.approx(validation_loss, rel=TOLERANCE), step


@pytest.mark.parametrize("method", ["lora", "full"])
def test_taking_weights_over_is_having_changed_ones_own(method: str, tmp_path: Path) -> None:
    """Through two hand-overs, from a member that goes on itself, with everything changed that may change."""
    parent = subject(method)
    prepared = prepare(parent)
    source = train_on(Member(parent, prepared), 7)  # the first epoch: its last example is a report
    child = changed(parent, 40, **ALL_OTHER)
    first = Member(child, prepared)
    first.take_over(through_a_file(source, tmp_path / "parent"))
    train_on(first, 4)
    kept = through_a_file(first, tmp_path / "child")  # between two reports
    train_on(source)
    assert timeless(source.reports) == timeless(train_on(Member(parent, prepared)).reports), "the parent is undisturbed"

    whole = train_on(Member(child, prepared))
    resumed = Member(child, prepared)
    resumed.restore(kept)
    for member in (train_on(first), train_on(resumed)):
        assert timeless(member.reports) == timeless(whole.reports)
        assert same(member.snapshot(), whole.snapshot())
    for phase in ("dropout", "layer_lr_decay", "weight_decay", "prompt_loss_weight", "learning_rate_multiplier"):
        other = changed(parent, 40, **{phase: ALL_OTHER[phase]})
        assert train_on(Member(other, prepared)).reports[-1] != source.reports[-1], phase


def test_a_child_of_a_child_has_the_curve_of_the_whole_lineage(tmp_path: Path) -> None:
    founder = subject(reports_per_epoch=4)
    prepared, reached, config = prepare(founder), {20: 4, 40: 7, 60: 11}, founder
    member = Member(founder, prepared)
    for number, (exposure, steps) in enumerate(reached.items(), start=1):
        train_on(member, steps - member.steps)
        config = changed(config, exposure, learning_rate_multiplier=1.0 + number, dropout=0.1 * number)
        heir = Member(config, prepared)
        heir.take_over(through_a_file(member, tmp_path / str(exposure)))
        member = heir
    assert timeless(train_on(member).reports) == timeless(finetune(config, prepared=prepared).reports)
    assert [report.exposure for report in member.reports] == [0, 10, 20, 30, 40, 50, 60, 70, 80]


def test_what_is_handed_over_stays_while_the_trial_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = subject()
    prepared = prepare(parent)
    member = train_on(Member(parent, prepared), 7)
    attempt, folder = Attempt(tmp_path / "trial", 1), tmp_path / "exchange" / "40"
    attempt.hand_over(member, folder)
    train_on(member, 3)
    attempt.keep(member)
    attempt.hand_over(member, folder)  # as after a crash: what is there stays
    heir = changed(parent, 40, **OTHER)
    begun = Member(heir, prepared)
    assert Attempt(tmp_path / "heir", 1).go_on(begun, reported=40, inherited=folder)
    assert begun.steps == 7
    train_on(begun, 1)
    Attempt(tmp_path / "heir", 2).keep(begun)
    again = Member(heir, prepared)
    assert Attempt(tmp_path / "heir", 3).go_on(again, reported=40, inherited=folder)
    assert again.steps == 8, "its own snapshot comes first"
    with pytest.raises(WorkerLost, match=r"there is no checkpoint in .*nowhere"):
        Attempt(tmp_path / "other", 1).go_on(Member(heir, prepared), reported=40, inherited=tmp_path / "nowhere")
    snapshot.share(tmp_path / "trial" / "1", folder)  # somebody was quicker
    monkeypatch.setattr(snapshot, "VERSION", "another")
    with pytest.raises(WorkerLost, match="of another version of hpsearch"):  # or it would be tried anew without end
        Attempt(tmp_path / "late", 1).go_on(Member(heir, prepared), reported=40, inherited=folder)
    monkeypatch.undo()
    assert snapshot.exists(folder)


def test_in_a_cohort_it_has_the_same_curve() -> None:
    plain = subject()
    config, prepared = changed(plain, 40, **ALL_OTHER), prepare(plain)
    cohort, reports = Cohort(), []
    cohort.admit("changing", Member(config, prepared))
    cohort.admit("plain", Member(plain, prepared))
    while len(cohort):
        reports += [event for key, event in cohort.tick() if key == "changing" and not isinstance(event, Finished)]
    alone = finetune(config, prepared=prepared).reports
    assert [report.validation_loss for report in reports] == pytest.approx(
        [report.validation_loss for report in alone], rel=TOLERANCE
    )


def test_only_the_lineage_that_the_config_names_can_be_taken_over(tmp_path: Path) -> None:
    parent = subject()
    prepared = prepare(parent)
    at_report = train_on(Member(parent, prepared), 7).snapshot()
    heir = changed(parent, 40, dropout=0.0)
    with pytest.raises(InvalidInput, match=r"hyperparameters.dropout is 0.2 there and 0.1 here"):
        Member(changed(subject(dropout=0.1), 40, dropout=0.0), prepared).take_over(at_report)
    with pytest.raises(InvalidInput, match="seed is 0 there and 3 here"):
        Member(changed(subject(seed=3), 40, dropout=0.0), prepared).take_over(at_report)
    with pytest.raises(InvalidInput, match="stands behind exposure 40, and is to be taken over at 20"):
        Member(changed(parent, 20, dropout=0.0), prepared).take_over(at_report)
    with pytest.raises(InvalidInput, match="stands behind exposure 40"):
        Member(heir, prepared).take_over(train_on(Member(parent, prepared), 8).snapshot())
    with pytest.raises(InvalidInput, match="belongs to another fine-tune: earlier is"):
        Member(heir, prepared).restore(at_report)
    own = train_on(Member(heir, prepared), 8).snapshot()
    with pytest.raises(InvalidInput, match="belongs to another fine-tune: earlier is"):
        Member(heir.at(0), prepared).restore(own)


def test_what_decides_what_weights_or_steps_are_can_not_change() -> None:
    config = a_config(epochs=2)
    for name, value in {
        "epochs": 3,
        "batch_size": 8,
        "lr_schedule": "constant",
        "warmup_fraction": 0.5,
        "frozen_layers": 1,
    }.items():
        with pytest.raises(ValidationError, match=f"{name} can't change in the middle of a fine-tune"):
            changed(config, 40, **{name: value})
    once = changed(config, 40, dropout=0.3)
    with pytest.raises(ValidationError, match="end one after the other"):
        FinetuneConfig.model_validate({**once.model_dump(), "earlier": [once.earlier[0]] * 2})
    assert once.at(39) == config
    assert once.at(40) == once
    assert "earlier" not in config.model_dump()  # what was trained before there were any is the same still
