"""What a fine-tune does on a GPU, as far as a machine without one can show it.

Two halves. On the CPU, really computed: a frozen base in bfloat16, trained weights in float32, products under bfloat16
autocast and padded rows, all as on a GPU, against float32 and packed rows. It shows precisions that don't mix, and
losses and gradients that bfloat16 alone does not explain. And on PyTorch's fake tensors, on a device that is not the
CPU: without numbers, but a tensor that was left on the CPU fails there, and so does what would wait for the device.

Neither shows a kernel: what CUDA's compute, how fast, in which order on streams, in which memory, and how they fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import traceback
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetune_reference import a_config, tiny_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hpsearch.basemodel import describe
from hpsearch.errors import TrialFailure, UnsupportedModel
from hpsearch.finetune import Member, Prepared, company, finetune, memory, prepare, products, step
from hpsearch.finetune import evaluate as evaluate_module
from hpsearch.finetune import loss as loss_module
from hpsearch.finetune import precision as precision_module
from hpsearch.finetune.lora import adapt
from hpsearch.finetune.member import evaluated
from hpsearch.finetune.model import examine, load_model
from hpsearch.finetune.prepare import Base
from hpsearch.finetune.step import gradients, in_less_memory
from hpsearch.spec.finetune import FinetuneConfig, ModelSpec

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "gemma", "gemma2", "opt"]


def a_company(architecture: str, method: str) -> list[FinetuneConfig]:
    """Configs for one pass: adapters of two ranks, of which one drops out; or one whole model."""
    first = a_config(architecture, method, prompt_loss_weight=0.1, reports_per_epoch=1)
    if method == "full":
        return [first]
    second = a_config(architecture, seed=7, dropout=0.2, reports_per_epoch=1)
    narrow = second.model.lora.model_copy(update={"rank": 3})
    return [first, second.model_copy(update={"model": second.model.model_copy(update={"lora": narrow})})]


def read_by(model: Any, prepared: Prepared, config: FinetuneConfig) -> Prepared:
    """The same data, in padded rows, on the device and in the precision of another model."""
    model.eval().requires_grad_(requires_grad=False)
    anatomy = dataclasses.replace(prepared.loaded.anatomy, packs=False)
    loaded = dataclasses.replace(prepared.loaded, model=model, anatomy=anatomy, device=model.device)
    base = Base(loaded, adapt(model, anatomy) if config.model.method == "lora" else {})
    return dataclasses.replace(prepared, base=base, loaded=loaded)


def precision_of(config: FinetuneConfig) -> torch.dtype:
    return torch.bfloat16 if config.model.method == "lora" else torch.float32


# -- computed in bfloat16, on the CPU ----------------------------------------------------------------------------------


def in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step, evaluate_module):
        monkeypatch.setattr(module, "precision", lambda _device: torch.autocast("cpu", dtype=torch.bfloat16))


def as_on_a_gpu(config: FinetuneConfig) -> Prepared:
    prepared = prepare(config)
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.base, dtype=precision_of(config))
    assert examine(model.eval()).splits == prepared.loaded.anatomy.splits
    return read_by(model, prepared, config)


def first_step(prepared: Prepared, configs: list[FinetuneConfig]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, gradients and validation losses of fresh members whose adapters change something."""
    members = [Member(config, prepared) for config in configs]
    for name, parameter in [pair for member in members for pair in member.weights.named.items()]:
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    nll = gradients(prepared.loaded, [member.turn() for member in members], 150)
    found = [parameter.grad for member in members for parameter in member.weights.named.values()]
    assert {gradient.dtype for gradient in found} == {torch.float32}
    losses = [evaluation.loss for evaluation in evaluated(members)]
    return nll, torch.cat([gradient.flatten() for gradient in found]), torch.tensor(losses)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_in_padded_rows_is_float32_in_packed_ones_but_for_its_precision(architecture, method, monkeypatch):
    configs = a_company(architecture, method)
    exact = first_step(prepare(configs[0]), configs)
    in_bfloat16(monkeypatch)
    rounded = first_step(as_on_a_gpu(configs[0]), configs)
    limits = (0.003, 0.06, 0.001)  # the largest seen: 0.0008, 0.043, 0.0004
    for one, two, limit in zip(rounded, exact, limits, strict=True):
        assert (one - two).norm() / two.norm() < limit


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tune_in_bfloat16_ends_where_one_in_float32_does(method, monkeypatch):
    config = a_config(method=method, reports_per_epoch=1, dropout=0.1 if method == "lora" else 0.0)
    exact = finetune(config)
    in_bfloat16(monkeypatch)
    rounded = finetune(config, prepared=as_on_a_gpu(config))
    assert rounded.best.validation_loss == pytest.approx(exact.best.validation_loss, rel=0.01)
    assert rounded.best.validation_loss < 0.9 * exact.reports[0].validation_loss


