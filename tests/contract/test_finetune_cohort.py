"""Members of a cohort: their reports, their company, their failures."""

from __future__ import annotations

import dataclasses
import math
import time
import weakref

import optuna
import pytest
import torch
from finetune_reference import a_config, conversation, write_examples
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hpsearch.errors import Diverged, InvalidDataset, OutOfMemory, TrialFailure
from hpsearch.finetune import Cohort, Failed, Finished, Member, as_failure, finetune, prepare, report_exposures
from hpsearch.finetune import cohort as cohort_module
from hpsearch.finetune import member as member_module
from hpsearch.finetune import step as step_module
from hpsearch.finetune.member import STEPS_BETWEEN_CHECKS
from hpsearch.finetune.replay import Replay
from hpsearch.results import Report
from hpsearch.search.pruners import pruner
from hpsearch.spec.pruner import HyperbandSpec, SuccessiveHalvingSpec


def run(cohort: Cohort) -> dict[str, list]:
    """Tick until nobody is left; the events by key."""
    events: dict[str, list] = {}
    while len(cohort):
        for key, event in cohort.tick():
            events.setdefault(key, []).append(event)
    return events


def losses(events) -> list[float]:
    return [event.validation_loss for event in events if isinstance(event, Report)]


MIXES = {
    "batch_size": [1, 3, 7, 16],
    "dropout": [0.0, 0.3],
    "prompt_loss_weight": [0.0, 0.2, 1.0],
    "learning_rate": [1e-3, 1e-2],
    "weight_decay": [0.0, 0.3],
    "lr_schedule": ["constant", "linear", "cosine"],
    "warmup_fraction": [0.0, 0.4],
    "frozen_layers": [0, 1],
    "epochs": [1, 2],
    "seed": [0, 5],
    "reports_per_epoch": [1, 4],
    "max_grad_norm": [None, 0.5],
    "target_modules": ["all-linear", ["q_proj", "up_proj", "c_attn", "query_key_value"]],
}
a_mix = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in MIXES.items()})


a_guest = st.tuples(a_mix, st.integers(0, 12), st.integers(1, 30), st.sampled_from([1, 4]), st.integers(0, 1))
"""What it trains with, the tick at which it joins, how many it stays at most, its rank, and its study."""


def a_member(architecture: str, prepared, mix, rank: int) -> Member:
    names = {"llama": ["q_proj", "up_proj"], "gemma2": ["q_proj", "up_proj"], "gpt2": ["c_attn"]}
    targets = names.get(architecture, ["query_key_value"])
    mix = mix | ({} if mix["target_modules"] == "all-linear" else {"target_modules": targets})
    config = a_config(architecture, **mix)
    lora = config.model.lora.model_copy(update={"rank": rank})
    return Member(config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})}), prepared)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_company_changes_nothing(architecture):
    """Each member's curve is the one that it has alone, whoever joins and leaves when, from whichever study."""
    studies = [prepare(a_config(architecture, data=kind)) for kind in ("instructed", "prompt_completion")]
    assert studies[0].base is studies[1].base
    worst = 0.0

    @seed(architecture)  # each meets mixes of its own
    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(
        st.lists(a_guest, min_size=2, max_size=12),
        st.sampled_from([10**6, 200]),
    )
    def agrees(mixes, token_budget):
        nonlocal worst
        scarce = [dataclasses.replace(prepared, token_budget=token_budget) for prepared in studies]
        cohort, found, members = Cohort(), {}, {}
        for tick in range(200):
            for number, (mix, joins, stays, rank, study) in enumerate(mixes):
                if tick == joins:
                    members[str(number)] = a_member(architecture, scarce[study], mix, rank)
                    cohort.admit(str(number), members[str(number)])
                if tick == joins + stays and str(number) in cohort:
                    cohort.remove(str(number))
            for key, event in cohort.tick():
                found.setdefault(key, []).append(event)
        assert not len(cohort)
        for key, member in members.items():
            mix, _, _, rank, study = mixes[int(key)]
            alone = a_member(architecture, scarce[study], mix, rank)
            while alone.steps < member.steps:  # no longer than it stayed
                alone.advance()
            events = found[key]
            assert not any(isinstance(event, Failed) for event in events)
            reports = [event for event in events if isinstance(event, Report)]
            for report, expected in zip(reports, alone.reports, strict=True):
                assert (report.exposure, report.tokens) == (expected.exposure, expected.tokens)
                for name in ("validation_loss", "training_loss"):
                    one, two = getattr(report, name), getattr(expected, name)
                    if two is not None:
                        worst = max(worst, abs(one - two) / two)
                        assert one == pytest.approx(two, rel=2e-4)
            assert member.is_done == alone.is_done == isinstance(events[-1], Finished)

    agrees()
    print(f"largest relative deviation of a loss: {worst:.1e}")  # noqa: T201 - shown with pytest -s


