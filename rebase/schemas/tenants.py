"""`/audit`, `/limits` and `/tenant-data`: what a tenant's admin may see and delete of it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel


class HubTokenOut(BaseModel):
    """Is a token stored, and since when; never the token."""

    stored: bool
    updated_at: datetime | None


class AuditOut(BaseModel):
    """One line. `client` is the caller's network; `key_id` is null for the service's own command line."""

    id: int
    at: datetime
    key_id: str | None
    action: str
    object: str
    outcome: str
    request_id: str | None
    client: str | None


class AuditListOut(BaseModel):
    """One page, newest first. Pass `next_before` as `before` for the next one; null on the last."""

    lines: list[AuditOut]
    next_before: int | None


class LimitsOut(BaseModel):
    """What the tenant may use; null is no limit."""

    max_running: int | None
    max_queued: int | None
    jobs_per_day: int | None
    requests_per_minute: int | None