def test_autocast_s_copies_of_the_weights_are_not_kept_for_each_token(monkeypatch):
    in_bfloat16(monkeypatch)
    kept = []
    for batch_size in (1, 16):
        config = a_config(method="full", batch_size=batch_size)
        memory._measured.clear()
        kept.append(memory.kept_bytes_per_token(Member(config, prepare(config))))
    assert kept[0] == pytest.approx(kept[1], rel=0.05)


def added_up_in_float32(head: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """What CUDA's product of bfloat16 matrices with a result in float32 is; a CPU has none."""
    with torch.autocast("cpu", enabled=False):
        logits = states.bfloat16().float() @ head.weight.bfloat16().float().t()
        return logits if head.bias is None else logits + head.bias.float()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_wide_logits_take_the_rounding_out_of_an_evaluation(architecture, monkeypatch):
    """With a head a hundred times as large, as trained ones are beside these, bfloat16 rounds logits to quarters."""
    config = a_config(architecture)
    prepared = prepare(config)
    in_bfloat16(monkeypatch)
    monkeypatch.setattr(loss_module, "wide_logits", added_up_in_float32)
    found = {}
    for widens in (False, True):
        there = as_on_a_gpu(config)
        anatomy = dataclasses.replace(there.loaded.anatomy, widens=widens)
        head = there.loaded.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach() * 100, requires_grad=False)
        examples = there.validation.examples
        (one,) = evaluate_module.evaluate(evaluate_module.Reader(there.loaded.model), anatomy, examples, 300)
        with monkeypatch.context() as exactly:
            exactly.setattr(head, "forward", lambda states, head=head: added_up_in_float32(head, states))
            usual = dataclasses.replace(anatomy, widens=False)
            (exact,) = evaluate_module.evaluate(evaluate_module.Reader(there.loaded.model), usual, examples, 300)
        found[widens] = abs(one.loss - exact.loss)
    assert prepared.loaded.anatomy.widens is False, "float32 needs nothing of the kind"
    assert found[True] == 0.0 < found[False]


