"""Responses of `/methods` and `/readyz`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    pass


class ReadyOut(BaseModel):
    """`broker` is the result of the last notification; a broken broker delays jobs but loses none."""

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
    """All transfer methods."""

    methods: list[MethodOut]
