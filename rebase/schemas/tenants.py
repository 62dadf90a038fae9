"""Responses about a tenant: its Hub token, audit log and limits."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel


class HubTokenOut(BaseModel):
    """Whether a token is stored, and since when; never the token."""

    stored: bool
    updated_at: datetime | None


class AuditOut(BaseModel):
    """One audit event. `client` is the caller's network; `key_id` is null for the operator's command line."""

    id: int
    at: datetime
    key_id: str | None
    action: str
    object: str
    outcome: str
    request_id: str | None
    client: str | None


class AuditListOut(BaseModel):
    """One page, newest first. Pass `next_before` as `before` for the next page; null on the last one."""

    lines: list[AuditOut]
    next_before: int | None


class LimitsOut(BaseModel):
    """The tenant's limits; null means no limit."""

    max_running: int | None
    max_queued: int | None
    jobs_per_day: int | None
    requests_per_minute: int | None