def test_wide_logits_are_used_where_they_were_seen_to_work(monkeypatch):
    head, states = torch.nn.Linear(16, 40, dtype=torch.bfloat16), torch.randn(8, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(precision_module, "computes_in", lambda _device: torch.bfloat16)
    assert not precision_module.has_wide_logits(head, states), "a CPU has no such product"
    monkeypatch.setattr(precision_module, "wide_logits", added_up_in_float32)
    assert precision_module.has_wide_logits(head, states)
    monkeypatch.setattr(precision_module, "wide_logits", lambda head, states: added_up_in_float32(head, states) + 1)
    assert not precision_module.has_wide_logits(head, states), "and a wrong one is not used"

    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(precision_module, "wide_logits", no_room)
    with pytest.raises(torch.OutOfMemoryError):  # it works on the next device: values would differ within a study
        precision_module.has_wide_logits(head, states)


def test_values_of_other_precisions_are_never_ranked_together(monkeypatch):
    contracts = {prepare(a_config(method=method)).evaluation_contract for method in ("lora", "full")}
    assert len(contracts) == 1
    in_bfloat16(monkeypatch)
    module = import_module("hpsearch.finetune.prepare")
    monkeypatch.setattr(module, "computes_in", lambda _device: torch.bfloat16)
    lora, full = (as_on_a_gpu(a_config(method=method)).loaded for method in ("lora", "full"))
    assert module._precision(lora) == "bfloat16, weights in bfloat16, logits in bfloat16"
    assert module._precision(full) == "bfloat16, weights in float32, logits in bfloat16"


@pytest.mark.parametrize(
    ("major", "hip", "dtype"), [(7, None, "float32"), (8, None, "bfloat16"), (9, "6.4", "bfloat16")]
)
def test_a_gpu_without_bfloat16_computes_in_float32(major, hip, dtype, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
    properties = types.SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    precision_module.computes_in.cache_clear()
    assert precision_module.computes_in(torch.device("cuda:0")) is getattr(torch, dtype)
    assert precision_module.computes_in(torch.device("cpu")) is torch.float32
    precision_module.computes_in.cache_clear()


# -- without numbers, on another device --------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Stands in for a GPU among fake tensors: PyTorch's builds for CPUs know no backward pass on "cuda"."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none on this device
    monkeypatch.setattr(
        import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices", lambda: ["meta"]
    )
    return torch.device("meta")


@contextlib.contextmanager
def members_on(device: torch.device, configs: list[FinetuneConfig]) -> Iterator[list[Member]]:
    """Members on fake tensors there; all that is made inside is fake, too."""
    prepared = prepare(configs[0])
    shape = transformers.AutoConfig.from_pretrained(configs[0].model.base)
    for config in configs:
        Member(config, prepared).turn()  # the order of the examples is drawn once, in numbers
    with FakeTensorMode(allow_non_fake_inputs=True):  # as fakes on the CPU: not where they would have to be
        with device:
            model = transformers.AutoModelForCausalLM.from_config(shape, dtype=precision_of(configs[0]))
        there = read_by(model, prepared, configs[0])
        yield [Member(config, there) for config in configs]


def step_of(members: list[Member]) -> None:
    turns = [member.turn() for member in members]
    nll = gradients(members[0].prepared.loaded, turns, 100)
    for member, turn, own in zip(members, turns, nll, strict=True):
        assert member.update(turn, own, seconds=0.0) is None


@pytest.mark.parametrize(("method", "grouped"), [("lora", False), ("lora", True), ("full", False)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_step_stays_on_the_device_and_waits_for_nothing(architecture, method, grouped, elsewhere, monkeypatch):
    """Grouped products also check there, as CUDA's do, that what they read is aligned and in bfloat16."""
    monkeypatch.setattr(products, "_is_grouped", lambda *_: grouped)
    with members_on(elsewhere, a_company(architecture, method)) as members:
        step_of(members)
        for member in members:
            everything = [*member.weights.named.values(), *member._optimizer.state().values(), member._nll]
            assert {each.device for each in everything} == {elsewhere}
            assert {each.grad.device for each in member.weights.named.values()} == {elsewhere}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_padded_rows_are_read_by_causal_attention_without_a_mask(architecture, elsewhere, monkeypatch):
    """To make a mask, or to find that none is needed, waits for the GPU in each pass; no fast kernel takes one."""
    seen, real = set(), torch.nn.functional.scaled_dot_product_attention

    def attention(*tensors: Any, attn_mask: Any = None, is_causal: bool = False, **options: Any) -> Any:
        if tensors[0].device == elsewhere:
            seen.add((attn_mask is None, is_causal))
        return real(*tensors, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with members_on(elsewhere, a_company(architecture, "lora")) as members:
        step_of(members)
    assert seen == {(True, True)}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_evaluation_waits_for_the_device_once_when_all_is_summed_up(method, elsewhere):
    with members_on(elsewhere, a_company("llama", method)) as members:
        with pytest.raises(DataDependentOutputException) as caught:
            evaluated(members)
        own = [frame for frame in traceback.extract_tb(caught.tb) if "hpsearch" in frame.filename]
        assert "sums.tolist()" in (own[-1].line or "")


def test_a_tensor_that_was_left_on_the_cpu_is_found(elsewhere, monkeypatch):
    real = step._weights
    monkeypatch.setattr(step, "_weights", lambda *given: [torch.ones(len(each)) for each in real(*given)])
    with (
        members_on(elsewhere, a_company("llama", "lora")) as members,
        pytest.raises(RuntimeError, match="same device"),
    ):
        step_of(members)


# -- what goes wrong there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the documentation",
        "HIP error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1154, please report a bug.',
    ],
)
def test_libraries_that_take_memory_beside_pytorch_run_out_of_it_too(text, monkeypatch):
    def compute(budget: int) -> str:
        if budget > 100:
            raise RuntimeError(text)
        return "done"

    assert in_less_memory(compute, 400) == ("done", 100)

    def no_member(*_: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(company, "Member", no_member)
    assert company.measure(prepare(a_config()), a_config(), 4).reason.startswith("1 do not fit")


def test_an_illegal_access_is_no_lack_of_memory():
    def compute(_budget: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        in_less_memory(compute, 400)


def test_a_baseline_that_does_not_fit_is_read_in_smaller_micro_batches(monkeypatch):
    """As many tokens as a large GPU reads at once are too many for a small one."""
    plenty, module = prepare(a_config()), import_module("hpsearch.finetune.prepare")
    real = module.evaluate

    def scarce(reader: Any, anatomy: Any, examples: Any, budget: int, goes_on: Any) -> Any:
        if budget > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return real(reader, anatomy, examples, budget, goes_on)

    monkeypatch.setattr(module, "evaluate", scarce)
    prepared = prepare(a_config())
    assert prepared.evaluation_budget == 256
    assert prepared.baseline.validation_loss == pytest.approx(plenty.baseline.validation_loss, rel=1e-6)


def test_a_token_without_an_embedding_is_named_before_a_gpu_reads_it(tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["museum"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match="'museum' is number 400, and the model has 400 embeddings") as caught:
        prepare(a_config(base=str(folder)))
    assert caught.value.field == "model.base"


@pytest.mark.parametrize(
    ("built", "text"), [(None, "is a build for CPUs"), ("13.0", "is built for 13.0: is the GPU's driver too old")]
)
def test_a_gpu_that_pytorch_can_not_use_is_said_so(built, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(TrialFailure, match=text):
        load_model(ModelSpec(base=tiny_model()), torch.device("cuda:0"))


def test_a_gpu_that_pytorch_has_no_kernels_for_is_named(monkeypatch):
    def no_kernels(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(torch, "zeros", no_kernels)
    with pytest.raises(TrialFailure, match="has no kernels for Tesla V100-SXM2-16GB: it may be too old"):
        load_model(ModelSpec(base=tiny_model()), torch.device("cuda:0"))


def on_cuda(prepared: Prepared) -> Prepared:
    """As it would be there, for what is reckoned and not computed."""
    return dataclasses.replace(prepared, loaded=dataclasses.replace(prepared.loaded, device=torch.device("cuda:0")))


def gpu_that_computes_in(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "computes_in", lambda _device: dtype)


@pytest.mark.parametrize(("dtype", "copied"), [(torch.bfloat16, 2), (torch.float32, 0)])
def test_a_whole_model_on_a_gpu_has_room_for_autocast_s_copies_too(dtype, copied, monkeypatch):
    config = a_config(method="full")
    prepared = prepare(config)
    parameters = sum(each.numel() for each in prepared.loaded.model.parameters())
    gpu_that_computes_in(dtype, monkeypatch)
    here, there = memory.loading_bytes(config, "cuda:0"), memory.member_bytes(config, on_cuda(prepared))
    assert here == (20 + copied) * describe(config.model.base).parameters
    assert there == (16 + copied) * parameters


@pytest.mark.parametrize("free", [16.5, 20, 40])
def test_a_whole_model_s_micro_batches_fill_what_is_left_beside_all_that_it_holds(free, monkeypatch):
    """On small cards, too: 16.5 bytes a parameter are free once its 4 are there, and it takes 14 of them."""
    config = a_config(method="full")
    member = Member(config, prepare(config))
    kept, parameters = memory.kept_bytes_per_token(member), sum(each.numel() for each in member.weights.named.values())
    gpu_that_computes_in(torch.bfloat16, monkeypatch)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: int(free * parameters))
    member.prepared, member.token_budget = on_cuda(member.prepared), 10**9
    memory.limit_tokens(member, share=1.0)
    left = (free - 14) * parameters
    assert member.token_budget == pytest.approx((1 - memory.HEAD_ROOM) * left / kept, abs=1)
