"""Translates every error of the Hub client into one of `rebase.errors`."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import errors as hf

from rebase.errors import (
    DiskFull,
    FileMissing,
    HubError,
    HubUnauthorized,
    HubUnavailable,
    OutputForbidden,
    ParentMoved,
    RebaseError,
    RepoGated,
    RepoNotFound,
    RevisionNotFound,
)

_DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TOKEN_SOURCES = "(X-Hub-Token, PUT /hub-token, or REBASE_HUB_TOKEN for the tenant 'default')"  # noqa: S105
_TOKEN_HINT = f"Check the spelling, or use a token that has access {_TOKEN_SOURCES}."
WRITE_HINT = f"Use a token with write access to that owner {_TOKEN_SOURCES}, or choose another output."

# Hub error → our error, message (about {what}) and hint. Error types take precedence over statuses, and gated
# repos over missing ones, because the client's GatedRepoError is a subclass of RepositoryNotFoundError.
_ErrorRow = tuple[type[HubError], str, str | None]
_BY_TYPE: tuple[tuple[type[Exception], _ErrorRow], ...] = (
    (
        hf.GatedRepoError,
        (
            RepoGated,
            "{what} is gated, and the token in use does not have access.",
            f"Request access on its Hub page, and use a token of that account {_TOKEN_SOURCES}.",
        ),
    ),
    (hf.DisabledRepoError, (RepoNotFound, "{what} has been disabled on the Hub.", None)),
    (
        hf.RevisionNotFoundError,
        (RevisionNotFound, "{what} is not on the Hub.", "Use a branch, a tag or a full commit sha."),
    ),
    (hf.EntryNotFoundError, (FileMissing, "{what} does not exist on the Hub.", None)),
    (hf.RepositoryNotFoundError, (RepoNotFound, "{what} is not on the Hub, or is private.", _TOKEN_HINT)),
)
_BY_STATUS: dict[int, _ErrorRow] = {
    401: (HubUnauthorized, "{what}: the Hub does not accept the token in use.", _TOKEN_HINT),
    403: (HubUnauthorized, "The token in use has no permission to read {what}.", _TOKEN_HINT),
    404: (RepoNotFound, "{what} is not on the Hub, or is private.", _TOKEN_HINT),
    412: (
        ParentMoved,
        "{what} has changed since it was last checked.",
        "Check what was added there, then convert again.",
    ),
}
_WRITE_FORBIDDEN: _ErrorRow = (
    OutputForbidden,
    "The token in use has no permission to write to {what}.",
    WRITE_HINT,
)


@contextmanager
def hub_errors(what: str, *, writing: bool = False) -> Iterator[None]:
    """Translate every error raised in the body. `what` is the name of the repo or file in messages."""
    try:
        yield
    except Exception as exc:
        translated = translate_error(exc, what, writing=writing)
        if translated is exc:
            raise
        raise translated from exc


def translate_error(exc: Exception, what: str, *, writing: bool = False) -> Exception:
    """The error of `rebase.errors` for one of the client's; `exc` itself if the Hub is not the cause."""
    cause = exc.__cause__
    # Two of the client's errors say only that a download or an upload failed; the reason is in their cause.
    if isinstance(exc, hf.LocalEntryNotFoundError | RuntimeError) and isinstance(cause, Exception):
        return translate_error(cause, what, writing=writing)
    if isinstance(exc, RebaseError):
        return exc
    if isinstance(exc, hf.HfHubHTTPError):
        return _translate_response(exc, what, writing)
    if isinstance(exc, OSError | httpx2.HTTPError):
        return _translate_system_error(exc, what)
    return _translate_invalid_response(exc, what)


def _translate_response(exc: hf.HfHubHTTPError, what: str, writing: bool) -> HubError:
    status = exc.response.status_code
    row = next((row for kind, row in _BY_TYPE if isinstance(exc, kind)), None) or _BY_STATUS.get(status)
    if status == 403 and writing and not isinstance(exc, hf.GatedRepoError):
        row = _WRITE_FORBIDDEN
    if row is not None:
        kind, message, hint = row
        return kind(message.format(what=what), hint=hint)
    if status in (408, 425, 429) or status >= 500:
        return _make_unavailable_error(what, f"it responded with status {status}")
    detail = f": {exc.server_message[:200]}" if exc.server_message else ""
    return HubError(f"{what}: the Hub rejected the request with status {status}{detail}.")


def _translate_system_error(exc: Exception, what: str) -> RebaseError:
    if isinstance(exc, hf.OfflineModeIsEnabled):
        return HubUnavailable(
            f"{what}: the Hub client is in offline mode.", hint="Unset HF_HUB_OFFLINE on the worker."
        )
    if isinstance(exc, OSError) and exc.errno in _DISK_FULL_ERRNOS:
        return DiskFull(
            f"No space left on the worker while fetching {what}.",
            hint="Free disk space on the machine that runs the worker; the job can then be retried.",
        )
    return _make_unavailable_error(what, "the connection failed or took too long")


def _translate_invalid_response(exc: Exception, what: str) -> Exception:
    if isinstance(exc, hf.HFValidationError):
        return RepoNotFound(f"{what} is not a valid name on the Hub.")
    if isinstance(exc, ValueError) and isinstance(exc.__cause__, hf.BadRequestError):
        return HubError(f"{what}: the Hub does not accept the metadata of README.md.")
    if isinstance(exc, ValueError | KeyError | TypeError):  # a response that violates the API
        return HubError(f"{what}: the Hub's response is not valid ({type(exc).__name__}).")
    return exc


def _make_unavailable_error(what: str, reason: str) -> HubUnavailable:
    return HubUnavailable(
        f"{what}: the Hub could not be reached; {reason}.", hint="This is usually temporary; retry later."
    )
