"""Every error that hpsearch raises on purpose.

    HpsearchError
    ├── InvalidInput                what was sent can't be used; nothing was queued
    │   ├── InvalidSpec             a field of the study spec
    │   ├── InvalidDataset          a line of a dataset
    │   │   └── TooFewExamples
    │   ├── UnknownModel            the base model can't be found
    │   │   └── HubUnavailable      nor can the hub be asked now
    │   ├── UnsupportedModel        found, but it isn't a causal LM in safetensors
    │   ├── UnknownDataset          a data file or an uploaded dataset can't be found
    │   ├── OutdatedCheckpoint      another version of hpsearch wrote it
    │   ├── PathNotAllowed          outside the allowed roots
    │   └── TooLarge                over a size limit
    ├── NotFound
    │   ├── StudyNotFound
    │   ├── TrialNotFound
    │   └── AdapterNotFound
    ├── Conflict
    │   ├── NameTaken               the name belongs to a study with another spec
    │   ├── IllegalMove             this study state doesn't allow that act
    │   ├── BudgetSpent             nothing more would be trained before the budget is extended
    │   ├── TrialFinished           the trial has ended: nothing about it changes any more
    │   ├── ChangedMeanwhile        If-Match names a version that is not the present one
    │   └── IdempotencyMismatch     the key was used for another request
    ├── Unauthorized                no token, or a wrong one
    ├── Forbidden                   the token's role doesn't allow this
    ├── StudyUnreadable             what is stored of a study is damaged, or of a newer version
    ├── LeaseLost                   another runner drives the study now: stop writing
    ├── TrialFailure                one fine-tune can't go on; its reason is stored on the trial
    │   ├── Diverged
    │   ├── OutOfMemory
    │   ├── WorkerLost
    │   └── DiskFull            nothing is lost: the study pauses
    └── ServiceUnavailable          the service doesn't answer (raised by the client)

To add one: subclass, write the docstring as the message that a user reads when nothing
more specific is known (say what to do next), give it a `code` that never changes, and put
its HTTP status into `hpsearch/api/problems.py`. Errors take one positional message and
survive pickling, because they cross Ray's process borders.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class HpsearchError(Exception):
    """Something went wrong in hpsearch."""

    code: ClassVar[str] = "hpsearch_error"

    def __init__(self, detail: str = "", field: str = "", line: int = 0) -> None:
        self.detail = detail or inspect.cleandoc(type(self).__doc__ or "")
        self.field = field
        self.line = line
        super().__init__(self.detail, field, line)

    def __str__(self) -> str:
        return self.detail


class InvalidInput(HpsearchError):
    """What was sent can't be used."""

    code = "invalid_input"


class InvalidSpec(InvalidInput):
    """The study spec is not valid. `hpsearch check SPEC` names the field."""

    code = "invalid_spec"


class InvalidDataset(InvalidInput):
    """The dataset has a line that can't be used. `hpsearch check SPEC` names it."""

    code = "invalid_dataset"


class TooFewExamples(InvalidDataset):
    """The dataset has too few examples to train on. Add examples: at least 10."""

    code = "too_few_examples"


class UnknownModel(InvalidInput):
    """The base model can't be found. Give a folder below an allowed root, or a hub id."""

    code = "unknown_model"


class HubUnavailable(UnknownModel):
    """The model hub can't be asked now, and the model is not in the local cache. Try again, or give a local folder."""

    code = "hub_unavailable"


class UnsupportedModel(InvalidInput):
    """The base model can't be fine-tuned here: it must be a causal language model in safetensors."""

    code = "unsupported_model"


class UnknownDataset(InvalidInput):
    """The dataset can't be found. Upload it with `POST /v1/datasets`, or name a file below an allowed root."""

    code = "unknown_dataset"


class OutdatedCheckpoint(InvalidInput):
    """The checkpoint is of another version of hpsearch. The service trains its params anew, under another number."""

    code = "outdated_checkpoint"


class PathNotAllowed(InvalidInput):
    """The path is outside the allowed roots. The operator sets them with HPSEARCH_ALLOWED_ROOTS."""

    code = "path_not_allowed"


class TooLarge(InvalidInput):
    """What was sent is over the size limit."""

    code = "too_large"


class NotFound(HpsearchError):
    """There is no such thing here."""

    code = "not_found"


class StudyNotFound(NotFound):
    """There is no study of this name."""

    code = "study_not_found"


class TrialNotFound(NotFound):
    """The study has no trial of this number."""

    code = "trial_not_found"


class AdapterNotFound(NotFound):
    """The trial has no saved weights: only trials that completed keep them."""

    code = "adapter_not_found"


class Conflict(HpsearchError):
    """The request contradicts what is there."""

    code = "conflict"


class NameTaken(Conflict):
    """A study of this name exists with another spec. Choose another name, or delete it first."""

    code = "name_taken"


class IllegalMove(Conflict):
    """The study's state doesn't allow this."""

    code = "illegal_move"


class BudgetSpent(Conflict):
    """The study's budget is used up, so nothing more would be trained. Extend it first: `hpsearch extend NAME`."""

    code = "budget_spent"


class TrialFinished(Conflict):
    """The trial has ended; nothing about it changes any more."""

    code = "trial_finished"


class ChangedMeanwhile(Conflict):
    """The study has changed since it was looked at. Look again, then decide again."""

    code = "changed_meanwhile"


class IdempotencyMismatch(Conflict):
    """This Idempotency-Key was used for a different request. Use a fresh key."""

    code = "idempotency_mismatch"


class Unauthorized(HpsearchError):
    """A valid token is needed: send `Authorization: Bearer TOKEN` (the client reads HPSEARCH_TOKEN)."""

    code = "unauthorized"


class Forbidden(HpsearchError):
    """The token's role does not allow this."""

    code = "forbidden"


class StudyUnreadable(HpsearchError):
    """The stored spec can't be read by this version of hpsearch. Upgrade it, or delete the study."""

    code = "study_unreadable"


class LeaseLost(HpsearchError):
    """Another runner has taken the study over; this one must not write to it any more."""

    code = "lease_lost"


class TrialFailure(HpsearchError):
    """The fine-tune could not go on."""

    code = "error"


class Diverged(TrialFailure):
    """The loss is not finite. A smaller learning rate multiplier usually mends this."""

    code = "diverged"


class OutOfMemory(TrialFailure):
    """The device has too little memory for this trial even at the smallest micro-batch."""

    code = "out_of_memory"


class WorkerLost(TrialFailure):
    """The process that trained the trial died."""

    code = "worker_lost"


class DiskFull(TrialFailure):
    """The disk has no room for the trial's files. Free some space, then resume the study."""

    code = "disk_full"


class ServiceUnavailable(HpsearchError):
    """The service does not answer. Start it with `hpsearch serve`, or set HPSEARCH_URL."""

    code = "service_unavailable"
