"""What earlier studies know: nothing is trained twice, and what was found once is found again sooner."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpsearch.results import rank
from hpsearch.search import Asked, Decision, Lineage, history
from hpsearch.search.memory import BORROWED, LINEAGE, lessons
from hpsearch.storage import optuna_storage
from tests.builders import a_report
from tests.contract.test_search import CONTRACT, EXAMPLES, Driven, spec_of

HOME = Lineage("llama", "lora", "train", "validation")
SPACE: dict[str, Any] = {
    "epochs": {"low": 1, "high": 4},
    "learning_rate_multiplier": {"low": 0.01, "high": 10, "log": True},
    "weight_decay": {"low": 0.001, "high": 0.3, "log": True},
    "dropout": {"low": 0.0, "high": 0.3},
}


def loss_at(trial: dict[str, Any], exposure: int) -> float:
    """A bowl in four parameters; more examples help."""
    rate = math.log10(float(trial["learning_rate_multiplier"]) / 0.4)
    decay = math.log10(float(trial["weight_decay"]) / 0.02)
    bowl = 0.4 * rate**2 + 0.05 * decay**2 + 2 * (float(trial["dropout"]) - 0.1) ** 2
    return 1.0 + bowl + 0.4 * math.exp(-exposure / 150)


class Learning(Driven):
    """Trains for as long as it is let, counts what it has trained, and keeps weights."""

    def __init__(
        self, storage: Any, spec: Any, folder: Path, lineage: Lineage = HOME, contract: str = CONTRACT
    ) -> None:
        super().__init__(storage, spec, lineage=lineage)
        self.folder, self.contract = folder / spec.name, contract
        self.trained: list[int] = []

    def run(self, asked: Asked) -> Decision:
        trial = self.trial(asked.number)
        assert trial.config is not None
        chosen = trial.config["hyperparameters"]
        best, weights = None, self.folder / str(asked.number)
        for exposure in range(0, int(chosen["epochs"]) * EXAMPLES + 1, EXAMPLES // 2):
            report = a_report(exposure, loss_at(chosen, exposure))
            if self.search.report(asked.number, report, self.contract) is Decision.REUSE:
                self.search.reuse(asked.number, weights)
                return Decision.REUSE
            best = report if exposure and (best is None or report.validation_loss < best.validation_loss) else best
        assert best is not None
        weights.mkdir(parents=True)
        (weights / "adapter.safetensors").write_text(f"{best.validation_loss}")
        self.search.complete(asked.number, best, self.contract, str(weights))
        self.trained.append(asked.number)
        return Decision.GO_ON

    def best(self) -> float:
        return min(trial.value for trial in self.trials() if trial.value is not None)


@pytest.fixture
def storage() -> optuna.storages.BaseStorage:
    return optuna.storages.InMemoryStorage()


def a_study(trials: int, name: str = "first", **changes: Any) -> Any:
    fields = {"search_space": SPACE, "sampler": {"type": "tpe"}}
    return spec_of(trials, name=name, **(fields | changes))


class TestTheSameAgain:
    def test_a_trial_that_was_trained_before_is_taken_over_at_no_cost(self, storage: Any, tmp_path: Path) -> None:
        first = Learning(storage, a_study(8), tmp_path)
        first.run_all()
        again = Learning(storage, a_study(8, "again"), tmp_path)
        again.run_all()
        known = [trial for trial in again.trials() if trial.reused_from]
        assert [trial.reused_from for trial in known[:8]] == [{"study": "first", "number": n} for n in range(8)]
        assert len(again.trained) == 8  # what was taken over used up nothing of the budget
        for one, other in zip(first.trials(), known, strict=False):
            assert (one.params, one.value, one.reports, one.best_epoch) == (
                other.params, other.value, other.reports, other.best_epoch,
            )  # fmt: skip
            weights = Path(other.adapter or "") / "adapter.safetensors"
            assert weights.parent == tmp_path / "again" / str(other.number)
            assert weights.read_text() == str(one.value)
        baseline = history.baseline(history.load(storage, "again"))
        ranked = rank("again", "finished", again.spec.objective, baseline, again.trials())
        assert len(ranked.trials) == 16
        assert {"study": "first", "number": 0} in [row["reused_from"] for row in ranked.as_json()["ranking"]]

    @pytest.mark.parametrize(
        ("changes", "lineage", "contract"),
        [
            ({}, HOME, "another contract"),
            ({}, replace(HOME, train="other examples"), CONTRACT),
            ({"model": {"base": "m", "lora": {"rank": 4}}}, HOME, CONTRACT),
            ({"objective": {"reports_per_epoch": 4}}, HOME, CONTRACT),
            ({"objective": {"metric": "validation_token_accuracy"}}, HOME, CONTRACT),
        ],
        ids=["contract", "data", "model", "reports", "metric"],
    )
    def test_another_trial_is_not_the_same(
        self, storage: Any, tmp_path: Path, changes: dict[str, Any], lineage: Lineage, contract: str
    ) -> None:
        Learning(storage, a_study(2), tmp_path).run_all()
        other = Learning(storage, a_study(2, "other", **changes), tmp_path, lineage, contract)
        other.run_all()
        assert [trial.reused_from for trial in other.trials()] == [None, None]

    def test_a_value_that_was_repeated_with_other_last_digits_is_taken_over(self, storage: Any, tmp_path: Path) -> None:
        first = Learning(storage, a_study(1), tmp_path)
        asked = first.must_ask()
        for exposure in (0, EXAMPLES // 2):
            first.search.report(asked.number, a_report(exposure, 1.5), CONTRACT)
        (first.folder / "0").mkdir(parents=True)
        repeated = a_report(EXAMPLES // 2, 1.5 * (1 + 1e-7))  # a GPU's sums depend on a trial's company
        first.search.complete(asked.number, repeated, CONTRACT, str(first.folder / "0"))
        again = Learning(storage, a_study(1, "again"), tmp_path)
        assert again.run(again.must_ask()) is Decision.REUSE
        assert again.trial(0).value == 1.5

    def test_weights_that_are_gone_are_trained_again(self, storage: Any, tmp_path: Path) -> None:
        first = Learning(storage, a_study(2), tmp_path)
        first.run_all()
        (tmp_path / "first" / "0" / "adapter.safetensors").unlink()
        (tmp_path / "first" / "0").rmdir()
        again = Learning(storage, a_study(2, "again"), tmp_path)
        again.run_all()
        assert again.trials()[0].reused_from is None
        assert again.trials()[1].reused_from == {"study": "first", "number": 1}


def test_both_databases_remember(migrated_url: str, tmp_path: Path) -> None:
    storage = optuna_storage(migrated_url)
    Learning(storage, a_study(3), tmp_path).run_all()
    warm = {"studies": "similar", "first_trials": 2}  # the best are the defaults, which are tried anyway
    second = Learning(storage, a_study(2, "second", warm_start=warm), tmp_path)
    second.run_all()
    assert [(one.origin, bool(one.reused_from)) for one in second.trials()] == [
        ("defaults", True), ("borrowed", True), ("search", False), ("search", False),
    ]  # fmt: skip
    assert [one["study"] for one in borrowed(second)] == ["first"] * 3
    second.search.note()
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined]


class TestWarmStarts:
    def test_a_second_study_reaches_the_firsts_best_value_in_a_quarter_of_its_trials(
        self, storage: Any, tmp_path: Path
    ) -> None:
        """Another model of the family, so that nothing is the same and every trial is trained."""
        needed = []
        for seed in range(5):
            first = Learning(storage, a_study(32, f"first-{seed}", seed=seed), tmp_path)
            first.run_all()
            warm = {"warm_start": {"studies": [f"first-{seed}"], "first_trials": 0}}
            second = Learning(storage, a_study(16, f"second-{seed}", seed=seed + 9, **warm), tmp_path, contract="new")
            second.run_all()
            goal = first.best() + 0.005
            reached = [number + 1 for number, trial in enumerate(second.trials()) if (trial.value or 9) <= goal]
            needed.append(min(reached, default=99))
        assert sorted(needed)[2] <= 32 / 4, needed

    def test_the_best_that_was_lent_is_tried_first_and_is_known_already(self, storage: Any, tmp_path: Path) -> None:
        first = Learning(storage, a_study(20), tmp_path)
        first.run_all()
        second = Learning(storage, a_study(9, "second", seed=0, warm_start={"studies": "similar"}), tmp_path)
        second.run_all()
        assert [trial.origin for trial in second.trials()][:3] == ["defaults", "borrowed", "search"]
        assert second.trials()[1].value == first.best()
        assert second.trials()[1].reused_from is not None
        assert len(second.trained) == 9
        study = history.load(storage, "second")
        assert study is not None
        shown = lessons(study, second.search._points)
        best = next(trial for trial in first.trials() if trial.value == first.best())
        assert shown[0].params == best.params
        assert shown[0].intermediate_values == {one.exposure: one.validation_loss for one in best.reports}
        told = [details for kind, details in second.events if kind == "study.borrowed"]
        assert told == [{"trials": 20, "studies": ["first"]}]

    def test_a_space_that_was_edited_keeps_the_trials_that_still_lie_in_it(self, storage: Any, tmp_path: Path) -> None:
        first = Learning(storage, a_study(20), tmp_path)
        first.run_all()
        space = {
            "epochs": {"low": 2, "high": 3},  # narrower
            "learning_rate_multiplier": {"low": 0.01, "high": 100, "log": True},  # wider
            "weight_decay": {"low": 0.001, "high": 0.3},  # not logarithmic any more
            "dropout": {"low": 0.0, "high": 0.3},
            "warmup_fraction": {"low": 0.0, "high": 0.2},  # was fixed before
        }
        warm = {"warm_start": {"studies": ["first"]}}
        second = Learning(storage, a_study(9, "second", search_space=space, **warm), tmp_path)
        inside = [trial for trial in first.trials() if 2 <= int(trial.params["epochs"]) <= 3]
        assert 0 < len(inside) < 20
        lent = borrowed(second)
        assert sorted(one["number"] for one in lent) == [trial.number for trial in inside]
        by_number = {trial.number: trial.params for trial in inside}
        assert all(one["params"] == {**by_number[one["number"]], "warmup_fraction": 0.0} for one in lent)
        second.run_all()  # a sampler can be taught by them
        narrower = a_study(9, "third", search_space=space | {"dropout": 0.05}, **warm)
        assert borrowed(Learning(storage, narrower, tmp_path)) == []

    @pytest.mark.parametrize("kind", ["tpe", "cmaes"])
    def test_what_was_borrowed_can_be_removed_while_the_study_runs(
        self, storage: Any, tmp_path: Path, kind: str
    ) -> None:
        Learning(storage, a_study(6), tmp_path).run_all()
        drawn = []
        for name, forgets in (("one", False), ("two", True)):
            sampler = {"type": kind, "startup_trials": 4}
            spec = a_study(4, name, seed=5, sampler=sampler, warm_start={"studies": ["first"]})
            driven = Learning(storage, spec, tmp_path, contract="new")
            driven.run(driven.must_ask())
            driven.run(driven.must_ask())
            if forgets:
                optuna.load_study(study_name=name, storage=storage).set_user_attr(BORROWED, [])
            drawn.append(driven.must_ask().params)
        second = history.trial(history.load(storage, "one"), 1).params  # the best that was lent
        cold = Learning(storage, a_study(4, "cold", seed=5, sampler=sampler, first_trials=[second]), tmp_path)
        cold.run(cold.must_ask())
        cold.run(cold.must_ask())
        assert drawn[1] == cold.must_ask().params != drawn[0]

    def test_studies_that_are_not_alike_lend_nothing_unasked(self, storage: Any, tmp_path: Path) -> None:
        Learning(storage, a_study(3, "other-data"), tmp_path, replace(HOME, train="x")).run_all()
        Learning(storage, a_study(3, "other-family"), tmp_path, replace(HOME, family="gpt2")).run_all()
        Learning(storage, a_study(3, "whole-model"), tmp_path, replace(HOME, method="full")).run_all()
        for name, lineage in (("older", asdict(HOME)), ("oldest", {"model": "x"})):  # by versions with other fields
            older = optuna.create_study(study_name=name, storage=storage)
            older.set_user_attr(LINEAGE, lineage)
            older.set_user_attr("spec", {"objective": {"metric": "validation_loss"}})
            older.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"config": {"rate": 1}}))
        asked = ["other-data", "whole-model", "older", "oldest", "missing"]
        similar = Learning(storage, a_study(3, "similar", warm_start={"studies": "similar"}), tmp_path)
        named = Learning(storage, a_study(3, "named", warm_start={"studies": asked}), tmp_path)
        similar.run_all()
        assert borrowed(similar) == []
        assert {one["study"] for one in borrowed(named)} == {"other-data"}


def borrowed(driven: Driven) -> list[dict[str, Any]]:
    study = history.load(driven.storage, driven.spec.name)
    assert study is not None
    return list(study.user_attrs[BORROWED])
