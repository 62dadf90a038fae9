"""From pydantic's error locations to JSON pointers (RFC 6901) into the body that the client sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

_MISSING_FIELD = {"missing", "union_tag_not_found"}


class FieldError(BaseModel):
    """One field and what is wrong with it. For a query, header or path parameter the pointer is its name."""

    pointer: str
    detail: str
    location: Literal["body", "query", "header", "path"] = "body"


def field_errors(errors: Iterable[Mapping[str, Any]], body: Any) -> list[FieldError]:
    """Pydantic's errors as pointers with sentences."""
    return [_field_error(error, body) for error in errors]


def _field_error(error: Mapping[str, Any], body: Any) -> FieldError:
    place, *rest = error["loc"]
    known: Literal["body", "query", "header", "path"] = (
        place if place in {"query", "header", "path"} else "body"
    )
    parts = _parts(rest, body, missing=error["type"] in _MISSING_FIELD) if known == "body" else rest
    pointer = "".join(f"/{_escaped(part)}" for part in parts)
    sentence = str(error["msg"]).removeprefix("Value error, ")
    return FieldError(pointer=pointer, detail=sentence, location=known)


def _parts(location: Sequence[str | int], body: Any, *, missing: bool) -> list[str | int]:
    """The parts of a location that exist in the body. Tags of unions stand in locations, not in bodies."""
    parts: list[str | int] = []
    here = body
    for index, part in enumerate(location):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, Sequence) and not isinstance(here, str) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        elif not (missing and index == len(location) - 1):
            continue
        parts.append(part)
    return parts


def _escaped(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
