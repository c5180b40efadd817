"""Studies driven on a real Ray cluster with the bundled model, a few dozen examples each."""

import contextlib
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from peft import PeftModel
from ray.exceptions import RayActorError
from transformers import AutoModelForCausalLM

from hpsearch.basemodel import describe
from hpsearch.dataset.load import load
from hpsearch.errors import LeaseLost, WorkerLost
from hpsearch.lifecycle import Orders, Wish, WishKind
from hpsearch.raytune import placement
from hpsearch.raytune.address import devices_of
from hpsearch.raytune.driver import drive
from hpsearch.raytune.health import Aside, Health
from hpsearch.raytune.place import Place
from hpsearch.raytune.stopping import ShouldStop, Stop
from hpsearch.results import Failure, TrialState
from hpsearch.search import Lineage, Search
from hpsearch.spec import StudySpec
from hpsearch.spec.budget import BudgetSpec
from hpsearch.spec.defaults import default_params
from hpsearch.storage import optuna_storage

STUDIES = Path(__file__).parents[2] / "studies"
MODEL = STUDIES / "models/pydoc-llama"

pytestmark = pytest.mark.usefixtures("ray_address")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    files = {}
    for split, count in (("train", 40), ("validation", 10)):
        lines = (STUDIES / f"data/tickets/{split}.jsonl").read_text().splitlines()[:count]
        path = tmp_path / f"{split}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        files[split] = str(path)
    return files


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna_storage(f"sqlite:///{tmp_path}/study.db")


def spec_of(data: dict[str, Any], name: str, **changes: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": name,
            "model": {"base": str(MODEL), "base_learning_rate": 4e-3},
            "data": data,
            "search_space": {
                "epochs": 2,
                "batch_size": 8,
                "learning_rate_multiplier": {"low": 0.3, "high": 3, "log": True},
                "dropout": {"low": 0.0, "high": 0.2},
            },
            "pruner": {"type": "none"},
            "budget": {"trials": 3},
            **changes,
        }
    )


