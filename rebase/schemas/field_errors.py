"""Problem responses, and pydantic error locations as JSON pointers (RFC 6901) into the client's body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """The body of every error response. `code` is stable; `pointers` are JSON pointers to its fields."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    retryable: bool = False
    pointers: list[str] = Field(default_factory=list)
    errors: list[FieldError] = Field(default_factory=list)
    request_id: str | None = None


_MISSING_FIELD = {"missing", "union_tag_not_found"}


class FieldError(BaseModel):
    """One invalid field. For a query, header or path parameter the pointer is its name."""

    pointer: str
    detail: str
    location: Literal["body", "query", "header", "path"] = "body"


def to_field_errors(errors: Iterable[Mapping[str, Any]], body: Any) -> list[FieldError]:
    """Pydantic's errors as field errors with pointers and messages."""
    return [_to_field_error(error, body) for error in errors]


def _to_field_error(error: Mapping[str, Any], body: Any) -> FieldError:
    root, *path = error["loc"]
    location: Literal["body", "query", "header", "path"] = (
        root if root in {"query", "header", "path"} else "body"
    )
    parts = (
        _find_body_path(path, body, missing=error["type"] in _MISSING_FIELD) if location == "body" else path
    )
    pointer = "".join(f"/{_escape_part(part)}" for part in parts)
    sentence = str(error["msg"]).removeprefix("Value error, ")
    return FieldError(pointer=pointer, detail=sentence, location=location)


def _find_body_path(location: Sequence[str | int], body: Any, *, missing: bool) -> list[str | int]:
    """The parts of a location that exist in the body; locations also contain union tags, bodies do not."""
    parts: list[str | int] = []
    node = body
    for index, part in enumerate(location):
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif not (missing and index == len(location) - 1):
            continue
        parts.append(part)
    return parts


def _escape_part(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
