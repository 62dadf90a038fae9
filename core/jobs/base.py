"""What the three sides of the job store share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, select

from core.audit import Trail
from core.callbacks.outgoing import add_delivery
from core.clock import Clock, utcnow
from core.db import Database
from core.limits import NO_LIMITS, Limits
from core.releases.states import Stored
from core.states import JobState
from core.tables.jobs import Job, JobEvent, Outbox
from core.tables.releases import Campaign, CampaignJob

FIRST_RING_AGAIN_S = 30.0
LAST_RING_AGAIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class Extras:
    """What comes with a submission beside the request: what the tenant may use, who is to be named in the
    audit log (None: nobody), and a Hub token, as the function that seals it for a job's id."""

    limits: Limits = NO_LIMITS
    trail: Trail | None = None
    seal: Callable[[str], str] | None = None


PLAIN = Extras()


class StoreBase:
    """A database and a clock. `max_attempts` is how often a job may be claimed before it fails for good;
    `limits` is what tenants without a row of their own may use."""

    def __init__(
        self, db: Database, clock: Clock = utcnow, *, max_attempts: int = 3, limits: Limits = NO_LIMITS
    ) -> None:
        self.db = db
        self.clock = clock
        self.max_attempts = max_attempts
        self.limits = limits


def add_event(
    connection: Connection, job_id: str, at: datetime, type_: str, data: dict[str, Any] | None = None
) -> None:
    """Append one row to a job's history, in the caller's transaction."""
    connection.execute(insert(JobEvent).values(job_id=job_id, at=at, type=type_, data=data or {}))


def add_move(connection: Connection, job_id: str, at: datetime, state: JobState, **data: Any) -> None:
    """Append a state move: type `state`, data `{"state": …}` with what else there is to say.

    Every move passes here, after the job's row was changed: so this is where callbacks are written.
    """
    add_event(connection, job_id, at, "state", {"state": state.value, **data})
    add_delivery(connection, job_id, at, state)


def began_publishing(connection: Connection, job_id: str) -> bool:
    """Did any attempt come as far as publishing? Then a commit may stand, whatever became of its worker."""
    published = JobEvent.data["state"].as_string() == JobState.PUBLISHING.value
    query = select(JobEvent.id).where(JobEvent.job_id == job_id, JobEvent.type == "state", published)
    return connection.scalar(query.limit(1)) is not None


def add_bells(connection: Connection, job_ids: Iterable[str], at: datetime) -> None:
    """Ask the relay to ring for these jobs."""
    rows = [{"job_id": job_id, "next_at": at, "created_at": at, "tries": 0} for job_id in job_ids]
    if rows:
        connection.execute(insert(Outbox), rows)


def lock_tenant(connection: Connection, purpose: str, tenant_id: str) -> None:
    """Until the transaction ends, nobody else gets past here for this purpose and tenant. An advisory lock;
    SQLite has one writer anyway."""
    if connection.dialect.name != "postgresql":
        return
    digest = hashlib.sha256(f"{purpose}\0{tenant_id}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    connection.execute(select(func.pg_advisory_xact_lock(number)))


def is_paused() -> ColumnElement[bool]:
    """Does the job of the statement around it belong to a campaign that is paused?"""
    return (
        select(CampaignJob.job_id)
        .join(Campaign, Campaign.id == CampaignJob.campaign_id)
        .where(CampaignJob.job_id == Job.id, Campaign.state == Stored.PAUSED.value)
        .correlate(Job)
        .exists()
    )


def ring_again_at(at: datetime, rings: int) -> datetime:
    """When to ring once more for a queued job that nobody takes: 30 s, doubling, at most an hour."""
    return at + timedelta(seconds=min(LAST_RING_AGAIN_S, FIRST_RING_AGAIN_S * 2 ** min(rings, 10)))


def queued_values(at: datetime) -> dict[str, Any]:
    """Columns of a job that goes (back) into the queue; its bell must be added in the same transaction."""
    return {
        "state": JobState.QUEUED.value,
        "lease_owner": None,
        "lease_expires_at": None,
        "not_before": None,
        "ring_after": ring_again_at(at, 0),
        "rings": 0,
        "phase": None,
        "progress_done": None,
        "progress_total": None,
        "progress_unit": None,
        "progress_eta_s": None,
        "updated_at": at,
    }