class Study:
    """A search with everything that driving it needs."""

    def __init__(self, spec: StudySpec, storage: Any, folder: Path, **options: Any) -> None:
        self.model, self.folder = describe(spec.model.base), folder
        self.examples = len(load(spec.data).train)
        self.events: list[tuple[str, dict[str, Any]]] = []
        options = {"event": lambda kind, details: self.events.append((kind, details)), **options}
        params = default_params(spec, self.examples)
        self.search = Search(spec, storage, examples=self.examples, default_params=params, **options)

    def drive(self, should_stop: ShouldStop = lambda: None, **options: Any) -> None:
        drive(self.search, self.model, self.examples, Place(self.folder / "artifacts", **options), should_stop)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def test_a_study_ends_with_values_curves_configs_and_adapters(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    lineage = Lineage("llama", "lora", "train", "validation")
    study = Study(spec_of(data, "whole"), storage, tmp_path, lineage=lineage)
    study.drive()
    trials = study.search.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert study.search.ending()[0]
    for trial in trials:
        assert [report.exposure for report in trial.reports] == [0, 20, 40, 60, 80]
        assert trial.value == min(report.validation_loss for report in trial.reports[1:])
        assert trial.config is not None
        assert trial.config["hyperparameters"]["dropout"] == trial.params["dropout"]
        assert trial.adapter is not None
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), trial.adapter)
    assert len({trial.evaluation_contract for trial in trials}) == 1
    assert trials[0].origin == "defaults"
    assert trials[0].value < trials[0].reports[0].validation_loss - 0.5
    again = Study(spec_of(data, "again", budget={"trials": 1}), storage, tmp_path / "again", lineage=lineage)
    again.drive()
    known = again.search.trials()
    assert [trial.reused_from for trial in known] == [{"study": "whole", "number": number} for number in (0, 1)]
    assert [(trial.state, trial.value, trial.reports) for trial in known] == [
        (trial.state, trial.value, trial.reports) for trial in trials[:2]
    ]
    for one, other in zip(trials, known, strict=False):
        weights = [Path(str(trial.adapter)) / "adapter_model.safetensors" for trial in (one, other)]
        assert weights[0] != weights[1]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_trials_that_share_a_device_have_the_curves_that_they_have_alone(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    """Eight trials, four at a time in one pass: each is trained again by itself, from its stored config.

    The service's own proof of it, by the first steps of six of them, is kept on those.
    """
    from hpsearch.finetune import finetune, prepare
    from hpsearch.spec.finetune import FinetuneConfig

    spec = spec_of(
        data,
        "shared",
        search_space={
            "epochs": 1,
            "batch_size": {"choices": [1, 2, 4]},
            "learning_rate_multiplier": {"low": 0.3, "high": 3, "log": True},
            "prompt_loss_weight": {"low": 0.0, "high": 0.5},
            "dropout": {"low": 0.0, "high": 0.2},
        },
        budget={"trials": 8},
        parallelism={"trials_per_device": 4, "max_concurrent_trials": 4},
        verify=6,
    )
    study = Study(spec, storage, tmp_path)
    study.drive()
    trials = study.search.trials()
    replays = [trial.replay for trial in trials if trial.replay is not None]
    assert replays == [trial.replay for trial in trials[:6]]
    assert max(replay["company"] for replay in replays) > 1  # on a busy machine not all of them begin beside another
    assert all(replay["steps"] == 8 and replay["deviation"] < 1e-5 for replay in replays)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    prepared = None
    for trial in trials:
        config = FinetuneConfig.model_validate(trial.config)
        prepared = prepared or prepare(config)
        alone = finetune(config, prepared=prepared).reports
        assert [report.exposure for report in trial.reports] == [report.exposure for report in alone]
        losses = [report.validation_loss for report in trial.reports]
        assert losses == pytest.approx([report.validation_loss for report in alone], rel=1e-4)


def test_a_pruned_trial_goes_on_as_if_it_had_never_stopped(data: dict[str, str], storage: Any, tmp_path: Path) -> None:
    """One from its snapshot, which is the curve of an undisturbed trial; one whose snapshot is gone from its start."""
    from hpsearch.finetune import finetune
    from hpsearch.spec.finetune import FinetuneConfig

    stopped = spec_of(data, "on", pruner={"type": "threshold", "worst": 0.01, "min_reports": 1}, budget={"trials": 2})
    study = Study(stopped, storage, tmp_path)
    study.drive(parked=1)
    trials = study.search.trials()
    assert [(trial.state, len(trial.reports)) for trial in trials] == [(TrialState.PRUNED, 2)] * 2
    kept = [int(path.name) for path in (tmp_path / "artifacts/progress").iterdir()]
    assert kept == [min(trials, key=lambda trial: trial.reports[-1].validation_loss).number]

    wishes = tuple(Wish(number + 1, WishKind.CONTINUE, "alice", number=number) for number in (0, 1))
    more = stopped.model_copy(update={"budget": BudgetSpec(trials=4)})
    again = Study(stopped, storage, tmp_path, orders=lambda: Orders(1, None, more, wishes))
    again.drive(parked=1)
    trials = again.search.trials()
    assert [trial.state for trial in trials] == [TrialState.PRUNED] * 2 + [TrialState.COMPLETE] * 2, "none has failed"
    [whole] = [trial for trial in trials if trial.continues == kept[0]]
    [anew] = [trial for trial in trials if trial.continues == 1 - kept[0]]
    for trial in (whole, anew):
        alone = finetune(FinetuneConfig.model_validate(trial.config)).reports
        assert [report.tokens for report in trial.reports] == [report.tokens for report in alone]
        losses = [report.validation_loss for report in trial.reports]
        assert losses == pytest.approx([report.validation_loss for report in alone], rel=1e-6)
    assert whole.reports[:2] == trials[kept[0]].reports
    assert whole.tokens < anew.tokens == anew.reports[-1].tokens
    assert whole.value == min(report.validation_loss for report in whole.reports[1:])
    assert (Path(str(whole.adapter)) / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "artifacts/progress").exists()


def test_how_many_trials_share_a_device_is_measured_and_said(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    spec = spec_of(
        data,
        "measured",
        search_space={"epochs": 1, "batch_size": 1, "learning_rate_multiplier": {"low": 0.3, "high": 3, "log": True}},
        sampler={"type": "random"},
        budget={"trials": 4},
    )
    study = Study(spec, storage, tmp_path)
    study.drive()
    (placed,) = [details for kind, details in study.events if kind == "study.parallelism"]
    assert placed["trials_per_device"] in (1, 2)
    assert "tokens per second at batch size 1, by trials on the device: 1: " in placed["reason"]
    assert [trial.state for trial in study.search.trials()] == [TrialState.COMPLETE] * 4

    again = Study(spec, storage, tmp_path)  # as the runner that takes it over does
    again.drive()
    assert "study.parallelism" not in again.kinds()


def test_a_pruned_trial_is_pruned_in_sql_and_keeps_its_last_report(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    spec = spec_of(
        data,
        "pruned",
        search_space={
            "epochs": 3,
            "batch_size": 8,
            "learning_rate_multiplier": {"choices": [1.0, 1e-6]},
        },
        first_trials=[{"learning_rate_multiplier": 1.0}, {"learning_rate_multiplier": 1e-6}],
        pruner={"type": "percentile", "startup_trials": 1, "min_reports": 1, "percentile": 50},
        budget={"trials": 2},
        parallelism={"max_concurrent_trials": 1},
    )
    study = Study(spec, storage, tmp_path)
    study.drive()
    good, bad = study.search.trials()
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert bad.value is None
    assert bad.adapter is None
    assert [report.exposure for report in bad.reports] == [0, 20]


def test_a_budget_that_ends_before_any_trial_leaves_the_best_weights_so_far(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    space = {**_long_space(), "epochs": 100}
    study = Study(spec_of(data, "short", search_space=space, budget={"tokens": 1000}), storage, tmp_path)
    study.drive()
    assert study.search.ending() == (True, "the budget of 1,000 training tokens was used")
    complete = [trial for trial in study.search.trials() if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert trial.cut_short
        assert trial.reports[-1].epoch < 10
        assert trial.value == min(report.validation_loss for report in trial.reports[1:])
        assert trial.adapter is not None
        assert (Path(trial.adapter) / "adapter_model.safetensors").is_file()


def test_a_diverging_trial_fails_as_such_and_the_study_goes_on(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    spec = spec_of(
        data,
        "diverged",
        model={"base": str(MODEL), "base_learning_rate": 1.0, "method": "full", "max_grad_norm": None},
        search_space={"epochs": 2, "batch_size": 8, "learning_rate_multiplier": {"choices": [1e6, 1e-3]}},
        first_trials=[{"learning_rate_multiplier": 1e6}, {"learning_rate_multiplier": 1e-3}],
        budget={"trials": 2},
    )
    study = Study(spec, storage, tmp_path)
    study.drive()
    by_rate = {trial.params["learning_rate_multiplier"]: trial for trial in study.search.trials()}
    assert by_rate[1e6].state == TrialState.FAIL
    assert by_rate[1e6].failure == Failure.DIVERGED
    assert "not finite" in str(by_rate[1e6].failure_text) or "loss is" in str(by_rate[1e6].failure_text)
    assert by_rate[1e-3].state == TrialState.COMPLETE
    failed = by_rate[1e6]
    wanted = {"study": "diverged", "trial": failed.number, "attempt": 1, "device": failed.device, "failure": "diverged"}
    lines = [line for line in _lines_of_devices() if line.get("study") == "diverged" and "failure" in line]
    assert [{name: line[name] for name in wanted} for line in lines] == [wanted]


def _lines_of_devices() -> list[dict[str, Any]]:
    """What the devices have logged, from where Ray keeps it."""
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    texts = [path.read_text(errors="replace") for path in logs.glob("worker-*.err")]
    lines = [line for text in texts for line in text.splitlines() if line.startswith('{"at"')]
    return [json.loads(line) for line in lines]


def test_measuring_ends_when_the_node_of_the_driver_died(monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    def never_answers(*_: object) -> None:
        time.sleep(600)

    monkeypatch.setattr(placement, "_measure", never_answers)
    monkeypatch.setattr(placement, "own_node_died", lambda: WorkerLost("the node died"))
    group = ray.util.placement_group([{"CPU": 1}])
    try:
        with pytest.raises(WorkerLost, match="the node died"):
            placement._measured_in(group, "CPU", ("{}", None, 60.0, 2), lambda: None)
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.timeout(900)  # several deaths of a device, each of which starts torch again
def test_trials_go_on_exactly_whatever_happens_to_their_device(
    data: dict[str, str], storage: Any, tmp_path: Path, hang_file: Path
) -> None:
    """Two trials in a cohort: their device is killed, told to end, stopped and hangs, then their driver stops in order.

    Each goes on under its own number, with the curve that it has alone and undisturbed.
    """
    spec = spec_of(
        data,
        "faults",
        search_space={**_long_space(), "epochs": 100, "dropout": 0.2},
        objective={"reports_per_epoch": 4},
        budget={"trials": 2},
        parallelism={"trials_per_device": 2, "max_concurrent_trials": 2},
    )
    events = []
    faults: list[Fault]
    for faults in ([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, hang_file], []):
        study = Study(spec, storage, tmp_path)
        events.append(study.events)
        injecting = threading.Thread(target=_inject, args=(study, faults))
        injecting.start()
        # Longer than a busy machine is silent by itself: each device that is killed for it counts against the trials.
        study.drive(_in_order_after(injecting), silent_seconds=8, stalled_seconds=8)
        assert [trial.state for trial in study.search.trials()] == [TrialState.WAITING] * 2
        assert _trials_on_devices() == []
        assert sorted(path.name for path in (tmp_path / "artifacts" / "progress").iterdir()) == ["0", "1"]
    of_trials = [(kind, details) for kind, details in itertools.chain(*events) if "number" in details]
    told = [(kind, details["number"], details.get("exposure")) for kind, details in of_trials]
    interrupted = [number for kind, number, _ in told if kind == "trial.interrupted"]
    assert sorted(interrupted[:2]) == [0, 1], "one device had both"
    # By each fault at least one more, and one by each orderly end: the other one may wait then while this one is alone.
    assert len(interrupted) >= 2 + 1 + 1 + 1 + 1 + 1
    texts = [details["text"] for kind, details in itertools.chain(*events) if kind == "trial.interrupted"]
    assert any(text.startswith("the device made no progress for") for text in texts)
    reports = [each for each in told if each[0] == "trial.reported"]
    assert len(set(reports)) == len(reports)
    for trial in study.search.trials():
        assert trial.attempts == interrupted.count(trial.number)
        check_equals_undisturbed(trial)


def _in_order_after(thread: threading.Thread) -> ShouldStop:
    return lambda: None if thread.is_alive() else Stop.IN_ORDER


class FarEnoughError(Exception):
    pass


def check_equals_undisturbed(trial: Any) -> None:
    from hpsearch.finetune import finetune
    from hpsearch.spec.finetune import FinetuneConfig

    alone: list[Any] = []

    def until_as_far(report: Any) -> None:
        alone.append(report)
        if len(alone) == len(trial.reports):
            raise FarEnoughError

    with pytest.raises(FarEnoughError):
        finetune(FinetuneConfig.model_validate(trial.config), until_as_far)
    assert [report.exposure for report in trial.reports] == [report.exposure for report in alone]
    losses = [report.validation_loss for report in trial.reports]
    assert losses == pytest.approx([report.validation_loss for report in alone], rel=1e-4)
    assert [report.tokens for report in trial.reports] == [report.tokens for report in alone]


def _long_space() -> dict[str, Any]:
    return {"batch_size": 4, "learning_rate_multiplier": {"low": 0.1, "high": 1.0}}


Fault = signal.Signals | Path
"""A signal to a device, or a file that makes its training thread hang."""


def _inject(study: Study, faults: list[Fault]) -> None:
    """Each into a device that trains, when both trials have got further."""
    for fault in faults:
        _wait_for_reports(study)
        if isinstance(fault, Path):
            fault.touch()
        else:
            os.kill(_busy_device(), fault)
    _wait_for_reports(study)


def _wait_for_reports(study: Study) -> None:
    """Until both trials have reported again, more than the baseline."""
    since, deadline = len(study.events), time.monotonic() + 120
    while time.monotonic() < deadline:
        told = [details for kind, details in study.events[since:] if kind == "trial.reported"]
        if {details["number"] for details in told if details["exposure"]} == {0, 1}:
            return
        time.sleep(0.05)
    raise AssertionError("the trials don't go on")


def _busy_device() -> int:
    """The process that trains something."""
    for device in _devices():
        with contextlib.suppress(RayActorError):  # it ends just now
            if ray.get(device.trials.remote()):
                return int(ray.get(device.pid.remote()))
    raise AssertionError("no device trains anything")


def _devices() -> list[Any]:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return [ray.get_actor(name, namespace="hpsearch") for name in names if "-cpu-" in name]


def test_a_stopped_study_stops_at_the_next_reports_and_leaves_nothing_running(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    stop = threading.Event()

    def event(kind: str, _: dict[str, Any]) -> None:
        if kind == "trial.reported":
            stop.set()

    study = Study(
        spec_of(data, "stopped", search_space={**_long_space(), "epochs": 500}), storage, tmp_path, event=event
    )
    study.drive(lambda: Stop.NOW if stop.is_set() else None)
    trials = study.search.trials()
    assert sum(len(trial.reports) for trial in trials) < 5 * len(trials), "of 1,000 each"
    study.search.close(Failure.CANCELLED, "the study was cancelled")
    study.search.close_waiting("the study was cancelled")
    assert {trial.state for trial in study.search.trials()} == {TrialState.FAIL}
    assert _trials_on_devices() == []


def test_a_lost_lease_stops_the_search_and_nothing_more_is_written(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    lost = threading.Event()
    study: Study

    def fence() -> None:
        if lost.is_set():
            raise LeaseLost

    def event(kind: str, _: dict[str, Any]) -> None:
        if kind == "trial.reported":
            lost.set()

    spec = spec_of(data, "fenced", search_space={**_long_space(), "epochs": 500})
    study = Study(spec, storage, tmp_path, event=event, fence=fence)
    with pytest.raises(LeaseLost):
        study.drive()
    reports = sum(len(trial.reports) for trial in study.search.trials())
    assert reports == 1
    assert all(trial.state == TrialState.RUNNING for trial in study.search.trials())


def test_a_broken_target_module_fails_every_trial_and_ends_the_study_early(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    model = {"base": str(MODEL), "lora": {"target_modules": ["no_such_layer"]}}
    study = Study(spec_of(data, "hopeless", model=model, budget={"trials": 50}), storage, tmp_path)
    study.drive()
    ended_well, reason = study.search.ending()
    assert not ended_well
    assert "no_such_layer" in reason
    assert len(study.search.trials()) < 10


def test_nothing_is_trained_on_a_device_that_is_set_aside(
    data: dict[str, str], storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray grants the shares of all devices all the same: who gets this one's holds it, and its trial goes elsewhere."""
    node = ray.get_runtime_context().get_node_id()
    addresses = devices_of(node, [])
    bad, good = addresses[0].label, {address.label for address in addresses[1:]}
    monkeypatch.setattr(Health, "aside", lambda _: {bad: Aside(time.time() + 600, "as a test wants it")})
    spec = spec_of(data, "aside", budget={"trials": 3}, parallelism={"trials_per_device": 1})
    study = Study(spec, storage, tmp_path)
    study.drive()
    trials = study.search.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert {trial.device for trial in trials} <= good
    (told,) = [details for kind, details in study.events if kind == "study.device_set_aside"]
    assert (told["device"], told["reason"]) == (bad, "as a test wants it")
    assert all(trial.lost == 0 for trial in trials)


def test_driving_leaves_no_files_but_the_artifacts(
    data: dict[str, str], storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))  # of this process alone: other tests may run beside it
    Study(spec_of(data, "tidy", budget={"trials": 1}), storage, tmp_path).drive()
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["0"]
    assert sorted(path.name for path in (tmp_path / "artifacts" / "0").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "artifacts/0/adapter_config.json").read_text())["peft_type"] == "LORA"


def _trials_on_devices() -> list[str]:
    trials: list[str] = []
    for device in _devices():
        with contextlib.suppress(RayActorError):  # it ends just now
            trials += ray.get(device.trials.remote())
    return trials


def test_trials_share_their_tokens_and_the_study_is_told_what_was_cut(
    data: dict[str, str], storage: Any, tmp_path: Path
) -> None:
    study = Study(spec_of({**data, "max_length": 64}, "cut", budget={"trials": 2}), storage, tmp_path)
    cache = tmp_path / "cache" / "tokens"
    study.drive(cache=cache)
    assert study.search.ending()[0]
    assert len(list(cache.glob("*.safetensors"))) == 1
    told = [details["text"] for kind, details in study.events if kind == "study.warning"]
    assert [text.split(":")[0] for text in told] == ["data.train", "data.validation"]
