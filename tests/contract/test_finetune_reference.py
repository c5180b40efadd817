"""Our fine-tune and one written with plain transformers and PEFT give the same curves."""

from __future__ import annotations

import functools

import pytest
from finetune_reference import a_config, reference_run, tiny_model

from hpsearch.finetune import Member, finetune, prepare
from hpsearch.finetune.order import epoch_order
from hpsearch.finetune.prefixes import alike
from hpsearch.spec.finetune import FinetuneConfig

TOLERANCE = 1e-4


def assert_same_curves(config: FinetuneConfig) -> None:
    prepared = prepare(config)
    untrained = Member(config, prepared)
    initial = {name: tensor.detach().clone() for name, tensor in untrained.weights.named.items()}
    order = functools.partial(epoch_order, config.seed, count=len(prepared.train.examples))
    expected = reference_run(config, order, initial if config.model.method == "lora" else {})
    reports = finetune(config, prepared=prepared).reports[1:]
    assert len(expected) == len(reports)
    for step, (report, (training_loss, validation_loss)) in enumerate(zip(reports, expected, strict=True)):
        assert report.training_loss == pytest.approx(training_loss, rel=TOLERANCE), step
        assert report.validation_loss == pytest.approx(validation_loss, rel=TOLERANCE), step
    assert reports[-1].validation_loss < 0.97 * prepared.baseline.validation_loss  # it did learn


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.3])
def test_fifty_steps_agree_with_the_reference(method, prompt_loss_weight):
    assert_same_curves(
        a_config(method=method, epochs=5, prompt_loss_weight=prompt_loss_weight, weight_decay=0.1, warmup_fraction=0.1)
    )


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_architectures_agree_with_the_reference(architecture, method):
    # AdamW turns a gradient that is nothing but rounding into a full step (GPT-2's key biases have no effect at
    # all), so only short runs are comparable to the last digits.
    assert_same_curves(a_config(architecture, method, epochs=1, lr_schedule="cosine", prompt_loss_weight=0.01))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"templated": True}, id="chat-template"),
        pytest.param({"data": "prompt_completion"}, id="prompt-and-completion"),
        pytest.param({"lr_schedule": "constant", "warmup_fraction": 0.25, "max_grad_norm": None}, id="no-clipping"),
        pytest.param({"batch_size": 7, "reports_per_epoch": 6}, id="a-partial-last-batch"),
        pytest.param({"target_modules": ("q_proj", "v_proj")}, id="some-targets"),
    ],
)
def test_variants_agree_with_the_reference(changes):
    # With 40 examples in batches of 7, six report points are not one per step: compare the last figures only.
    config = a_config(**changes)
    if changes.get("batch_size") == 7:
        prepared = prepare(config)
        initial = {name: tensor.detach().clone() for name, tensor in Member(config, prepared).weights.named.items()}
        order = functools.partial(epoch_order, config.seed, count=len(prepared.train.examples))
        expected = reference_run(config, order, initial)
        assert finetune(config, prepared=prepared).reports[-1].validation_loss == pytest.approx(
            expected[-1][1], rel=TOLERANCE
        )
        return
    assert_same_curves(config)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.3])
def test_reading_shared_beginnings_once_agrees_with_the_reference(method, prompt_loss_weight):
    config = a_config(method=method, data="instructed", batch_size=8, prompt_loss_weight=prompt_loss_weight)
    for split in (prepare(config).train, prepare(config).validation):
        assert len([each for each in alike(split.examples) if each.shared]) == 2
    assert_same_curves(config)


def test_the_tiny_models_are_not_trivial():
    assert prepare(a_config(base=tiny_model())).baseline.validation_loss > 3
