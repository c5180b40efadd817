"""What is kept of a study as a whole, beside its trials: baseline, places on devices, exchanges, verdict, note."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna

from hpsearch.crash import crash_point
from hpsearch.results import Report
from hpsearch.results.attributes import ASIDE, BASELINE, VERDICT, VERDICT_TOLD, WARNINGS
from hpsearch.search import history, note, told
from hpsearch.spec.study import StudySpec

Event = Callable[[str, dict[str, Any]], None]


class Whole:
    """A study as Optuna keeps it, but for its trials.

    Args:
        spec: The study.
        study: The same as Optuna keeps it.
        fence: Raises LeaseLost when this process must not write any more; called before every write.
        event: Told what happened, in the order it happened.
    """

    def __init__(self, spec: StudySpec, study: optuna.Study, fence: Callable[[], None], event: Event) -> None:
        self.spec = spec
        self._study, self._fence, self._event = study, fence, event
        self._aside: dict[str, dict[str, Any]] | None = None

    def _keep_baseline(self, report: Report, contract: str, warnings: Sequence[str]) -> None:
        if history.baseline(self._study) is None:
            figures = {name: value for name, value in report.as_json().items() if name.startswith("validation_")}
            if warnings:
                self._study.set_user_attr(WARNINGS, list(warnings))
            self._study.set_user_attr(BASELINE, {**figures, "evaluation_contract": contract})
            crash_point("after_baseline")
            for each in told.of_baseline(self._study):
                self._event(*each)

    @property
    def baseline(self) -> dict[str, Any] | None:
        """What the untouched base model scored; None until a worker has evaluated it."""
        return history.baseline(self._study)

    @property
    def per_device(self) -> int | None:
        """How many trials shared each device when it was last decided; None before."""
        found: int | None = self._study.user_attrs.get("parallelism", {}).get("trials_per_device")
        return found

    def judged(self, verdict: dict[str, Any]) -> None:
        """What training the best trials again has said."""
        self._fence()
        if verdict != history.verdict(self._study):
            self._study.set_user_attr(VERDICT, verdict)
        outline = {name: verdict[name] for name in ("outcome", "recommended", "text")}
        if outline != self._study.user_attrs.get(VERDICT_TOLD):
            self.note()
            self._event("study.verdict", outline)
            self._study.set_user_attr(VERDICT_TOLD, outline)

    def placed_before(self, circumstances: dict[str, Any]) -> int | None:
        """How many trials shared each device when it was last decided, if the circumstances were the same."""
        known = self._study.user_attrs.get("parallelism", {})
        found: int | None = known.get("trials_per_device")
        return found if known.get("circumstances") == circumstances else None

    def placed(self, per_device: int, devices: int, reason: str, circumstances: dict[str, Any] | None = None) -> None:
        """So many trials share each device; under the same circumstances, that need not be found out again."""
        self._fence()
        decided = {"trials_per_device": per_device, "reason": reason, "circumstances": circumstances}
        self._study.set_user_attr("parallelism", decided)
        text = f"{per_device} at once on each of {devices} devices: {reason}"
        self._event("study.parallelism", {"trials_per_device": per_device, "devices": devices, "reason": text})

    def set_aside(self, devices: dict[str, dict[str, Any]]) -> None:
        """The devices that get no trials of this study for a while: by name, `until` when and for what `reason`."""
        known = history.aside(self._study) if self._aside is None else self._aside
        self._aside = known
        if devices == known:
            return
        self._fence()
        self._study.set_user_attr(ASIDE, devices)
        self._aside = devices
        for device in devices.keys() - known.keys():
            self._event("study.device_set_aside", {"device": device, **devices[device]})
        for device in known.keys() - devices.keys():
            self._event("study.device_back", {"device": device})

    def note(self) -> None:
        """Say on the study's page of the dashboard what its trials have taught so far."""
        self._fence()
        note.write(self._study, self.spec)

    def decided(self, name: str, exchanges: Sequence[dict[str, Any]]) -> None:
        """Keep on the study what was decided at all exchanges of its population; the last one is new."""
        self._fence()
        self._study.set_user_attr(name, list(exchanges))
        last = exchanges[-1]
        details = {"exposure": last["exposure"], "ranked": last["ranked"], "heirs": last["heirs"]}
        self._event("study.exchanged", details)
