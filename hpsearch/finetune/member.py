"""One trial being trained: optimizer steps, reports, the best weights."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hpsearch.errors import Diverged, InvalidInput
from hpsearch.finetune.evaluate import Evaluation, evaluate
from hpsearch.finetune.optimizer import Optimizer, check_frozen_layers
from hpsearch.finetune.order import exposure_after, optimizer_batch, report_exposures, steps_per_epoch
from hpsearch.finetune.prepare import Prepared, as_report
from hpsearch.finetune.schedule import learning_rate_factor, warmup_steps
from hpsearch.finetune.snapshot import Snapshot, identity
from hpsearch.finetune.step import Turn, gradients, in_less_memory
from hpsearch.finetune.weights import State, own_weights, reader
from hpsearch.results import Report
from hpsearch.results.curve import has_turned
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric, ObjectiveSpec

FAR_REPORTS = 3
FAR_NATS = 1.0
"""So many reports in a row, each so far above the untouched model's loss, and the fine-tune has diverged."""

STEPS_BETWEEN_CHECKS = 16
"""On a GPU, reading a loss waits for the device: a divergence is noticed so many steps late, or at a report."""


class Member:
    """One trial in training. Its numbers depend on its config and the shared data, not on its company."""

    def __init__(self, config: FinetuneConfig, prepared: Prepared, metric: Metric = "validation_loss") -> None:
        """Fresh weights and an optimizer.

        Raises:
            InvalidSpec: Nothing would be trained, or an adapter's target does not exist.
        """
        self.config, self.prepared, self.metric = config, prepared, metric
        chosen, anatomy = config.hyperparameters, prepared.loaded.anatomy
        check_frozen_layers(anatomy, chosen.frozen_layers)
        self.total_steps = steps_per_epoch(len(prepared.train.examples), chosen.batch_size) * chosen.epochs
        self.steps = 0
        self.tokens = 0
        self.seconds = 0.0
        """Device seconds, training and evaluation."""
        self.reports: list[Report] = [prepared.baseline]
        self.best: Report | None = None
        """The best report after the baseline, by the metric; the earliest of equals."""
        self._best_state: State = {}
        self._has_turned = False
        self._points = list(report_exposures(prepared.train.given, chosen.epochs, config.reports_per_epoch))
        self._warmup = warmup_steps(self.total_steps, chosen.warmup_fraction)
        self._now = config.at(0)
        """What it trains with; it changes where a phase ends."""
        self.weights = own_weights(self._now, prepared.loaded, prepared.base.layers)
        self._optimizer = Optimizer(self.weights, anatomy, self._now)
        # Of this device: no part of a snapshot, which may be gone on from on another one.
        self.token_budget = prepared.token_budget
        self.evaluation_budget = prepared.evaluation_budget
        self._nll = torch.zeros((), dtype=torch.float64, device=prepared.loaded.device)
        self._weight = 0.0

    @property
    def exposure(self) -> int:
        """Training examples passed, over all epochs; see `exposure_after`."""
        return self._exposure_after(self.steps)

    def _exposure_after(self, steps: int) -> int:
        train = self.prepared.train
        return exposure_after(steps, len(train.examples), train.given, self.config.hyperparameters.batch_size)

    @property
    def waits_next(self) -> bool:
        """Whether its next step ends with reading its loss: it is then through with all that the device was given."""
        return (
            self.prepared.loaded.device.type == "cpu"
            or (self.steps + 1) % STEPS_BETWEEN_CHECKS == 0
            or self._exposure_after(self.steps + 1) >= self._points[0]
        )

    @property
    def is_done(self) -> bool:
        """Whether all epochs are trained, or the validation loss has turned and patience is out."""
        return self.steps == self.total_steps or self._has_turned

    def advance(self) -> Report | None:
        """Exactly one optimizer step, and an evaluation when one is due: then its report.

        Raises:
            Diverged: The training or validation loss is not finite, or the last reports were far above the baseline.
            OutOfMemory: Not even a single sequence fits.
        """
        turn, started = self.turn(), time.perf_counter()
        nll, self.token_budget = in_less_memory(
            lambda budget: gradients(self.prepared.loaded, [turn], budget), self.token_budget
        )
        point = self.update(turn, nll[0], time.perf_counter() - started)
        if point is None:
            return None
        started = time.perf_counter()
        (evaluation,) = evaluated([self])
        return self.report(point, evaluation, time.perf_counter() - started)

    def turn(self) -> Turn:
        """What its next step learns from.

        Raises:
            Diverged: The last reports, all of which are out by now, were far above the baseline.
        """
        self._check_near_baseline()
        chosen, examples = self._now.hyperparameters, self.prepared.train.examples
        places = optimizer_batch(self.config.seed, self.steps, len(examples), chosen.batch_size)
        return Turn(self.weights, self.steps, [examples[place] for place in places], chosen.prompt_loss_weight)

    def update(self, turn: Turn, nll: Tensor, seconds: float) -> int | None:
        """The rest of a step whose gradients are there: new weights.

        Args:
            turn: The step's.
            nll: Its sum(w * nll).
            seconds: What the gradients took.

        Returns:
            The report point that was reached, if any: evaluate, then `report`.

        Raises:
            Diverged: The training loss is not finite.
        """
        waits, started = self.waits_next, time.perf_counter()
        schedule = self.config.hyperparameters.lr_schedule
        self._optimizer.step(learning_rate_factor(schedule, self.steps, self.total_steps, self._warmup))
        self.steps += 1
        self._change()
        self.tokens += turn.tokens
        self._nll += nll
        self._weight += turn.weight
        point = self._reached()
        if waits:
            self._training_loss()
        self.seconds += seconds + time.perf_counter() - started
        return point

    def _change(self) -> None:
        """Where a phase ends: other numbers from the next step on, the same weights and AdamW's same averages."""
        now = self.config.at(self.exposure)
        if now != self._now:
            self._now, state = now, self._optimizer.state()
            self.weights.change(now)
            self._optimizer = Optimizer(self.weights, self.prepared.loaded.anatomy, now)
            self._optimizer.restore(state)

    def report(self, point: int, evaluation: Evaluation, seconds: float) -> Report:
        """The report of a point that was reached.

        Args:
            point: As `update` gave it.
            evaluation: Of the weights as they are now.
            seconds: What it took.

        Raises:
            Diverged: The validation loss is not finite.
        """
        self.seconds += seconds
        if not math.isfinite(evaluation.loss):
            raise Diverged(f"the validation loss is {evaluation.loss} after {self.exposure} examples")
        epoch = point / self.prepared.train.given
        report = replace(
            as_report(evaluation, point, epoch),
            training_loss=self._training_loss(),
            tokens=self.tokens,
            seconds=self.seconds,
        )
        self._nll.zero_()
        self._weight = 0.0
        self.reports.append(report)
        self._keep_if_best(report)
        self._has_turned = self._turned()
        return report

    def return_to_best(self) -> None:
        """Its weights are those of its best report from here on; AdamW's averages are not."""
        with torch.no_grad():
            for name, tensor in self._best_state.items():
                self.weights.named[name].copy_(tensor)

    def save_best(self, folder: Path) -> None:
        """Write the weights of the best report; `folder` is replaced whole."""
        if self.best is None:
            raise ValueError("nothing to save before the first report")
        self.weights.save(self._best_state, folder)

    def snapshot(self) -> Snapshot:
        """All that is needed to go on exactly from here; training on does not change it."""
        progress = {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "nll": float(self._nll),
            "weight": self._weight,
            "reports": [report.as_json() for report in self.reports],
            "best": None if self.best is None else self.reports.index(self.best),
        }
        tensors = {f"best.{name}": tensor for name, tensor in self._best_state.items()}
        tensors |= {f"last.{name}": _copied(parameter) for name, parameter in self.weights.named.items()}
        tensors |= {name: _copied(tensor) for name, tensor in self._optimizer.state().items()}
        return Snapshot(identity(self.config, self.prepared, self.metric), progress, tensors)

    def snapshot_bytes(self) -> int:
        """About the size of a snapshot: last and best weights, and AdamW's two averages."""
        return 4 * sum(parameter.nbytes for parameter in self.weights.named.values())

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where a snapshot was taken, as if nothing had been in between.

        Raises:
            InvalidInput: It is of a fine-tune with another config, other data or another evaluation contract.
        """
        snapshot.check_belongs_to(identity(self.config, self.prepared, self.metric))
        self._stand_at(snapshot)

    def take_over(self, snapshot: Snapshot) -> None:
        """Go on from another fine-tune, at the end of the last of the config's earlier phases.

        Raises:
            InvalidInput: It is of a fine-tune that was not trained as those phases say, or stands elsewhere.
        """
        until = self.config.earlier[-1].until
        snapshot.check_belongs_to(identity(self.config.at(until - 1), self.prepared, self.metric))
        reached = snapshot.progress["reports"][-1]["exposure"]
        if reached != until or snapshot.progress["weight"]:
            raise InvalidInput(f"the checkpoint stands behind exposure {reached}, and is to be taken over at {until}")
        self._stand_at(snapshot)

    def _stand_at(self, snapshot: Snapshot) -> None:
        progress, named = snapshot.progress, self.weights.named
        self.steps, self.tokens, self.seconds = progress["steps"], progress["tokens"], progress["seconds"]
        self._nll.fill_(progress["nll"])
        self._weight = progress["weight"]
        self.reports = [Report(**report) for report in progress["reports"]]
        self.best = None if progress["best"] is None else self.reports[progress["best"]]
        self._points = [point for point in self._points if point > self.exposure]
        self._has_turned = self._turned()
        self._best_state = snapshot.part("best")
        self._change()
        with torch.no_grad():
            for name, tensor in snapshot.part("last").items():
                named[name].copy_(tensor)
        self._optimizer.restore(snapshot.without("best", "last"))

    def _check_near_baseline(self) -> None:
        """Raise Diverged when the last reports, all of which are out by now, are far worse than no training at all."""
        last = self.reports[-FAR_REPORTS:]
        limit = self.prepared.baseline.validation_loss + FAR_NATS
        if len(last) == FAR_REPORTS and all(report.validation_loss > limit for report in last):
            raise Diverged(
                f"the validation loss was {last[-1].validation_loss:.3g} and more than {FAR_NATS:g} nats above the "
                f"baseline in {FAR_REPORTS} reports in a row; a smaller learning rate multiplier helps"
            )

    def _training_loss(self) -> float:
        """The mean since the last report; raise Diverged when it is not finite."""
        loss = float(self._nll) / self._weight
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss is {loss} at step {self.steps}; a smaller learning rate multiplier helps"
            )
        return loss

    def _reached(self) -> int | None:
        """The report point that the last step has reached, if any."""
        passed = bisect.bisect_right(self._points, self.exposure)
        reached = self._points[passed - 1] if passed else None
        del self._points[:passed]
        return reached

    def _turned(self) -> bool:
        values = [float(getattr(report, self.metric)) for report in self.reports[1:]]
        return has_turned(values, ObjectiveSpec(metric=self.metric).direction, self.config.patience)

    def _keep_if_best(self, report: Report) -> None:
        sign = 1.0 if ObjectiveSpec(metric=self.metric).direction == "minimize" else -1.0
        if self.best is None or sign * getattr(report, self.metric) < sign * getattr(self.best, self.metric):
            self.best = report
            self._best_state = {name: _copied(tensor) for name, tensor in self.weights.named.items()}


def evaluated(members: Sequence[Member]) -> list[Evaluation]:
    """Evaluate the weights of each: of members with adapters over one `Prepared`, or of one with a model of its own.

    Raises:
        OutOfMemory: Not even a single sequence of the validation split fits.
    """
    prepared, company = members[0].prepared, reader([member.weights for member in members])
    asked = min(member.evaluation_budget for member in members)
    evaluations, budget = in_less_memory(
        lambda budget: evaluate(company, prepared.loaded.anatomy, prepared.validation.examples, budget), asked
    )
    if budget < asked:
        for member in members:
            member.evaluation_budget = budget
    return evaluations


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU; a copy there too."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