@pytest.mark.parametrize("method", ["lora", "full"])
def test_members_that_come_go_and_fail_change_nothing_for_the_others(method):
    config = a_config(method=method, dropout=0.2, epochs=2, reports_per_epoch=2)
    prepared = prepare(config)
    alone = finetune(config, prepared=prepared).reports
    cohort = Cohort()
    cohort.admit("pruned", Member(a_config(method=method, batch_size=7, dropout=0.5), prepared))
    cohort.admit("subject", Member(config, prepared))
    cohort.admit("fails", Member(a_config(method=method, learning_rate=1e30), prepared))
    events = cohort.tick()
    cohort.admit("late", Member(a_config(method=method, prompt_loss_weight=0.5, seed=9), prepared))
    events += cohort.tick()
    cohort.remove("pruned")
    found = [event for key, event in events if key == "subject"] + run(cohort)["subject"]
    reports = [event for event in found if isinstance(event, Report)]
    assert [report.exposure for report in reports] == [report.exposure for report in alone]
    assert losses(reports) == pytest.approx(losses(alone), rel=1e-5)


def test_events_come_in_order_and_the_baseline_first():
    config = a_config(epochs=2, reports_per_epoch=2)
    prepared = prepare(config)
    cohort = Cohort()
    cohort.admit("a", Member(config, prepared))
    events = run(cohort)["a"]
    assert events[0] == prepared.baseline
    assert [event.exposure for event in events[:-1]] == [0, 20, 40, 60, 80]
    assert [event.epoch for event in events[:-1]] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert isinstance(events[-1], Finished)
    assert events[-1].best == min(events[1:-1], key=lambda report: report.validation_loss)
    assert events[-1].member.tokens == events[-2].tokens > 0
    assert events[0].training_loss is None
    assert all(event.training_loss is not None and event.seconds > 0 for event in events[1:-1])


@pytest.mark.parametrize(
    ("batch_size", "exposures"),
    [
        pytest.param(1, [10, 20, 30, 40, 50, 60, 70, 80], id="one-by-one"),
        pytest.param(7, [10, 20, 30, 40, 50, 60, 70, 80], id="batches-that-straddle"),
        pytest.param(16, [10, 30, 40, 50, 70, 80], id="a-step-that-passes-two-points"),
        pytest.param(1000, [40, 80], id="larger-than-the-training-set"),
    ],
)
def test_reports_lie_on_one_grid_whatever_the_batch_size(batch_size, exposures):
    config = a_config(batch_size=batch_size, epochs=2, reports_per_epoch=4)
    reports = finetune(config).reports
    assert [report.exposure for report in reports[1:]] == exposures


def test_the_last_example_gives_the_last_report_of_a_member():
    member = finetune(a_config(batch_size=9, epochs=3, reports_per_epoch=1)).member
    assert member.exposure == 120
    assert member.total_steps == member.steps == 15
    assert member.reports[-1].exposure == 120


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_loss_that_is_not_finite_diverges_and_spares_the_others(method):
    prepared = prepare(a_config(method=method))
    cohort = Cohort()
    cohort.admit("wild", Member(a_config(method=method, learning_rate=1e30), prepared))
    cohort.admit("tame", Member(a_config(method=method), prepared))
    events = run(cohort)
    assert isinstance(events["wild"][-1], Failed)
    assert isinstance(events["wild"][-1].error, Diverged)
    assert all(math.isfinite(loss) for loss in losses(events["wild"]))
    assert isinstance(events["tame"][-1], Finished)


def test_a_divergence_is_noticed_before_the_next_report():
    config = a_config(learning_rate=1e30, reports_per_epoch=1)
    member = Member(config, prepare(config))
    cohort = Cohort()
    cohort.admit("a", member)
    failed = run(cohort)["a"][-1]
    assert isinstance(failed.error, Diverged)
    assert "the training loss is" in str(failed.error)
    assert member.steps < member.total_steps
    assert len(member.reports) == 1


