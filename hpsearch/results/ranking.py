"""Where losses become a rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpsearch.results.trial import Trial, TrialState
from hpsearch.spec.objective import ObjectiveSpec


@dataclass(frozen=True)
class Ranking:
    """The completed trials of one study, best first."""

    study: str
    state: str
    objective: ObjectiveSpec
    baseline: dict[str, float | None] | None
    """The untouched base model under the same evaluation contract."""
    trials: tuple[Trial, ...]
    counts: dict[str, int]
    """Trials by state: what the ranking leaves out."""
    verdict: dict[str, Any] | None = None
    """What training the best ones again under fresh seeds has said (`Verdict.as_json`)."""

    @property
    def is_outdated(self) -> bool:
        """Whether the verdict is of an earlier ranking: the best trial was not among those that were trained again."""
        judged = {each["number"] for each in self.verdict["candidates"]} if self.verdict else set()
        return bool(self.verdict and self.trials and self.trials[0].number not in judged)

    def judged(self, verdict: dict[str, Any] | None) -> Ranking:
        """The same with a verdict."""
        return replace(self, verdict=verdict)

    def verdict_as_json(self) -> dict[str, Any] | None:
        """The verdict, and whether it is outdated."""
        return None if self.verdict is None else {**self.verdict, "outdated": self.is_outdated}

    def as_json(self, top: int | None = None) -> dict[str, Any]:
        """`{"study", "state", "objective", "baseline", "counts", "verdict", "ranking": [...]}`; `top` cuts the last."""
        return {
            "study": self.study,
            "state": self.state,
            "objective": {"metric": self.objective.metric, "direction": self.objective.direction},
            "baseline": self.baseline,
            "counts": self.counts,
            "verdict": self.verdict_as_json(),
            "ranking": [
                {
                    "rank": place,
                    "number": trial.number,
                    "value": trial.value,
                    "state": str(trial.state),
                    "params": trial.params,
                    "hyperparameters": (trial.config or {}).get("hyperparameters"),
                    "schedule": trial.schedule,
                    "best_epoch": trial.best_epoch,
                    "cut_short": trial.cut_short,
                    "origin": trial.origin,
                    "reused_from": trial.reused_from,
                    "adapter": trial.adapter is not None,
                }
                for place, trial in enumerate(self.trials[:top], start=1)
            ],
        }


def rank(
    study: str, state: str, objective: ObjectiveSpec, baseline: dict[str, Any] | None, trials: Sequence[Trial]
) -> Ranking:
    """Complete trials by value, best first; ties by number, so that the order never flickers.

    Only values under one evaluation contract are comparable: the baseline's, or without a baseline the
    first completed trial's. Others are left out.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    contract = baseline.get("evaluation_contract") if baseline else None
    if contract is None and complete:
        contract = complete[0].evaluation_contract
    sign = 1.0 if objective.direction == "minimize" else -1.0
    comparable = [trial for trial in complete if trial.evaluation_contract == contract]
    ordered = sorted(comparable, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    figures = {name: value for name, value in (baseline or {}).items() if name != "evaluation_contract"}
    counts = Counter(str(trial.state) for trial in trials)
    return Ranking(study, state, objective, figures or None, tuple(ordered), dict(sorted(counts.items())))
