"""Packed rows give what their sequences give alone, and the fused products what autograd makes of the plain ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from finetune_reference import a_config, tiny_model, write_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.errors import InvalidSpec
from hpsearch.finetune import finetune, prepare, products
from hpsearch.finetune import loss as loss_module
from hpsearch.finetune.lora import _ANCHOR, _Adapted, adapt
from hpsearch.finetune.loss import _HeadNLL
from hpsearch.finetune.model import examine, hidden_states
from hpsearch.finetune.packing import Group, packed, positions
from hpsearch.finetune.products import Applied

PACKING = ["llama", "llama-untied", "qwen2", "mistral", "gemma", "granite", "gpt_neox", "gpt2", "opt"]


def load(architecture: str):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("architecture", [*PACKING, "gemma2"])
def test_which_models_pack(architecture):
    """Gemma 2 caps its attention scores, which PyTorch's attention can't."""
    assert examine(load(architecture)).packs == (architecture in PACKING)


def gradients(model) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("architecture", PACKING)
def test_packed_sequences_see_what_they_begin_with_and_not_each_other(architecture):
    model = load(architecture)

    own = st.lists(st.sampled_from([0, 1, 2, 5, 5, 9, 20]), min_size=1, max_size=4)

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, 30]), own), min_size=1, max_size=3), st.integers(0, 99))
    def agrees(given_groups, seed):
        generator = torch.Generator().manual_seed(seed)
        longest = 8 if architecture == "mistral" else 99  # its sliding window
        groups, sequences, tokens = [], [], 0
        for given_shared, given_own in given_groups:
            shared = min(given_shared, longest)
            own = [min(length, longest - shared) if shared else max(1, min(length, longest)) for length in given_own]
            groups.append(Group(shared, tuple(own)))
            beginning, tokens = list(range(tokens, tokens + shared)), tokens + shared
            for length in own:
                sequences.append([*beginning, *range(tokens, tokens + length)])
                tokens += length
        ids = torch.randint(5, 300, (1, tokens), generator=generator)
        weights = [torch.randn(len(places), 32, generator=generator) for places in sequences]
        with packed(model, groups):
            row = hidden_states(model, ids, positions(groups))
        together = [row[0, places] for places in sequences]
        sum((one * two).sum() for one, two in zip(together, weights, strict=True)).backward()
        packed_gradients = gradients(model)
        alone = [hidden_states(model, ids[:, places])[0] for places in sequences]
        sum((one * two).sum() for one, two in zip(alone, weights, strict=True)).backward()
        for one, two in zip(together, alone, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        for one, two in zip(packed_gradients, gradients(model), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max() + 1))

    agrees()


def test_attention_is_the_models_own_again_afterwards():
    model = load("llama")
    for groups in ((Group(0, (3, 2)),), ()):
        with pytest.raises(ZeroDivisionError), packed(model, groups):
            _ = 1 / 0
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["mistral", "phimoe"])
def test_beyond_the_sliding_window_nothing_is_packed(architecture):
    """PhiMoE knows its window in the mask only, which a packed row does without."""
    assert examine(load(architecture)).packs
    for max_length in (8, 9):
        config = a_config(architecture, max_length=max_length, data="prompt_completion")
        short = {"train": write_examples("short.jsonl", [{"prompt": "a", "completion": f"b{n}"} for n in range(12)])}
        config = config.model_copy(update={"data": config.data.model_copy(update=short | {"validation": None})})
        assert prepare(config).loaded.anatomy.packs == (max_length == 8)


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_positions_that_depend_on_company_are_refused(rope):
    """Beyond the original length they are scaled by the longest sequence of a pass: company would change losses."""
    scaled = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 20}
    if rope == "longrope":
        scaled |= {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
    folder = Path(tiny_model("llama")).parent / rope
    shutil.copytree(tiny_model("llama"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": scaled}
    (folder / "config.json").write_text(json.dumps(config))
    prepare(a_config(base=str(folder), max_length=20))
    with pytest.raises(InvalidSpec, match=r"set data\.max_length to at most 20"):
        prepare(a_config(base=str(folder), max_length=21))


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def an_adapter(rank: int, inputs: int, outputs: int, dtype=torch.float64) -> tuple[torch.nn.Parameter, ...]:
    """A and B, which add up their gradients."""
    adapter = tuple(torch.nn.Parameter(doubles(*shape).to(dtype)) for shape in ((rank, inputs), (outputs, rank)))
    for each in adapter:
        each.grad = torch.zeros_like(each)
    return adapter


def gradients_of(inputs, outputs, grown, adapters) -> list[torch.Tensor]:
    """Of the inputs and of all A and B, for a gradient of the outputs."""
    for each in (inputs, *adapters):
        each.grad = torch.zeros_like(each)
    outputs().backward(grown)
    return [each.grad.clone() for each in (inputs, *adapters)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_are_those_of_one_member_after_another(dtype):
    """As on a GPU: rows, ranks and scales of their own, and gradients that add up."""
    inputs, grown = doubles(30, 16).to(dtype), doubles(30, 24).to(dtype)
    sizes = [(0, 7), (7, 8), (8, 21), (21, 30)]
    ways = []
    for add, add_gradients in (
        (products._add_looped, products._looped_gradients),
        (products._add_grouped, products._grouped_gradients),
    ):
        adapters = [an_adapter(rank, 16, 24, torch.float32) for rank in (2, 8, 3, 8)]
        parts = [
            Applied(a, b, start, end, scale)
            for (a, b), (start, end), scale in zip(adapters, sizes, (2.0, 0.5, 1.0, 2.0), strict=True)
        ]
        outputs, of_inputs = torch.ones(30, 24, dtype=dtype), torch.ones(30, 16, dtype=dtype)
        with torch.no_grad():
            known = add(outputs, inputs, parts)
            for _ in range(2):
                add_gradients(of_inputs, grown, inputs, parts, known)
        ways.append([outputs, of_inputs, *(each.grad for pair in adapters for each in pair)])
    for one, two in zip(*ways, strict=True):
        assert one.dtype == two.dtype
        error = (one.float() - two.float()).norm() / two.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02)


def test_adapters_of_an_aligned_rank_are_not_copied_to_align_them(monkeypatch):
    monkeypatch.setattr(products.F, "pad", None)
    adapters = [an_adapter(8, 16, 24, torch.float32) for _ in range(2)]
    parts = [Applied(a, b, 4 * place, 4 * place + 4, 1.0) for place, (a, b) in enumerate(adapters)]
    with torch.no_grad():
        _, a, _ = products._add_grouped(torch.zeros(8, 24), doubles(8, 16).float(), parts)
    assert a.shape == (2, 8, 16)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is asked of a layer's input on a GPU."""

    count: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0")

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, 64

    def __len__(self) -> int:
        return self.count

    def is_contiguous(self) -> bool:
        return True


