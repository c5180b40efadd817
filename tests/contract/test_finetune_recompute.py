"""Activation checkpointing changes what is kept in memory, and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from finetune_reference import a_config

from hpsearch.finetune import Member, finetune, prepare, recompute, snapshot
from hpsearch.finetune.step import gradients
from hpsearch.finetune.weights import _activations
from hpsearch.spec.finetune import FinetuneConfig


def with_checkpointing(config: FinetuneConfig) -> FinetuneConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"activation_checkpointing": True})})


def curve(config, prepared=None) -> list[float]:
    return [report.validation_loss for report in finetune(config, prepared=prepared).reports]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma", "gemma2", "gpt_neox", "gpt2"])
def test_the_curve_is_the_same_bit_for_bit(architecture, method):
    config = a_config(architecture, method, dropout=0.2)
    assert curve(with_checkpointing(config)) == curve(config)


def test_several_micro_batches_draw_what_they_drew():
    config = a_config(dropout=0.3, batch_size=10)
    prepared = dataclasses.replace(prepare(config), token_budget=60)
    assert curve(with_checkpointing(config), prepared) == curve(config, prepared)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_adapters_drop_needs_no_generator_s_state(method, monkeypatch):
    real, kept = recompute.checkpoint, set()

    def seen(*inputs, preserve_rng_state, **named):
        kept.add(preserve_rng_state)
        return real(*inputs, preserve_rng_state=preserve_rng_state, **named)

    monkeypatch.setattr(recompute, "checkpoint", seen)
    config = with_checkpointing(a_config(method=method, dropout=0.2))
    Member(config, prepare(config)).advance()
    assert kept == {method == "full"}


def test_frozen_layers_stay_frozen():
    config = a_config(method="full", frozen_layers=2, reports_per_epoch=1)
    assert curve(with_checkpointing(config)) == curve(config)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_less_is_kept_for_the_backward_pass(method):
    """Bytes of distinct tensors that the graph holds after one forward pass, weights apart."""
    config = a_config(method=method, batch_size=32)
    kept = {}
    for name, each in (("usual", config), ("checkpointed", with_checkpointing(config))):
        prepared = prepare(each)
        member = Member(each, prepared)
        batch = list(prepared.train.examples[:32])
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gradients(prepared.loaded, [replace(member.turn(), examples=batch)], 10**6)
        kept[name] = sum(sizes.values())
    assert kept["checkpointed"] < 0.4 * kept["usual"]


def test_blocks_are_their_own_again_after_an_error():
    config = with_checkpointing(a_config())
    prepared = prepare(config)
    model = prepared.loaded.model
    with _activations([config], prepared.loaded, model):
        assert any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ZeroDivisionError), _activations([config], prepared.loaded, model):
        _ = 1 / 0
    assert not any("forward" in vars(module) for module in prepared.loaded.model.modules())


def test_a_checkpoint_made_without_is_gone_on_from_with_it(tmp_path):
    config = a_config(dropout=0.1)
    prepared = prepare(config)
    member = Member(config, prepared)
    for _ in range(4):
        member.advance()
    snapshot.write(member.snapshot(), tmp_path)
    resumed = finetune(with_checkpointing(config), prepared=prepared, checkpoint=tmp_path).reports
    assert [report.validation_loss for report in resumed] == curve(config, prepared)
