"""How many members pay on a device, and what they take of its memory."""

from __future__ import annotations

import time

import pytest
import torch
from finetune_reference import a_config

from hpsearch.errors import OutOfMemory
from hpsearch.finetune import Member, company, finetune, memory, prepare


def with_rates(monkeypatch, rates: dict[int, float]) -> None:
    """A device that trains so many tokens per second with so many members, and has no room for more."""

    def rate(_prepared, _config, count):
        if count not in rates:
            raise OutOfMemory
        return rates[count]

    monkeypatch.setattr(company, "_tokens_per_second", rate)


@pytest.mark.parametrize(
    ("rates", "most", "members", "why"),
    [
        pytest.param({1: 100, 2: 180, 4: 300, 8: 350}, 32, 4, "8 gain less than 20% over 4", id="gains-until-4"),
        pytest.param({1: 100, 2: 90}, 32, 1, "2 gain less than 20% over 1", id="pooling-loses"),
        pytest.param({1: 100, 2: 180, 4: 300}, 32, 4, "8 do not fit", id="memory-ends-it"),
        pytest.param({1: 100, 2: 180, 4: 300}, 6, 4, "no more than 6 are wanted", id="no-more-are-wanted"),
        pytest.param({1: 100}, 1, 1, "no more than 1 are wanted", id="one-is-wanted"),
        pytest.param({}, 8, 1, "1 do not fit", id="not-even-one"),
    ],
)
def test_twice_the_company_must_pay(monkeypatch, rates, most, members, why):
    with_rates(monkeypatch, rates)
    measured = company.measure(prepare(a_config()), a_config(), most)
    assert measured.members == members
    assert measured.reason.startswith(why)
    assert all(f"{count}: {rate:,.0f}" in measured.reason for count, rate in rates.items())


def test_it_is_measured_by_training_which_leaves_nothing_behind():
    config = a_config(batch_size=1)
    prepared = prepare(config)
    before = finetune(config, prepared=prepared).reports
    measured = company.measure(prepared, config, 4)
    assert measured.tokens_per_second.keys() >= {1, 2}
    assert all(rate > 0 for rate in measured.tokens_per_second.values())
    after = finetune(config, prepared=prepared).reports
    assert [report.validation_loss for report in after] == [report.validation_loss for report in before]


def test_a_core_that_others_use_too_says_nothing_of_company(monkeypatch):
    config = a_config(batch_size=1)
    prepared = prepare(config)
    alone = company._tokens_per_second(prepared, config, 1)
    real = company.gradients

    def interrupted(*arguments):
        time.sleep(0.2)  # many times what the step takes
        return real(*arguments)

    monkeypatch.setattr(company, "gradients", interrupted)
    assert company._tokens_per_second(prepared, config, 1) > alone / 4


def test_whole_models_train_one_by_one():
    config = a_config(method="full")
    assert company.measure(prepare(config), config, 8).members == 1


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_what_a_member_holds_is_what_it_allocates(method, frozen_layers):
    config = a_config(method=method, frozen_layers=frozen_layers)
    prepared = prepare(config)
    member = Member(config, prepared)
    member.advance()
    tensors = list(member.weights.named.values())
    held = sum(2 * tensor.nbytes for tensor in tensors)  # with the gradients
    held += sum(tensor.nbytes for tensor in member._optimizer.state().values() if tensor.ndim)
    if method == "full":
        held += sum(each.nbytes for each in member.weights.model.parameters()) - sum(each.nbytes for each in tensors)
    assert memory.member_bytes(config, prepared) == held


def test_recomputing_keeps_less_and_a_long_batch_no_more_for_each_token():
    kept = {}
    for name, changes in {"plain": {}, "long": {"batch_size": 16}, "again": {"activation_checkpointing": True}}.items():
        again = changes.pop("activation_checkpointing", False)
        config = a_config(**changes)
        model = config.model.model_copy(update={"activation_checkpointing": again})
        config = config.model_copy(update={"model": model})
        memory._measured.clear()
        kept[name] = memory.kept_bytes_per_token(Member(config, prepare(config)))
    assert kept["long"] == pytest.approx(kept["plain"], rel=0.2)
    assert kept["again"] < 0.7 * kept["plain"]


