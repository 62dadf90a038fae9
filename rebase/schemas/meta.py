"""`/methods`, `/livez`, `/readyz`, `/metrics` and the way from `/` to the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    pass


class ReadyOut(BaseModel):
    """`broker` is what the last bell found; a dead one delays jobs but loses none, so it stops nothing."""

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    migration: str
    broker: Literal["ok", "unreachable", "unknown"]


class MethodOut(BaseModel):
    """One transfer method; `parameters` is a JSON schema."""

    name: str
    summary: str
    parameters: dict[str, Any]


class MethodListOut(BaseModel):
    """The catalogue."""

    methods: list[MethodOut]
