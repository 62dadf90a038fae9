"""Faults on demand and a log of requests, as a layer around the app."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Kind = Literal["status", "hang", "drop", "drop_after", "wrong_range", "ignore_range", "truncate"]


@dataclass
class Fault:
    """What happens to the next `times` requests whose 'METHOD /path' matches `where`.

    status: answer `status` with `headers`, the app never sees the request · hang: wait `seconds` first ·
    drop: close the connection, the app never sees the request · drop_after: the app does its work, the
    answer is lost · wrong_range: a Content-Range that was not asked for · ignore_range: 200 with everything ·
    truncate: the announced length, but half of the body.
    """

    where: str
    kind: Kind = "status"
    times: int = 1
    status: int = 500
    seconds: float = 5.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Logged:
    """One request as it came in."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    host: str


class FaultLayer:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.faults: list[Fault] = []
        self.requests: list[Logged] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log, then do harm or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode().lower(): value.decode() for key, value in scope["headers"]}
        query = scope["query_string"].decode()
        self.requests.append(Logged(scope["method"], scope["path"], query, headers, headers.get("host", "")))
        fault = self._next(f"{scope['method']} {scope['path']}")
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._harm(fault, scope, receive, send)

    def _next(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.where, request):
                fault.times -= 1
                return fault
        return None

    async def _harm(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.kind == "status":
            headers = [(key.encode(), value.encode()) for key, value in fault.headers.items()]
            await send({"type": "http.response.start", "status": fault.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"out of order"})
        elif fault.kind == "hang":
            await asyncio.sleep(fault.seconds)
            await self._app(scope, receive, send)
        elif fault.kind in ("drop", "drop_after"):
            if fault.kind == "drop_after":
                await self._app(scope, receive, _nowhere)
            await _half_an_answer(send)
        elif fault.kind == "ignore_range":
            kept = [(key, value) for key, value in scope["headers"] if key.lower() != b"range"]
            await self._app({**scope, "headers": kept}, receive, send)
        else:
            await self._app(scope, receive, _spoiled(fault.kind, send))


async def _nowhere(message: Message) -> None:
    """Swallow an answer."""


async def _half_an_answer(send: Send) -> None:
    """Announce more than is sent: the server then closes the connection, as if it had broken."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"{"})


def _spoiled(kind: str, send: Send) -> Send:
    async def spoil(message: Message) -> None:
        if kind == "wrong_range" and message["type"] == "http.response.start":
            headers: list[Any] = [pair for pair in message["headers"] if pair[0].lower() != b"content-range"]
            message = {**message, "headers": [*headers, (b"content-range", b"bytes 1-2/3")]}
        if kind == "truncate" and message["type"] == "http.response.body":
            body = message.get("body", b"")
            message = {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": False}
        await send(message)

    return spoil
