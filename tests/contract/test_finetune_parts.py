"""The parts of a fine-tune: batches, loss, schedule, optimizer, adapters, dropout."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace

import pytest
import torch
import transformers
from finetune_reference import a_config, reference_loss, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InvalidSpec
from hpsearch.finetune import Member, finetune, prepare, report_exposures
from hpsearch.finetune import dropout as dropout_module
from hpsearch.finetune import loss as loss_module
from hpsearch.finetune.batches import Layout, Share, _padded_cuts, micro_batches
from hpsearch.finetune.dropout import Dropout, set_dropout
from hpsearch.finetune.evaluate import Reader, evaluate
from hpsearch.finetune.loss import total_weight, weighted_nll
from hpsearch.finetune.member import evaluated
from hpsearch.finetune.model import examine, hidden_states
from hpsearch.finetune.order import epoch_order, optimizer_batch, steps_per_epoch
from hpsearch.finetune.prepare import prepared_key
from hpsearch.finetune.schedule import learning_rate_factor, warmup_steps
from hpsearch.finetune.step import gradients as step_gradients

CPU = torch.device("cpu")


def load(architecture: str):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32)
    return model.eval()


def gradients(config, prepared, budget) -> tuple[float, list[torch.Tensor]]:
    member = Member(config, prepared)
    turn = replace(member.turn(), examples=list(prepared.train.examples[:9]))
    (nll,) = step_gradients(prepared.loaded, [turn], budget)
    return float(nll) / turn.weight, [parameter.grad for parameter in member.weights.named.values()]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 3), st.integers(0, 9))
def test_every_epoch_sees_every_example_once_in_an_order_that_no_batch_size_changes(count, batch_size, epochs, seed):
    steps = steps_per_epoch(count, batch_size)
    batches = [optimizer_batch(seed, step, count, batch_size) for step in range(steps * epochs)]
    for epoch in range(epochs):
        own = batches[epoch * steps : (epoch + 1) * steps]
        assert [len(batch) for batch in own[:-1]] == [batch_size] * (steps - 1)
        assert list(itertools.chain(*own)) == list(epoch_order(seed, epoch, count))
        assert sorted(itertools.chain(*own)) == list(range(count))


def test_the_order_depends_on_seed_and_epoch():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 300))
def test_padded_micro_batches_keep_to_the_budget_and_lose_nothing(lengths, budget):
    lengths.sort(reverse=True)
    cuts = list(_padded_cuts(lengths, budget))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == len(lengths)
    for start, end in cuts:
        assert end - start == 1 or lengths[start] * (end - start) <= budget


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.3])
@pytest.mark.parametrize("data", ["chat", "instructed"])
def test_any_micro_batching_gives_the_gradient_of_the_whole_batch(method, prompt_loss_weight, data):
    config = a_config(method=method, prompt_loss_weight=prompt_loss_weight, data=data)
    prepared = prepare(config)
    whole, expected = gradients(config, prepared, 10**6)
    for budget in (1, 64, 200):
        loss, parts = gradients(config, prepared, budget)
        assert loss == pytest.approx(whole, rel=1e-6)
        for part, gradient in zip(parts, expected, strict=True):
            torch.testing.assert_close(part, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma", "gemma2", "opt"])
def test_right_padding_without_a_mask_changes_nothing(architecture):
    model = load(architecture)
    ids = torch.randint(5, 200, (2, 20), generator=torch.Generator().manual_seed(1))
    alone = hidden_states(model, ids[:1, :12])
    ids[0, 12:] = 0
    torch.testing.assert_close(hidden_states(model, ids)[:1, :12], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "splits", "packs"),
    [
        *[(name, True, True) for name in ("llama", "gpt2", "gpt_neox", "gemma", "opt")],
        *[(name, True, False) for name in ("llama", "gpt2", "gpt_neox", "gemma", "opt")],
        *[("granite", False, packs) for packs in (True, False)],
        ("gemma2", False, False),
    ],
)
def test_loss_and_evaluation_agree_with_the_full_logits(architecture, splits, packs):
    model = load(architecture)
    anatomy = examine(model)
    assert anatomy.splits is splits
    assert anatomy.packs or not packs
    anatomy = dataclasses.replace(anatomy, packs=packs)
    prepared = prepare(a_config(architecture))
    examples = prepared.train.examples[:5]
    tokens = [(example.ids.tolist(), example.completion.tolist()) for example in examples]
    (batch,) = micro_batches([Share(examples, prompts=True)], 10**6, Layout(packs, CPU))
    weights = torch.where(batch.completion, 1.0, 0.3) / total_weight(examples, 0.3)
    with torch.no_grad():
        loss, _ = weighted_nll(model, anatomy, batch, weights)
        assert float(loss) == pytest.approx(float(reference_loss(model, tokens, 0.3)), rel=1e-5)
        (found,) = evaluate(Reader(model), anatomy, examples, 100)
        assert found.loss == pytest.approx(float(reference_loss(model, tokens, 0.0)), rel=1e-5)
        prompts = [(ids, [not mark for mark in marks]) for ids, marks in tokens]
        assert found.prompt_loss == pytest.approx(float(reference_loss(model, prompts, 0.0)), rel=1e-5)
    count = sum(example.completion_tokens for example in examples)
    text_bytes = sum(example.completion_bytes for example in examples)
    assert found.bits_per_byte == pytest.approx(found.loss * count / math.log(2) / text_bytes)


def test_a_large_vocabulary_in_chunks_gives_the_same_gradient(monkeypatch):
    config = a_config(method="full", prompt_loss_weight=0.5)
    prepared = prepare(config)
    whole, expected = gradients(config, prepared, 10**6)
    monkeypatch.setattr(loss_module, "LARGEST_LOGITS", 10_000)
    loss, chunked = gradients(config, prepared, 10**6)
    assert loss == pytest.approx(whole, rel=1e-6)
    for part, gradient in zip(chunked, expected, strict=True):
        torch.testing.assert_close(part, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("total", "fraction"), [(1, 0.9), (10, 0.0), (37, 0.1), (100, 0.5)])
def test_schedules_are_those_of_transformers(schedule, total, fraction):
    warmup = warmup_steps(total, fraction)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total),
    }[schedule]()
    for step in range(total):
        assert learning_rate_factor(schedule, step, total, warmup) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_single_step_is_never_all_warm_up():
    assert warmup_steps(1, 0.9) == 0


def rates(config) -> dict[str, tuple[float, float]]:
    """Name to (peak rate, weight decay) of everything that is trained."""
    return Member(config, prepare(config))._optimizer.settings


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_weight_decay_spares_norms_and_biases(architecture):
    for name, (_, decay) in rates(a_config(architecture, "full", weight_decay=0.1)).items():
        spared = name.endswith("bias") or "norm" in name or ".ln_" in name
        assert decay == (0.0 if spared else 0.1), name


def test_weight_decay_reaches_both_matrices_of_an_adapter():
    assert {decay for _, decay in rates(a_config(weight_decay=0.1)).values()} == {0.1}


def test_rates_fall_by_depth():
    by_name = rates(a_config("llama-untied", "full", layer_lr_decay=0.5, learning_rate=1.0))
    peaks = {name: peak for name, (peak, _) in by_name.items()}
    assert peaks["lm_head.weight"] == peaks["model.norm.weight"] == 1.0
    assert peaks["model.layers.2.mlp.up_proj.weight"] == 1.0
    assert peaks["model.layers.0.mlp.up_proj.weight"] == 0.25
    assert peaks["model.embed_tokens.weight"] == 0.125
    adapters = rates(a_config(layer_lr_decay=0.5, learning_rate=1.0))
    assert adapters["model.layers.1.self_attn.q_proj.lora_A.weight"][0] == 0.5


@pytest.mark.parametrize("architecture", ["llama", "llama-untied", "gpt2", "gpt_neox", "opt"])
def test_frozen_layers_have_neither_gradients_nor_optimizer_state(architecture):
    config = a_config(architecture, "full", frozen_layers=2)
    prepared = prepare(config)
    member = Member(config, prepared)
    before = {name: tensor.clone() for name, tensor in prepared.loaded.model.state_dict().items()}
    member.advance()
    trained = set(member.weights.named)
    blocks = prepared.loaded.anatomy.blocks
    assert any(name.startswith(f"{blocks}.2.") for name in trained)
    assert not any(name.startswith((f"{blocks}.0.", f"{blocks}.1.")) for name in trained)
    assert not any("embed_" in name or "wte" in name or "wpe" in name for name in trained - {"embed_out.weight"})
    assert {name.partition(".")[2] for name in member._optimizer.state()} == trained
    for name, parameter in member.weights.model.named_parameters():
        if name not in trained:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def test_frozen_layers_get_no_adapters():
    config = a_config(frozen_layers=2)
    names = Member(config, prepare(config)).weights.named
    assert {name.split(".")[2] for name in names} == {"2"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_freezing_every_layer_is_refused(method):
    config = a_config(method=method, frozen_layers=3)
    with pytest.raises(InvalidSpec, match="has 3 blocks") as caught:
        Member(config, prepare(config))
    assert caught.value.field == "search_space.frozen_layers"


def test_an_unknown_target_names_the_layers_there_are():
    config = a_config(target_modules=("q_proj", "query"))
    with pytest.raises(InvalidSpec, match="'query'; the model's are: down_proj, gate_proj, k_proj") as caught:
        Member(config, prepare(config))
    assert caught.value.field == "model.lora.target_modules"


def test_targets_that_are_all_frozen_are_refused():
    config = a_config(target_modules=("layers.0.self_attn.q_proj",), frozen_layers=1)
    with pytest.raises(InvalidSpec, match="frozen"):
        Member(config, prepare(config))


def test_fresh_adapters_change_nothing_and_are_the_same_for_every_trial_of_a_seed():
    config, other = a_config(), a_config(frozen_layers=1, learning_rate=1e-4, dropout=0.5)
    prepared = prepare(config)
    member = Member(config, prepared)
    (found,) = evaluated([member])
    assert found.loss == prepared.baseline.validation_loss
    named = member.weights.named
    for name, parameter in Member(other, prepared).weights.named.items():
        assert torch.equal(parameter, named[name])
    reseeded = Member(a_config(seed=1), prepared).weights.named
    assert not torch.equal(next(iter(reseeded.values())), next(iter(named.values())))
    for name, parameter in named.items():
        if "lora_A" in name:  # kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan in)
            bound = parameter.shape[1] ** -0.5
            assert 0.8 * bound < float(parameter.detach().abs().max()) <= bound


@pytest.mark.parametrize(("architecture", "method"), [("llama", "lora"), ("llama", "full"), ("gpt2", "full")])
def test_dropout_changes_training_but_not_evaluation(architecture, method):
    without, dropped = a_config(architecture, method), a_config(architecture, method, dropout=0.5)
    prepared = prepare(without)
    runs = [finetune(config, prepared=prepared).reports for config in (without, dropped, dropped)]
    assert runs[0][0] == runs[1][0]
    assert runs[0][-1].validation_loss != runs[1][-1].validation_loss
    assert [report.validation_loss for report in runs[1]] == [report.validation_loss for report in runs[2]]


def kept(rate: float = 0.5, seed: int = 1, layer: int = 2, tokens: int = 64, width: int = 64) -> torch.Tensor:
    dropout = Dropout.of([(rate, seed, torch.arange(tokens))])
    assert dropout is not None
    return dropout.kept(layer, width)


def test_what_is_dropped_depends_on_seed_layer_token_and_channel_alone():
    assert torch.equal(kept(), kept())
    company = [(0.9, 4, torch.arange(5)), (0.5, 1, torch.tensor([7, 3])), (0.0, 1, torch.arange(5))]
    beside = Dropout.of(company).kept(2, 64)
    assert torch.equal(beside[5:7], kept()[[7, 3]])  # whatever stands beside it
    assert beside[7:].all()  # nothing of a member that drops nothing
    assert Dropout.of([(0.0, 1, torch.arange(5))]) is None
    for other in (kept(seed=3), kept(layer=5), kept().roll(1, 0), kept().roll(1, 1)):
        agreement = float((other == kept()).float().mean())
        assert agreement == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("drawn", [1, 200, 1000, 10**9])
def test_what_is_dropped_does_not_depend_on_how_much_is_drawn_at_a_time(drawn, monkeypatch):
    expected = kept(tokens=70)[:64]
    monkeypatch.setattr("hpsearch.finetune.dropout._drawn_at_a_time", lambda _device: drawn)
    assert torch.equal(kept(), expected)


@pytest.mark.parametrize(("device", "pieces"), [("cpu", 4), ("meta", 1)])
def test_a_gpu_draws_for_many_tokens_at_a_time_and_a_core_for_few(device, pieces, monkeypatch):
    real, drawn = dropout_module._drawn, []

    def seen(numbers):
        drawn.append(len(numbers))
        return real(numbers)

    monkeypatch.setattr(dropout_module, "_drawn", seen)
    dropout = Dropout.of([(0.5, 1, torch.arange(4096, device=device))])
    assert dropout is not None
    assert dropout.kept(2, 4096).shape == (4096, 4096)
    assert drawn == [4096 // pieces] * pieces


def test_no_two_tokens_or_channels_are_dropped_alike():
    """Largest correlation of any two of a thousand, over a thousand draws: of independent ones, 5 to 6 deviations."""
    mask = (kept(0.3, seed=11, layer=10**15, tokens=1024, width=1024).double() - 0.7) / (0.3 * 0.7) ** 0.5
    for each in (mask, mask.t()):
        correlations = (each @ each.t() / 1024**0.5).fill_diagonal_(0)
        assert float(correlations.abs().max()) < 6.5


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_dropout_keeps_the_mean_in_every_token_and_channel(rate):
    mask = kept(rate, seed=5, tokens=400, width=400) / (1 - rate)
    spread = (rate / (1 - rate) / 400) ** 0.5  # of a mean of 400
    for means in (mask.mean(0), mask.mean(1)):
        assert float((means - 1).abs().max()) < 5 * spread
        assert float(means.std()) == pytest.approx(spread, rel=0.25)
    assert float(mask.mean()) == pytest.approx(1, abs=5 * spread / 20)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt"])
def test_every_dropout_of_an_architecture_is_set(architecture):
    model = load(architecture)
    set_dropout(model, 0.25)
    found = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    found += [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name in ("attention_dropout", "dropout") and isinstance(value, float)
    ]
    assert found
    assert set(found) == {0.25}


def test_training_leaves_the_global_generator_alone():
    prepared = prepare(a_config("gpt2", "full"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(a_config("gpt2", "full", dropout=0.3), prepared=prepared)
    assert torch.equal(torch.rand(3), expected)


def test_micro_batches_do_not_change_a_run():
    config = a_config(prompt_loss_weight=0.1)
    prepared = prepare(config)
    one, two = (
        finetune(config, prepared=dataclasses.replace(prepared, token_budget=budget)).reports for budget in (1, 10**6)
    )
    for left, right in zip(one, two, strict=True):
        assert left.validation_loss == pytest.approx(right.validation_loss, rel=1e-4)


@given(st.integers(1, 500), st.integers(1, 4), st.integers(1, 20))
def test_report_exposures_are_the_same_grid_for_any_number_of_epochs(examples, epochs, reports_per_epoch):
    points = report_exposures(examples, epochs, reports_per_epoch)
    assert points == report_exposures(examples, epochs + 1, reports_per_epoch)[: len(points)]
    assert points[-1] == examples * epochs
    assert points[0] >= 1
    assert len(points) == epochs * min(reports_per_epoch, examples)


def test_the_key_of_what_is_shared_ignores_hyperparameters_and_knows_the_data():
    config = a_config()
    same = a_config(learning_rate=1.0, batch_size=2, seed=7, epochs=9)
    assert prepared_key(config) == prepared_key(same)
    assert prepared_key(config) != prepared_key(a_config(max_length=64))
    assert prepared_key(config) != prepared_key(a_config(data="prompt_completion"))
    assert prepared_key(config) != prepared_key(a_config(method="full"))
    assert prepared_key(config) != prepared_key(a_config("gpt2"))