def parts_of(count: int, members: int) -> list[Applied]:
    """So many rows, shared as evenly as they can be."""
    ends = [count * place // members for place in range(members + 1)]
    return [Applied(*an_adapter(8, 64, 64), start, end, 1.0) for start, end in pairwise(ends)]


@pytest.mark.parametrize(
    ("capability", "dtype", "hip", "has_them"),
    [
        ((9, 0), torch.bfloat16, None, True),
        ((10, 0), torch.bfloat16, None, True),
        ((8, 0), torch.bfloat16, None, False),
        ((12, 0), torch.bfloat16, None, False),
        ((9, 0), torch.float32, None, False),
        ((9, 4), torch.bfloat16, "6.4", False),
    ],
)
def test_products_are_grouped_where_a_gpu_has_kernels_for_that(capability, dtype, hip, has_them, monkeypatch):
    """Elsewhere PyTorch waits for the GPU in each of them, which trying them out on an idle one would not show."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(products, "_grouped_is_quicker", lambda *_: True)
    products._has_kernels.cache_clear()
    assert products._is_grouped(Rows(200, dtype=dtype), 64, parts_of(200, 3)) == has_them
    products._has_kernels.cache_clear()


def test_no_more_is_tried_out_than_is_there(monkeypatch):
    seen = []
    monkeypatch.setattr(products, "_has_kernels", lambda *_: True)
    monkeypatch.setattr(products, "_grouped_is_quicker", lambda *key: seen.append(key[-2:]))
    for count, members in ((200, 2), (1023, 7), (1024, 8), (1025, 9)):
        products._is_grouped(Rows(count), 64, parts_of(count, members))
        tried, rows = seen[-1]
        assert 2 <= tried <= members < 2 * tried
        assert count / 4 < tried * rows <= count


def test_where_there_is_no_room_to_try_it_is_tried_again_later(monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    key = torch.device("cpu"), torch.float32, 64, 64, 8, 2, 4
    products._grouped_is_quicker.cache_clear()
    monkeypatch.setattr(products, "_seconds", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        products._grouped_is_quicker(*key)
    times = iter([1.0, 2.0])
    monkeypatch.setattr(products, "_seconds", lambda *_: next(times))
    assert products._grouped_is_quicker(*key)
    products._grouped_is_quicker.cache_clear()
    monkeypatch.setattr(products, "_has_kernels", lambda *_: True)
    monkeypatch.setattr(products, "_grouped_is_quicker", no_room)
    assert not products._is_grouped(Rows(200), 64, parts_of(200, 3))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
def test_adapted_rows_have_the_outputs_and_gradients_of_their_formula(biased, dropped):
    """Three members and two rows that are nobody's, against the formula, differentiated by autograd."""
    inputs, weight = doubles(9, 5).requires_grad_(), doubles(4, 5)
    bias = doubles(4) if biased else None
    adapters = [an_adapter(rank, 5, 4) for rank in (1, 2, 3)]
    kept = (doubles(9, 5, seed=3) > 0).to(torch.uint8) if dropped else None
    rows = [(0, 2, 0.5), (2, 6, 2.0), (6, 7, 1.0)]
    parts = [Applied(a, b, *row) for (a, b), row in zip(adapters, rows, strict=True)]

    def formula():
        outputs = [F.linear(inputs, weight, bias)[7:]]
        for (a, b), (start, end, scale) in reversed(list(zip(adapters, rows, strict=True))):
            own = inputs[start:end]
            adapted = own if kept is None else own * kept[start:end]
            outputs.insert(0, F.linear(own, weight, bias) + scale * (adapted @ a.t()) @ b.t())
        return torch.cat(outputs)

    def ours():
        return _Adapted.apply(inputs, weight, bias, parts, kept, _ANCHOR)

    torch.testing.assert_close(ours(), formula())
    flat, grown = [each for pair in adapters for each in pair], doubles(9, 4)
    for one, two in zip(
        gradients_of(inputs, ours, grown, flat), gradients_of(inputs, formula, grown, flat), strict=True
    ):
        torch.testing.assert_close(one, two)
    lowest = inputs.detach()  # nothing below it is trained: its adapters are, all the same
    before = flat[0].grad.clone()
    _Adapted.apply(lowest, weight, bias, parts, kept, _ANCHOR).backward(grown)
    torch.testing.assert_close(flat[0].grad, 2 * before)  # gradients add up over micro-batches


@pytest.mark.parametrize("dropped", [True, False])
def test_an_adapted_bfloat16_layer_computes_as_autocast_does(dropped):
    """As on a GPU: the frozen weight in bfloat16, the adapters in float32, the backward pass outside of autocast."""
    weight, grown = doubles(24, 32).bfloat16(), doubles(16, 24).bfloat16()
    kept = (doubles(16, 32, seed=9) > 0).to(torch.uint8) if dropped else None
    results = []
    for fused in (True, False):
        a, b = an_adapter(4, 32, 24, torch.float32)
        own = doubles(16, 32).bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if fused:
                outputs = _Adapted.apply(own, weight, None, [Applied(a, b, 0, 16, 2.0)], kept, _ANCHOR)
            else:
                adapted = own if kept is None else own * kept
                outputs = torch.addmm(F.linear(own, weight), F.linear(adapted, a), b.t(), alpha=2.0)
        outputs.backward(grown)
        results.append((outputs, own.grad, a.grad, b.grad))
    for one, two in zip(*results, strict=True):
        assert one.dtype == two.dtype
        error = (one.float() - two.float()).norm() / two.float().norm()
        assert error < 0.01


def test_a_layer_kept_in_float32_adapts_under_autocast_too():
    a, b = an_adapter(4, 32, 24, torch.float32)
    part = Applied(a, b, 0, 16, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = _Adapted.apply(doubles(16, 32).bfloat16(), doubles(24, 32).float(), None, [part], None, _ANCHOR)
    outputs.sum().backward()
    assert outputs.dtype == torch.float32


def test_linear_layers_that_compute_something_else_are_left_alone():
    class Doubled(torch.nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    model = load("llama")
    model.model.layers[0].mlp.up_proj = Doubled(32, 64, bias=False)
    adapted = adapt(model, examine(model))
    assert len(adapted) == 3 * 7 - 1
    assert "model.layers.0.mlp.up_proj" not in adapted


def test_nothing_stays_with_a_base_whose_members_are_gone():
    config = a_config(dropout=0.2)
    prepared = prepare(config)
    finetune(config, prepared=prepared)
    assert not any(layer.active for layer in prepared.base.layers.values())
    assert prepared.loaded.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("largest", [2**27, 30])
def test_the_head_has_the_gradient_that_cross_entropy_has(biased, largest, monkeypatch):
    monkeypatch.setattr(loss_module, "LARGEST_LOGITS", largest)  # 30: three rows at a time
    states, weight = doubles(8, 5).requires_grad_(), doubles(10, 5).requires_grad_()
    bias = doubles(10).requires_grad_() if biased else None
    targets, weights = torch.arange(8) % 3 + 4, doubles(8).abs()
    assert torch.autograd.gradcheck(lambda *given: _HeadNLL.apply(*given)[0], (states, weight, bias, targets, weights))
    expected = F.cross_entropy(F.linear(states, weight, bias), targets, reduction="none")
    total, nll = _HeadNLL.apply(states, weight, bias, targets, weights)
    torch.testing.assert_close(nll, expected)
    assert not nll.requires_grad
    assert total.item() == pytest.approx((expected * weights).sum().item())


def test_a_frozen_head_gets_no_gradient():
    states, weight = doubles(8, 5).requires_grad_(), doubles(10, 5)
    _HeadNLL.apply(states, weight, None, torch.zeros(8, dtype=torch.int64), doubles(8))[0].backward()
    assert weight.grad is None
    assert states.grad is not None


def test_a_head_in_bfloat16_computes_as_autocast_does():
    targets, weights = torch.arange(64) % 50, torch.ones(64)
    results = []
    for fused in (True, False):
        states = doubles(64, 32).bfloat16().requires_grad_()
        weight = (doubles(50, 32) / 8).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if fused:
                total, _ = _HeadNLL.apply(states, weight, None, targets, weights)
            else:
                total = (F.cross_entropy(F.linear(states, weight).float(), targets, reduction="none") * weights).sum()
        total.backward()
        results.append((total, states.grad, weight.grad))
    for one, two in zip(*results, strict=True):
        assert one.dtype == two.dtype
        assert (one.float() - two.float()).norm() / two.float().norm() < 0.01


def test_extreme_logits_stay_finite():
    states = torch.full((2, 4), 1e4, requires_grad=True)
    weight = torch.stack([torch.full((4,), 1.0), torch.full((4,), -1.0), torch.zeros(4)])
    total, _ = _HeadNLL.apply(states, weight, None, torch.tensor([0, 1]), torch.ones(2))
    total.backward()
    assert total.item() == pytest.approx(8e4)
    assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packing_is_what_a_cpu_does(method):
    assert prepare(a_config(method=method)).loaded.anatomy.packs