def test_a_loss_that_stays_far_above_the_baseline_diverges_after_three_reports():
    config = a_config(method="full", learning_rate=1.0)
    cohort = Cohort()
    cohort.admit("a", Member(config, prepare(config)))
    *events, failed = run(cohort)["a"]
    assert isinstance(failed.error, Diverged)
    assert "above the baseline in 3 reports in a row" in str(failed.error)
    baseline, *reports = losses(events)
    far = [loss > baseline + 1 for loss in reports]
    assert far[-3:] == [True] * 3
    assert not any(all(far[place : place + 3]) for place in range(len(far) - 3))  # at the first such three


def passes(monkeypatch, module, name: str) -> list[int]:
    """How many members each call of a function was for, as they come."""
    real, seen = getattr(module, name), []

    def counted(*arguments):
        seen.append(len(arguments[1] if name == "gradients" else arguments[0]))
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)
    return seen


def test_members_of_two_studies_are_trained_in_one_pass_and_those_of_one_evaluated_in_one(monkeypatch):
    configs = [a_config(seed=seed, data=kind) for kind in ("chat", "prompt_completion") for seed in (0, 1)]
    studies = [prepared for config in configs[::2] for prepared in [prepare(config)] * 2]
    trained, evaluated = (
        passes(monkeypatch, cohort_module, "gradients"),
        passes(monkeypatch, cohort_module, "evaluated"),
    )
    cohort = Cohort()
    for number, (config, prepared) in enumerate(zip(configs, studies, strict=True)):
        cohort.admit(str(number), Member(config, prepared))
    reports = {key: event for key, event in cohort.tick() if isinstance(event, Report) and event.exposure}
    assert trained == [4]
    assert evaluated == [2, 2]
    for number, (config, prepared) in enumerate(zip(configs, studies, strict=True)):
        member = Member(config, prepared)
        assert reports[str(number)].validation_loss == pytest.approx(member.advance().validation_loss, rel=1e-6)


def test_an_evaluation_that_fails_together_is_made_alone(monkeypatch, caplog):
    prepared = prepare(a_config())
    real = cohort_module.evaluated

    def fragile(members):
        if len(members) > 1 or members[0].config.seed == 1:
            raise RuntimeError("does not fit together")
        return real(members)

    monkeypatch.setattr(cohort_module, "evaluated", fragile)
    cohort = Cohort()
    for number in (0, 1, 2):
        cohort.admit(str(number), Member(a_config(seed=number), prepared))
    events = cohort.tick()
    assert {key for key, event in events if isinstance(event, Failed)} == {"1"}
    assert {key for key, event in events if isinstance(event, Report) and event.exposure} == {"0", "2"}
    assert "each is evaluated alone" in caplog.text


def test_members_that_wait_stand_still():
    config = a_config()
    prepared = prepare(config)
    cohort = Cohort()
    for key in ("a", "b"):
        cohort.admit(key, Member(config, prepared))
    assert [key for key, _ in cohort.tick(waiting={"a"})] == ["b", "b"]  # its baseline and its first report
    assert list(cohort) == ["a", "b"]
    assert cohort.remove("a").steps == 0
    assert cohort.remove("b").steps == 1


def test_weights_that_became_nan_diverge():
    config = a_config()
    member = Member(config, prepare(config))
    with torch.no_grad():
        next(iter(member.weights.named.values())).fill_(math.nan)
    with pytest.raises(Diverged):
        member.advance()


class ScarceMemory:
    """Stands in for the loss, on a device that holds so many tokens at a time."""

    def __init__(self, capacity: int, error: Exception) -> None:
        self.capacity, self.error, self.attempts = capacity, error, 0
        self.real = step_module.weighted_nll

    def __call__(self, model, anatomy, batch, weights):
        self.attempts += 1
        if batch.ids.numel() > self.capacity:
            raise self.error
        return self.real(model, anatomy, batch, weights)


