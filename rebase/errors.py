"""Errors that reach users, and how any exception becomes one public record.

    RebaseError
    ├── RequestInvalid          the request itself is wrong; `pointer` names the field
    ├── NotFound                no such resource, or it belongs to another tenant
    ├── SettingsInvalid         the settings of this deployment are invalid or contradictory
    ├── Unauthorized            no API key, or an invalid one
    ├── Forbidden               the key lacks the required scope
    ├── TooMany                 a limit is reached; `retry_after_s` says when to retry
    │   ├── RateLimited         too many requests of this tenant
    │   └── QuotaExceeded       too many jobs or subscriptions of this tenant
    ├── WebhookOff              this deployment has no secret for webhooks
    ├── WebhookUnauthorized     a webhook with a missing or wrong secret
    ├── IdempotencyMismatch     same key, different body
    ├── IdempotencyInFlight     same key, first request still being recorded
    ├── StateConflict           the state does not allow this change
    ├── NotAvailable            a feature that this version does not support yet
    ├── Busy                    database or broker is temporarily unavailable (retryable)
    ├── HubError
    │   ├── RepoNotFound        │   ├── RevisionNotFound   │   ├── FileMissing
    │   ├── RepoGated           │   ├── HubUnauthorized    │   ├── HubUnavailable (retryable)
    │   ├── OutputExists        │   ├── OutputForbidden    │   └── ParentMoved (retryable)
    ├── UnsafeFile              pickle, false header, duplicate keys, unreasonable sizes
    ├── DiskFull                (retryable)
    ├── Rejected                the pre-check found the pair incompatible
    │   ├── WorseThanTarget     in the evaluation, the target alone scores higher
    │   └── NothingBetter       no evaluated method scores higher than the target alone
    ├── WorkerLost              the worker died on every attempt at this job
    ├── TimeLimit               the job ran past its time limit
    ├── OutOfMemory             the worker's machine or GPU is too small for the job
    ├── Cancelled, LeaseLost    control flow of a running job, never shown as failures
    └── InternalError           any unexpected error; its cause is not public

Errors of adapters, bases and methods have their own tree; `to_public_error` turns both into one record.

    TransferError
    ├── UnsupportedAdapter      a PEFT type, module or feature that cannot be transferred
    ├── MalformedAdapter        the adapter's files are broken or contradictory
    ├── UnsupportedModel        an unsupported architecture, or unreadable weights
    ├── IncompatiblePair        this method cannot transfer this adapter between these bases
    ├── TrainingFailed          the loss is not finite, or there is no text to train on
    ├── GapTooSmall             training on the target gains too little to measure a share of it
    └── VerificationFailed      the result failed a check; nothing is published

The HTTP status of each code is defined in `service.problem_details`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel

from rebase.redaction import scrub_long_secrets


class TransferError(Exception):
    """Root of the tree. `message` is shown to users; never put a secret or a path of the server in it."""

    code: ClassVar[str] = "transfer_error"

    def __init__(self, message: str, *, hint: str | None = None, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.pointer = pointer


class UnsupportedAdapter(TransferError):
    """The adapter is of an unsupported kind; names the type or module."""

    code = "unsupported_adapter"


class MalformedAdapter(TransferError):
    """The adapter's files are broken: missing config, wrong shapes, NaN, tensors that match no module."""

    code = "malformed_adapter"


class UnsupportedModel(TransferError):
    """A base model with an unsupported architecture or weight format."""

    code = "unsupported_model"


class IncompatiblePair(TransferError):
    """The method's conditions do not hold for this pair; raised before any expensive work."""

    code = "incompatible_pair"


class TrainingFailed(TransferError):
    """Training cannot continue: the loss is not finite, or there is no text. Other settings may help."""

    code = "training_failed"


class GapTooSmall(TransferError):
    """Training on the target gains too little to express a transfer as a share of it."""

    code = "gap_too_small"


class VerificationFailed(TransferError):
    """The converted adapter did not pass its checks, so it is not published."""

    code = "verification_failed"


