"""The outermost middleware: request id, loopback rule, body limit, internal errors, metrics, one log line.

Plain ASGI, because it must add only microseconds to a request.
"""

from __future__ import annotations

import ipaddress
import re
import time
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rebase.logging import bind_log_context, get_logger
from rebase.store.repository import new_id
from service.metrics import Metrics
from service.problem_details import build_internal_error, build_problem_response

log = get_logger("http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})  # polled every few seconds by machines


class RequestMiddleware:
    """Wraps the whole app. `local_only`: reject requests from other machines."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int, local_only: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.max_body_bytes = max_body_bytes
        self.local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes, such as lifespan, pass unchanged."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_request_id = headers.get("x-request-id", "")
        request_id = client_request_id if _REQUEST_ID.fullmatch(client_request_id) else new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        tracked_send = _TrackedSend(send, scope["state"])
        started = time.perf_counter()
        with bind_log_context(request_id=request_id):
            try:
                await self._serve(scope, headers, receive, tracked_send)
            except Exception:
                log.exception("unforeseen", method=scope["method"], path=scope["path"])
                if tracked_send.status is None:
                    await build_internal_error(request_id)(scope, receive, tracked_send)
            finally:
                self._record_request(scope, tracked_send.status, time.perf_counter() - started)

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if self.local_only and not is_local_request(scope, headers):
            await self._build_refusal(
                scope, "loopback_only", "Without API keys, only requests from this machine are allowed."
            )(scope, receive, send)
            return
        if "content-length" in headers or "transfer-encoding" in headers:
            body = await self._read_body(headers, receive)
            if body is None:
                detail = f"A request body may have at most {self.max_body_bytes} bytes."
                await self._build_refusal(scope, "body_too_large", detail)(scope, receive, send)
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    async def _read_body(self, headers: Headers, receive: Receive) -> Message | None:
        """The whole body as one message, with or without Content-Length; None if it is too large."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            return None
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message  # the client disconnected; whoever reads the body will see it
            body += message.get("body", b"")
            if len(body) > self.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return {"type": "http.request", "body": body, "more_body": False}

    def _build_refusal(self, scope: Scope, code: str, detail: str) -> Response:
        return build_problem_response(code, detail, request_id=scope["state"]["request_id"])

    def _record_request(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.record_request(scope["method"], route, status or 0, seconds)
        write = log.debug if route in _QUIET_ROUTES else log.info
        # The path only: a query may contain private data.
        write(
            "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 2)
        )


class _TrackedSend:
    """A `send` that remembers the status and adds the request id and the headers in `state["headers"]` at
    that time."""

    def __init__(self, send: Send, state: dict[str, Any]) -> None:
        self.status: int | None = None
        self._send = send
        self._state = state

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._state["request_id"]
            headers.update(self._state.get("headers", {}))
        await self._send(message)


def _replay(body_message: Message, receive: Receive) -> Receive:
    """A `receive` that returns the body already read, then whatever follows."""
    pending: list[Message] = [body_message]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def is_local_request(scope: Scope | dict[str, Any], headers: Headers) -> bool:
    """Whether the peer is on this machine and addressed it by a local name.

    The name matters because of DNS rebinding: a web page can make a local browser call us under the page's
    own domain, resolved to 127.0.0.1. Public names contain a dot, local ones do not. If the page uses our
    own name, the browser's Origin header says where the page is from.
    """
    client = scope.get("client")
    if client is not None and not _is_local_peer(client[0]):
        return False
    return _is_local_name(headers.get("host", "localhost")) and _is_local_origin(headers.get("origin"))


def _is_local_origin(origin: str | None) -> bool:
    """`http://localhost:8000`, or none (not a browser). `null` is a page that hides its origin."""
    if origin is None:
        return True
    _, separator, host = origin.partition("://")
    return bool(separator) and _is_local_name(host)


@lru_cache(maxsize=1024)
def _is_local_name(host: str) -> bool:
    name = host[1:].split("]", maxsplit=1)[0] if host.startswith("[") else host.split(":", maxsplit=1)[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return "." not in name or name.endswith(".localhost")


@lru_cache(maxsize=1024)
def _is_local_peer(address: str) -> bool:
    """A loopback address, or none, as for peers of a Unix socket."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)