def test_the_micro_batches_of_one_are_another_s_only_while_they_share_a_pass(monkeypatch):
    prepared, seen = prepare(a_config()), []

    def noting(real, place):
        def noted(*arguments):
            seen.append(arguments[place])
            return real(*arguments)

        return noted

    monkeypatch.setattr(cohort_module, "gradients", noting(cohort_module.gradients, 2))
    monkeypatch.setattr(member_module, "evaluate", noting(member_module.evaluate, 3))
    cohort = Cohort()
    for key, budgets in {"a": (1024, 2048), "b": (64, 128)}.items():
        member = Member(a_config(), prepared)
        member.token_budget, member.evaluation_budget = budgets
        cohort.admit(key, member)
    cohort.tick()
    cohort.remove("b")
    cohort.tick()
    assert seen == [64, 128, 1024, 2048]


def test_where_a_pass_of_several_runs_out_of_memory_all_of_them_shrink(monkeypatch):
    prepared, cohort = prepare(a_config()), Cohort()
    for number in range(2):
        cohort.admit(str(number), Member(a_config(batch_size=16), prepared))
    cohort["1"].token_budget = 600
    monkeypatch.setattr(step_module, "weighted_nll", ScarceMemory(100, MemoryError()))
    cohort.tick()
    assert [cohort[key].token_budget for key in cohort] == [75, 75]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_halves_the_micro_batch_and_loses_nothing(monkeypatch, error):
    config = a_config(batch_size=16, learning_rate=1e-3)
    prepared = prepare(config)
    plenty = finetune(config, prepared=prepared).reports
    scarce = ScarceMemory(100, error)
    monkeypatch.setattr(step_module, "weighted_nll", scarce)
    reports = finetune(config, prepared=prepared).reports
    assert scarce.attempts > 3
    assert [report.exposure for report in reports] == [report.exposure for report in plenty]
    assert losses(reports) == pytest.approx(losses(plenty), rel=1e-5)


def test_a_sequence_that_does_not_fit_fails_its_member_only(monkeypatch):
    config = a_config()
    prepared = prepare(config)
    monkeypatch.setattr(step_module, "weighted_nll", ScarceMemory(10, MemoryError()))
    cohort = Cohort()
    cohort.admit("a", Member(config, prepared))
    (_, baseline), (_, failed) = cohort.tick()
    assert baseline == prepared.baseline
    assert isinstance(failed.error, OutOfMemory)
    assert len(cohort) == 0


def test_a_defect_is_a_failure_with_its_text():
    failure = as_failure(ZeroDivisionError("division by zero"))
    assert type(failure) is TrialFailure
    assert failure.code == "error"
    assert "ZeroDivisionError: division by zero" in str(failure)
    assert as_failure(MemoryError()).code == "out_of_memory"


def test_a_key_is_admitted_once():
    config = a_config()
    prepared = prepare(config)
    cohort = Cohort()
    cohort.admit("a", Member(config, prepared))
    assert "a" in cohort
    with pytest.raises(ValueError, match="already"):
        cohort.admit("a", Member(config, prepared))


def test_the_best_report_is_kept_by_the_metric():
    config = a_config(learning_rate=0.1, epochs=3, lr_schedule="constant")
    prepared = prepare(config)
    by_loss = finetune(config, prepared=prepared)
    by_accuracy = finetune(config, prepared=prepared, metric="validation_token_accuracy")
    assert by_loss.best.validation_loss == min(losses(by_loss.reports[1:]))
    best = max(report.validation_token_accuracy for report in by_accuracy.reports[1:])
    assert by_accuracy.best.validation_token_accuracy == best


def test_the_contract_knows_what_is_evaluated_and_not_how_it_is_trained():
    def contract(**changes) -> str:
        return prepare(a_config(**changes)).evaluation_contract

    assert contract() == contract(learning_rate=1.0, prompt_loss_weight=1.0, batch_size=3) == contract(method="full")
    others = {contract(max_length=32), contract(data="prompt_completion"), contract(templated=True)}
    assert len(others | {contract(), prepare(a_config("gpt2")).evaluation_contract}) == 5


def test_validation_ignores_the_prompt_loss_weight_and_the_batch_size():
    prepared = prepare(a_config())
    baselines = {
        finetune(a_config(prompt_loss_weight=weight, batch_size=size), prepared=prepared).reports[0]
        for weight, size in ((0.0, 4), (1.0, 13))
    }
    assert len(baselines) == 1


def test_data_without_any_completion_left_is_refused():
    records = [{"prompt": "long " * 60, "completion": "x"}] * 12
    config = a_config(max_length=16)
    data = config.data.model_copy(update={"train": write_examples("too-long.jsonl", records)})
    with pytest.raises(InvalidDataset, match=r"raise data\.max_length"):
        prepare(config.model_copy(update={"data": data}))


