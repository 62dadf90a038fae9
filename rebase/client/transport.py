"""The client's HTTP layer: one connection pool, typed errors, validated responses."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from rebase.client.errors import ServiceUnreachable, parse_problem
from rebase.errors import RequestInvalid

_LOOPBACK = re.compile(r"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?(/|$)", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

ModelT = TypeVar("ModelT", bound=BaseModel)


class Transport:
    """Connects to one service. Every call raises ServiceError or ServiceUnreachable."""

    def __init__(self, base_url: str, api_key: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=5.0),
            trust_env=not _LOOPBACK.match(self.base_url),  # proxies cannot reach this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except (httpx2.TransportError, httpx2.InvalidURL) as exc:
            raise ServiceUnreachable(self.base_url, describe_failure(exc)) from exc
        if not response.is_success:
            raise parse_problem(response)
        return response

    def _parse_object(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ServiceUnreachable(self.base_url, "its answer is not one of this API's")
        return body

    def _parse(self, model: type[ModelT], response: httpx2.Response) -> ModelT:
        try:
            return model.model_validate(self._parse_object(response))
        except ValidationError as exc:
            raise ServiceUnreachable(self.base_url, "its answer is not one of this API's") from exc


def to_path_segment(id_: str, what: str = "a job") -> str:
    """An id as one path segment; any other text could address another endpoint."""
    if not _ID.fullmatch(id_):
        raise RequestInvalid(f"{id_!r} is not {what} id.", pointer="/id")
    return id_


def describe_failure(exc: Exception) -> str:
    """A short description of a failed connection."""
    return str(exc) or type(exc).__name__