def test_what_is_kept_is_not_known_from_a_trial_that_drops_nothing_or_trains_fewer_layers():
    prepared = prepare(a_config())
    trained = {"some": {"frozen_layers": 1}, "all": {}, "dropping": {"dropout": 0.1}}  # in this order: the least first
    kept = {
        name: memory.kept_bytes_per_token(Member(a_config(**changes), prepared)) for name, changes in trained.items()
    }
    inputs = sum(layer.in_features for layer in prepared.base.layers.values())
    assert kept["some"] < 0.8 * kept["all"]
    assert kept["dropping"] >= kept["all"] + inputs


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_a_member_awaits_is_what_its_first_step_allocates(method):
    config = a_config(method=method, reports_per_epoch=1)
    member = Member(config, prepare(config))

    def held() -> int:
        found = [each for parameter in member.weights.named.values() for each in (parameter, parameter.grad)]
        found += [each for each in member._optimizer.state().values() if each.ndim]
        return sum(each.nbytes for each in found if each is not None)

    fresh, awaited = held(), memory.awaited_bytes(member)
    member.advance()
    assert held() - fresh == awaited > 0
    assert memory.awaited_bytes(member) == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_little_memory_makes_small_micro_batches_and_the_same_curve(method, monkeypatch):
    """Of what is free beside a member that is there already, only its gradients and moments are taken."""
    config = a_config(method=method, batch_size=16)
    prepared = prepare(config)
    plenty = finetune(config, prepared=prepared).reports
    member = Member(config, prepared)
    per_token = memory.kept_bytes_per_token(member)
    room = memory.awaited_bytes(member) + 100 * per_token / (1 - memory.HEAD_ROOM)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: int(4 * room))
    memory.limit_tokens(member, share=0.25)
    assert 99 <= member.token_budget <= 100
    while not member.is_done:
        member.advance()
    for one, two in zip(member.reports, plenty, strict=True):
        assert one.validation_loss == pytest.approx(two.validation_loss, rel=1e-5)


def test_one_more_fits_where_all_that_it_holds_does_with_head_room(monkeypatch):
    config = a_config()
    prepared = prepare(config)
    needed = memory.member_bytes(config, prepared) / (1 - memory.HEAD_ROOM)
    for share, free, fits in ((0.25, 4.01 * needed, True), (0.25, 3.99 * needed, False), (1.0, 0.99 * needed, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, free=free: int(free))
        assert memory.fits(config, prepared, share) == fits


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_the_others_are_about_to_take_is_no_room_for_one_more(method, monkeypatch):
    """Those that begin in one look have no gradients and moments yet, and would take them in one tick."""
    config = a_config(method=method)
    prepared = prepare(config)
    other, member = Member(config, prepared), Member(config, prepared)
    needed = memory.member_bytes(config, prepared) / (1 - memory.HEAD_ROOM)
    awaited = memory.awaited_bytes(other)
    per_token = memory.kept_bytes_per_token(member) / (1 - memory.HEAD_ROOM)
    for taken, fits in ((awaited, True), (0.9 * awaited, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, taken=taken: int(1 + needed + taken))
        assert memory.fits(config, prepared, 1.0, [other]) == fits
    monkeypatch.setattr(memory, "free_bytes", lambda _device: int(2 * awaited + 100 * per_token))
    memory.limit_tokens(member, 1.0, [other])
    assert 99 <= member.token_budget <= 100
    other.advance()
    monkeypatch.setattr(memory, "free_bytes", lambda _device: int(1 + needed))
    assert memory.fits(config, prepared, 1.0, [other])


def test_free_memory_is_some_of_the_machine_s():
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**50
