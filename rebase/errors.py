"""Errors that reach users, and how any exception becomes one public record.

    RebaseError
    ├── RequestInvalid          the request itself is wrong; `pointer` names the field
    ├── NotFound                no such job (or it belongs to somebody else)
    ├── SettingsInvalid         this deployment is set up in a way that cannot be served
    ├── Unauthorized            no key, or a key that is not valid
    ├── Forbidden               a key without the scope that is needed
    ├── TooMany                 come back later; `retry_after_s` says when
    │   ├── RateLimited         too many requests of this tenant
    │   └── QuotaExceeded       too many jobs or subscriptions of this tenant
    ├── WebhookOff              this deployment has no secret for webhooks
    ├── WebhookUnauthorized     a webhook without the secret, or with another one
    ├── IdempotencyMismatch     same key, other body
    ├── IdempotencyInFlight     same key, first request still being recorded
    ├── StateConflict           the job has moved; the change no longer applies
    ├── NotAvailable            part of the contract that this version does not do yet
    ├── Busy                    database or broker cannot answer just now (retryable)
    ├── HubError
    │   ├── RepoNotFound        │   ├── RevisionNotFound   │   ├── FileMissing
    │   ├── RepoGated           │   ├── HubUnauthorized    │   ├── HubUnavailable (retryable)
    │   ├── OutputExists        │   ├── OutputForbidden    │   └── ParentMoved (retryable)
    ├── UnsafeFile              pickle, lying header, duplicate keys, absurd sizes
    ├── DiskFull                (retryable)
    ├── Rejected                the pre-check said incompatible
    │   ├── WorseThanTarget     the transferred adapter was measured, and the target does better without it
    │   └── NothingBetter       no method that was tried measures better than the target alone
    ├── WorkerLost              the worker died too often on this job
    ├── TimeLimit               the job ran past its time limit
    ├── OutOfMemory             the worker's machine or GPU is too small for the job
    ├── Cancelled, LeaseLost    control flow of a running job, never shown as failures
    └── InternalError           anything unforeseen; the public sentence says nothing of its cause

Errors of adapters, bases and methods have a tree of their own; `to_public_error` gives both one record.

    TransferError
    ├── UnsupportedAdapter      a PEFT type, module or feature that cannot be transferred
    ├── MalformedAdapter        the adapter's own files contradict themselves
    ├── UnsupportedModel        an architecture that is not known, or weights that cannot be read
    ├── IncompatiblePair        this method cannot transfer this adapter between these bases
    ├── TrainingFailed          the loss is no longer a number, or there is no text to train on
    ├── GapTooSmall             training on the target gains too little to measure a share of it
    └── VerificationFailed      the result is not what it should be; nothing is published

The HTTP status of each code stands in one table, `service.problem_details`.
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
    """A base model whose architecture or weight format is not known here."""

    code = "unsupported_model"


class IncompatiblePair(TransferError):
    """The method's conditions do not hold for this pair; raised before any expensive work."""

    code = "incompatible_pair"


class TrainingFailed(TransferError):
    """Training cannot go on: a loss that is not finite, or nothing to train on. The settings can mend it."""

    code = "training_failed"


class GapTooSmall(TransferError):
    """A share of next to nothing would be noise."""

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
    """Somebody else committed to the output between our look and our commit."""

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
    """Measured on the request's examples, and the request asked to stop there."""

    code = "worse_than_target"


class NothingBetter(Rejected):
    """Of all that `auto` ran, nothing was measured to be worth publishing."""

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
    """Another worker owns the job now; whatever this one holds must be dropped."""

    code = "lease_lost"


class InternalError(RebaseError):
    code = "internal"


def escape_control_characters(text: str) -> str:
    """Text that may quote a stranger's file, with control characters spelled out; line breaks stay."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def to_public_error(exc: BaseException) -> PublicError:
    """The record for any exception; unforeseen ones keep their cause for the log only."""
    if isinstance(exc, RebaseError | TransferError):
        # No message is made of a secret; should a stranger's answer quote one, it ends here.
        message = scrub_long_secrets(escape_control_characters(exc.message))
        fields: dict[str, Any] = {"message": message, "hint": exc.hint, "pointer": exc.pointer}
        return PublicError(code=exc.code, retryable=getattr(exc, "retryable", False), **fields)
    return PublicError(
        code=InternalError.code,
        message="An unexpected error occurred; the cause is in the log under this job's id.",
        hint="Retry the job; if it fails again, report it with the job id.",
    )


class CommandFailed(RebaseError):
    """A command that cannot go on for a reason of its own: port in use, folder not empty, stack not ready."""

    code = "command_failed"
