"""Errors of the client.

ClientError
├── ServiceUnreachable   no connection, or the response is not from a Rebase service
└── ServiceError         the service returned problem+json; `error` is its record
"""

from __future__ import annotations

from typing import Any

import httpx2

from rebase.errors import PublicError


class ClientError(Exception):
    """Base class; `error` is the public record."""

    def __init__(self, error: PublicError) -> None:
        super().__init__(error.message)
        self.error = error


class ServiceUnreachable(ClientError):
    """No connection, a time-out, or a response that is not from a Rebase service."""

    def __init__(self, base_url: str, reason: str) -> None:
        super().__init__(
            PublicError(
                code="service_unreachable",
                message=f"No Rebase service answers at {base_url} ({reason}).",
                hint="Start one with `rebase up`, or name another with --url or REBASE_URL.",
                retryable=True,
            )
        )


class ServiceError(ClientError):
    """An RFC 9457 problem. `status` is the HTTP status, `errors` the per-field entries of a 422."""

    def __init__(self, status: int, error: PublicError, errors: list[dict[str, Any]]) -> None:
        super().__init__(error)
        self.status = status
        self.errors = errors


def parse_problem(response: httpx2.Response) -> ClientError:
    """The typed error for a response with a 4xx or 5xx status."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        return ServiceUnreachable(
            str(response.url.copy_with(raw_path=b"/")),
            f"something answered {response.status_code} without a problem record",
        )
    fields = [entry for entry in body.get("errors") or [] if isinstance(entry, dict)]
    error = PublicError(
        code=body["code"],
        message=_build_message(body, fields),
        hint=body.get("hint"),
        pointer=fields[0].get("pointer") if fields else None,
        retryable=bool(body.get("retryable")),
    )
    return ServiceError(response.status_code, error, fields)


def _build_message(body: dict[str, Any], fields: list[dict[str, Any]]) -> str:
    """The problem's detail, with the location of each invalid field."""
    lines = [f"{field.get('pointer')}: {field.get('detail')}" for field in fields]
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([str(body.get("detail") or body["code"]), *lines])
