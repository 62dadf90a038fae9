"""Error responses: one table from code to status, one format (RFC 9457, `application/problem+json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rebase.errors import InternalError, RebaseError, TooManyRequests
from rebase.redaction import scrub_long_secrets
from rebase.schemas.field_errors import FieldError, Problem, to_field_errors

STATUS_BY_CODE: dict[str, int] = {
    "malformed_body": 400,
    "unauthorised": 401,
    "webhook_unauthorised": 401,
    "loopback_only": 403,
    "forbidden": 403,
    "not_found": 404,
    "webhook_not_set_up": 404,
    "method_not_allowed": 405,
    "idempotency_in_flight": 409,
    "state_conflict": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "request_invalid": 422,
    "not_available": 422,
    "idempotency_mismatch": 422,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "internal": 500,
    "settings_invalid": 503,
    "busy": 503,
    "not_migrated": 503,
}
_HEADERS_BY_CODE: dict[str, dict[str, str]] = {
    "busy": {"Retry-After": "2"},
    "not_migrated": {"Retry-After": "5"},
    "idempotency_in_flight": {"Retry-After": "1"},
    "unauthorised": {"WWW-Authenticate": "Bearer"},
    # The rest of an oversized body is not read, so the connection cannot be reused.
    "body_too_large": {"Connection": "close"},
}
# Statuses that the framework itself may return, with our code.
_CODE_BY_STATUS = {400: "malformed_body", 404: "not_found", 405: "method_not_allowed"}
_INTERNAL_ERROR_DETAIL = "An unexpected error occurred; the cause is in the log under this request's id."


def build_problem_response(
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    errors: Sequence[FieldError] = (),
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response for one error; its status and headers come from the tables above."""
    status = STATUS_BY_CODE.get(code, 500)
    all_headers = {**_HEADERS_BY_CODE.get(code, {}), **(headers or {})}
    body = Problem(
        type=f"urn:rebase:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        hint=hint,
        retryable=status in {409, 429, 503} and "Retry-After" in all_headers,
        pointers=[error.pointer for error in errors],
        errors=list(errors),
        request_id=request_id,
    )
    return Response(
        body.model_dump_json(),
        status,
        headers=all_headers,
        media_type="application/problem+json",
    )


def build_internal_error(request_id: str) -> Response:
    """The response for a bug; the cause is only logged."""
    return build_problem_response(InternalError.code, _INTERNAL_ERROR_DETAIL, request_id=request_id)


def _get_request_id(request: Request) -> str | None:
    value: str | None = request.scope.get("state", {}).get("request_id")
    return value


async def on_rebase_error(request: Request, exc: Exception) -> Response:
    """Our own errors contain everything the response needs."""
    assert isinstance(exc, RebaseError)
    if exc.code not in STATUS_BY_CODE:
        raise exc
    location: Literal["body", "query"] = "body" if request.method == "POST" else "query"
    errors = [FieldError(pointer=exc.pointer, detail=exc.message, location=location)] if exc.pointer else []
    headers = {"Retry-After": str(exc.retry_after_s)} if isinstance(exc, TooManyRequests) else None
    return build_problem_response(
        exc.code,
        exc.message,
        hint=exc.hint,
        errors=errors,
        request_id=_get_request_id(request),
        headers=headers,
    )


async def on_http_error(request: Request, exc: Exception) -> Response:
    """The framework's errors: no such path, wrong method, an unreadable body."""
    assert isinstance(exc, HTTPException)
    code = _CODE_BY_STATUS.get(exc.status_code, InternalError.code)
    return build_problem_response(
        code,
        f"{exc.detail}: {request.method} {scrub_long_secrets(request.url.path)}",
        request_id=_get_request_id(request),
        headers=exc.headers,
    )


async def on_invalid_request(request: Request, exc: Exception) -> Response:
    """Invalid fields, each with its pointer; or a body that is not JSON at all."""
    assert isinstance(exc, RequestValidationError)
    raw_errors: Sequence[Any] = exc.errors()
    first = raw_errors[0]
    if first["type"] == "json_invalid":
        position = first["loc"][-1]
        detail = f"The body is not valid JSON: {first['ctx']['error']} at position {position}."
        return build_problem_response("malformed_body", detail, request_id=_get_request_id(request))
    if isinstance(exc.body, bytes):
        return build_problem_response(
            "unsupported_media_type",
            "The body must be JSON.",
            hint="Send the header 'Content-Type: application/json'.",
            request_id=_get_request_id(request),
        )
    errors = to_field_errors(raw_errors, exc.body)
    detail = errors[0].detail if len(errors) == 1 else f"{len(errors)} fields are invalid."
    return build_problem_response(
        "request_invalid", detail, errors=errors, request_id=_get_request_id(request)
    )