def a_config_that_loses_examples(**changes):
    """Of 17 examples, five lose their whole completion."""
    records = [conversation(number) for number in range(12)]
    lost = {"messages": [{"role": "user", "content": "long " * 200}, {"role": "assistant", "content": "x"}]}
    config = a_config(**changes)
    data = config.data.model_copy(update={"train": write_examples("some-too-long.jsonl", records + [lost] * 5)})
    return config.model_copy(update={"data": data})


def test_examples_whose_completion_is_cut_away_do_not_train():
    config = a_config_that_loses_examples(batch_size=5, epochs=2)
    prepared = prepare(config)
    train = prepared.train
    assert (len(train.examples), train.left_out, train.given) == (12, 5, 17)
    assert finetune(config, prepared=prepared).member.steps == 6


@pytest.mark.parametrize("batch_size", [1, 5, 12, 40])
@pytest.mark.parametrize("reports_per_epoch", [1, 3])
def test_they_count_as_passed_so_that_reports_lie_where_a_search_expects_them(batch_size, reports_per_epoch):
    config = a_config_that_loses_examples(batch_size=batch_size, epochs=2, reports_per_epoch=reports_per_epoch)
    prepared = prepare(config)
    whole = Member(config, prepared)
    while not whole.is_done:
        before = whole.exposure
        whole.advance()
        assert whole.exposure > before
        again = Member(config, prepared)
        again.restore(whole.snapshot())
        assert (again.exposure, again.reports) == (whole.exposure, whole.reports)
    found = {report.exposure: report.epoch for report in whole.reports}
    assert whole.exposure == 34
    assert set(found) - {0} <= set(report_exposures(17, 2, reports_per_epoch))
    assert (found[17], found[34]) == (1.0, 2.0)
    assert batch_size > 1 or len(found) == 1 + 2 * reports_per_epoch


@pytest.mark.parametrize("rule", [SuccessiveHalvingSpec(reduction_factor=2), HyperbandSpec(reduction_factor=2)])
def test_halving_acts_at_the_end_of_an_epoch_although_examples_are_lost(rule):
    prepared = prepare(a_config_that_loses_examples())
    study = optuna.create_study(pruner=pruner(rule, prepared.train.given, reports_per_epoch=2, most_epochs=2))
    stopped_at = set()
    for number in range(8):
        trial, learning_rate = study.ask(), 1e-2 if number < 2 else 1e-6
        config = a_config_that_loses_examples(epochs=2, batch_size=4, learning_rate=learning_rate)
        for report in finetune(config, prepared=prepared).reports:
            trial.report(report.validation_loss, report.exposure)
            if trial.should_prune():
                stopped_at.add(report.epoch)
                break
        state = TrialState.PRUNED if report.epoch < 2 else TrialState.COMPLETE
        study.tell(trial, None if state == TrialState.PRUNED else report.validation_loss, state)
    assert min(stopped_at) == 1.0  # not at half of the second epoch, the next report behind a rung that nobody meets


def test_a_progress_callback_sees_every_report_the_baseline_first():
    seen: list[Report] = []
    outcome = finetune(a_config(reports_per_epoch=2), seen.append)
    assert tuple(seen) == outcome.reports
    assert seen[0].exposure == 0


def test_a_member_that_breaks_the_common_pass_fails_alone(caplog):
    config = a_config()
    prepared = prepare(config)
    alone = finetune(config, prepared=prepared).reports
    cohort = Cohort()
    broken = Member(a_config(seed=3), prepared)
    name, adapter = next(iter(broken.weights.adapters.items()))
    wrong = torch.nn.Parameter(torch.zeros(4, 7))
    broken.weights.adapters[name] = dataclasses.replace(adapter, a=wrong)
    for key, member in (("a", Member(config, prepared)), ("broken", broken), ("b", Member(config, prepared))):
        cohort.admit(key, member)
    events = run(cohort)
    assert isinstance(events["broken"][-1], Failed)
    assert "each is trained alone" in caplog.text
    for key in ("a", "b"):
        assert losses(events[key]) == pytest.approx(losses(alone), rel=1e-5)