class PublicError(BaseModel):
    """What a user sees of a failure: in `job.error`, in the CLI and in problem+json."""

    code: str
    message: str
    hint: str | None = None
    pointer: str | None = None
    retryable: bool = False


class RebaseError(Exception):
    """Root of the tree. `message` is public: no secret, no path of the server."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, pointer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.pointer = pointer


class RequestInvalid(RebaseError):
    code = "request_invalid"


class NotFound(RebaseError):
    code = "not_found"


class SettingsInvalid(RebaseError):
    code = "settings_invalid"


class Unauthorized(RebaseError):
    code = "unauthorised"


class Forbidden(RebaseError):
    code = "forbidden"


class TooManyRequests(RebaseError):
    """A limit of this tenant is reached; nothing was done."""

    code = "too_many"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RateLimited(TooManyRequests):
    code = "rate_limited"


class QuotaExceeded(TooManyRequests):
    code = "quota_exceeded"


class WebhookNotConfigured(RebaseError):
    code = "webhook_not_set_up"


class WebhookUnauthorized(RebaseError):
    code = "webhook_unauthorised"


class IdempotencyMismatch(RebaseError):
    code = "idempotency_mismatch"


class IdempotencyInFlight(RebaseError):
    code = "idempotency_in_flight"


class StateConflict(RebaseError):
    code = "state_conflict"


class NotAvailable(RebaseError):
    code = "not_available"


class Busy(RebaseError):
    code = "busy"
    retryable = True


class HubError(RebaseError):
    code = "hub_error"


class RepoNotFound(HubError):
    code = "repo_not_found"


class RevisionNotFound(HubError):
    code = "revision_not_found"


class FileMissing(HubError):
    code = "file_missing"


class RepoGated(HubError):
    code = "repo_gated"


class HubUnauthorized(HubError):
    code = "hub_unauthorised"


class HubUnavailable(HubError):
    code = "hub_unavailable"
    retryable = True


class OutputExists(HubError):
    code = "output_exists"


class OutputForbidden(HubError):
    code = "output_forbidden"


class ParentMoved(HubError):
    """The output repo changed between our check and our commit."""

    code = "parent_moved"
    retryable = True


class UnsafeFile(RebaseError):
    code = "unsafe_file"


class DiskFull(RebaseError):
    code = "disk_full"
    retryable = True


class Rejected(RebaseError):
    """The verdict is `incompatible` and the request asked to stop there."""

    code = "incompatible"


class WorseThanTarget(Rejected):
    """The transferred adapter scores worse on the examples, and the request asked to stop there."""

    code = "worse_than_target"


class NothingBetter(Rejected):
    """None of the methods that `auto` evaluated is worth publishing."""

    code = "nothing_better"


class WorkerLost(RebaseError):
    code = "worker_lost"


class TimeLimit(RebaseError):
    code = "time_limit"


class OutOfMemory(RebaseError):
    code = "out_of_memory"


class Cancelled(RebaseError):
    code = "cancelled"


class LeaseLost(RebaseError):
    """Another worker owns the job now; this one must discard its results."""

    code = "lease_lost"


class InternalError(RebaseError):
    code = "internal"


def escape_control_characters(text: str) -> str:
    """Escape control characters except line breaks, for text that may quote an untrusted file."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def to_public_error(exc: BaseException) -> PublicError:
    """The record for any exception; the cause of an unexpected one only goes into the log."""
    if isinstance(exc, RebaseError | TransferError):
        # Our messages contain no secrets, but a quoted remote response might.
        message = scrub_long_secrets(escape_control_characters(exc.message))
        fields: dict[str, Any] = {"message": message, "hint": exc.hint, "pointer": exc.pointer}
        return PublicError(code=exc.code, retryable=getattr(exc, "retryable", False), **fields)
    return PublicError(
        code=InternalError.code,
        message="An unexpected error occurred; the cause is in the log under this job's id.",
        hint="Retry the job; if it fails again, report it with the job id.",
    )


class CommandFailed(RebaseError):
    """A command cannot continue for a local reason: port in use, folder not empty, stack not ready."""

    code = "command_failed"
