"""One fine-tune from beginning to end, without a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpsearch.finetune import memory, snapshot
from hpsearch.finetune.member import Member
from hpsearch.finetune.prepare import Prepared, prepare
from hpsearch.finetune.sealed import score_sealed
from hpsearch.results import Report
from hpsearch.results.sealed import SealedScore
from hpsearch.spec.finetune import FinetuneConfig
from hpsearch.spec.objective import Metric


@dataclass(frozen=True)
class Outcome:
    """What came out of one fine-tune."""

    best: Report
    reports: tuple[Report, ...]
    """The baseline first."""
    evaluation_contract: str
    member: Member
    sealed: SealedScore | None
    """Of the best weights, where the config names a test split."""


def finetune(
    config: FinetuneConfig,
    on_report: Callable[[Report], object] | None = None,
    *,
    metric: Metric = "validation_loss",
    prepared: Prepared | None = None,
    device: str = "cpu",
    save_to: Path | None = None,
    checkpoint: Path | None = None,
    on_resume: Callable[[Report], object] | None = None,
) -> Outcome:
    """Load, train every epoch, keep the best; go on from a checkpoint when there is one.

    Args:
        config: Resolved; its paths are absolute.
        on_report: Called with each report as it comes, the baseline first; a killed fine-tune that goes on may
            repeat its last one.
        metric: What the best report is best by.
        prepared: What `prepare` returned for a config of the same key; left out, it is prepared here.
        device: As torch names it: `cpu`, `cuda:0`.
        save_to: Folder for the best weights.
        checkpoint: Folder that gets a snapshot after each report. One that is there already is gone on from,
            exactly. It stays when all is done, until `snapshot.remove`.
        on_resume: Called instead of `on_report` with the last report before the interruption.

    Raises:
        InvalidInput: The model, the data or the config can't be used, or the checkpoint is another fine-tune's or
            damaged.
        TrialFailure: It diverged or ran out of memory.
    """
    saved = None if checkpoint is None else snapshot.read(checkpoint)
    prepared = prepared or prepare(config, device)
    member = Member(config, prepared, metric)
    memory.limit_tokens(member, share=1.0)
    tell = on_report or (lambda _report: None)
    if saved is None:
        tell(prepared.baseline)
    else:
        member.restore(saved)
        (on_resume or (lambda _report: None))(member.reports[-1])
    while not member.is_done:
        report = member.advance()
        if report is not None:
            tell(report)
            if checkpoint is not None:
                snapshot.write(member.snapshot(), checkpoint)
    assert member.best is not None  # the last example of an epoch is always a report
    if save_to is not None:
        member.save_best(save_to)
    return Outcome(member.best, tuple(member.reports), prepared.evaluation_contract, member, score_sealed(member))