class HeldMemory:
    """Stands in for a pass: the first one fails, and those after it see whether what it held is gone."""

    def __init__(self, monkeypatch, name: str) -> None:
        self.real, self.held, self.gone = getattr(cohort_module, name), None, []
        monkeypatch.setattr(cohort_module, name, self)

    def __call__(self, *arguments):
        if self.held is None:
            graph = torch.zeros(3)
            self.held = weakref.ref(graph)
            raise ValueError("no kernel for this")
        self.gone.append(self.held() is None)
        return self.real(*arguments)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["gradients", "evaluated"])
def test_what_a_failed_pass_held_is_gone_before_the_next_begins(method, name, monkeypatch):
    """Adapters are trained again one by one; whole models fail by themselves, and the next one follows."""
    prepared, memory = prepare(a_config(method=method)), HeldMemory(monkeypatch, name)
    cohort = Cohort()
    for key in "ab":
        cohort.admit(key, Member(a_config(method=method), prepared))
    events = cohort.tick()
    assert memory.gone == ([True] * 2 if method == "lora" else [True])
    assert [isinstance(event, Failed) for _, event in events].count(True) == (0 if method == "lora" else 1)


class Queue:
    """Stands in for a GPU, which is given a pass at once and takes its time."""

    def __init__(self, monkeypatch, seconds: float) -> None:
        self.left, self.waited = 0.0, 0
        real, loss = cohort_module.gradients, Member._training_loss

        def give(loaded, *arguments):
            self.left += seconds
            return real(dataclasses.replace(loaded, device=torch.device("cpu")), *arguments)

        def read(member):
            self.wait()
            return loss(member)

        monkeypatch.setattr(cohort_module, "gradients", give)
        monkeypatch.setattr(Member, "_training_loss", read)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: self.wait())

    def wait(self) -> None:
        self.waited += self.left > 0
        time.sleep(self.left)
        self.left = 0.0


@pytest.mark.parametrize(("method", "waits"), [("lora", 1), ("full", 32)])
def test_no_member_books_what_a_gpu_computes_for_the_others(method, waits, monkeypatch):
    """Adapters in one pass keep it busy without waiting for it; whole models take turns."""
    config = a_config(method=method, batch_size=1, reports_per_epoch=1)
    prepared, cohort = prepare(config), Cohort()
    for key in "ab":
        cohort.admit(key, Member(config, prepared))
        loaded = dataclasses.replace(prepared.loaded, device=torch.device("cuda:0"))
        cohort[key].prepared = dataclasses.replace(prepared, loaded=loaded)
    queue = Queue(monkeypatch, seconds=0.03)
    for _ in range(STEPS_BETWEEN_CHECKS):
        cohort.tick()
    one, two = cohort["a"].seconds, cohort["b"].seconds
    assert one == pytest.approx(two, rel=0.3)
    assert queue.waited == waits


class TestReplay:
    def test_first_steps_alone_are_those_in_company(self):
        prepared = prepare(a_config())
        cohort = Cohort()
        for number in range(4):
            config = a_config(seed=number, batch_size=3 + number, dropout=0.2, reports_per_epoch=1)
            cohort.admit(str(number), Member(config, prepared), prove=number == 1)
        events = run(cohort)
        (replay,) = [event for event in events["1"] if isinstance(event, Replay)]
        assert (replay.steps, replay.company) == (8, 4)
        assert replay.deviation < 1e-5
        assert not any(isinstance(event, Replay) for key in "023" for event in events[key])

    def test_a_curve_that_is_not_its_own_shows(self, monkeypatch):
        """Weights that somebody else has touched."""
        prepared = prepare(a_config())
        cohort = Cohort()
        member = Member(a_config(learning_rate=0.1, reports_per_epoch=1), prepared)
        cohort.admit("a", member, prove=True)
        cohort.tick()
        with torch.no_grad():
            for parameter in member.weights.named.values():
                parameter.add_(0.1)
        (replay,) = [event for event in run(cohort)["a"] if isinstance(event, Replay)]
        assert replay.deviation > 1e-3

    def test_a_member_that_leaves_or_ends_early_is_no_trouble(self):
        prepared = prepare(a_config())
        cohort = Cohort()
        cohort.admit("leaves", Member(a_config(), prepared), prove=True)
        cohort.admit("short", Member(a_config(batch_size=20), prepared), prove=True)
        cohort.tick()
        cohort.remove("leaves")
        (replay,) = [event for event in run(cohort)["short"] if isinstance(event, Replay)]
        assert (replay.steps, replay.company) == (2, 2)
