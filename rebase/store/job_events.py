"""Events, notifications and transitions of jobs, written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select

from rebase.errors import PublicError
from rebase.schemas.states import CampaignDbState, JobState
from rebase.store.audit import AuditContext
from rebase.store.deliveries import enqueue_delivery
from rebase.store.limits import NO_LIMITS, Limits
from rebase.store.tables.jobs import Job, JobEvent, Outbox
from rebase.store.tables.releases import Campaign, CampaignJob

FIRST_RENOTIFY_S = 30.0
MAX_RENOTIFY_S = 3600.0


@dataclass(frozen=True, slots=True)
class SubmissionContext:
    """What accompanies a submission: the tenant's limits, the actor for the audit log (None: no audit event),
    and a function that encrypts the request's Hub token for a job id."""

    limits: Limits = NO_LIMITS
    audit: AuditContext | None = None
    encrypt_token: Callable[[str], str] | None = None


NO_CONTEXT = SubmissionContext()


def add_event(
    connection: Connection, job_id: str, at: datetime, event_type: str, data: dict[str, Any] | None = None
) -> None:
    """Append one event to a job's history, in the caller's transaction."""
    connection.execute(insert(JobEvent).values(job_id=job_id, at=at, type=event_type, data=data or {}))


def record_transition(
    connection: Connection, job_id: str, at: datetime, state: JobState, **data: Any
) -> None:
    """Append a state transition: type `state`, data `{"state": …}` plus further details.

    Every transition calls this after updating the job's row, so callback deliveries are enqueued here.
    """
    add_event(connection, job_id, at, "state", {"state": state.value, **data})
    enqueue_delivery(connection, job_id, at, state)


def has_started_publishing(connection: Connection, job_id: str) -> bool:
    """Did any attempt reach publishing? Then a commit may exist, even if its worker died."""
    is_publishing = JobEvent.data["state"].as_string() == JobState.PUBLISHING.value
    query = select(JobEvent.id).where(JobEvent.job_id == job_id, JobEvent.type == "state", is_publishing)
    return connection.scalar(query.limit(1)) is not None


def enqueue_notifications(connection: Connection, job_ids: Iterable[str], at: datetime) -> None:
    """Add outbox rows, so that workers are notified of these jobs."""
    rows = [{"job_id": job_id, "next_at": at, "created_at": at, "tries": 0} for job_id in job_ids]
    if rows:
        connection.execute(insert(Outbox), rows)


def campaign_paused() -> ColumnElement[bool]:
    """SQL condition for the enclosing statement: the job belongs to a paused campaign."""
    return (
        select(CampaignJob.job_id)
        .join(Campaign, Campaign.id == CampaignJob.campaign_id)
        .where(CampaignJob.job_id == Job.id, Campaign.state == CampaignDbState.PAUSED.value)
        .correlate(Job)
        .exists()
    )


def next_notification_at(at: datetime, notifications: int) -> datetime:
    """When to repeat the notification of an unclaimed queued job: 30 s, doubling, at most an hour."""
    return at + timedelta(seconds=min(MAX_RENOTIFY_S, FIRST_RENOTIFY_S * 2 ** min(notifications, 10)))


def build_queued_values(at: datetime) -> dict[str, Any]:
    """Column values of a job that is queued (again); add its notification in the same transaction."""
    return {
        "state": JobState.QUEUED.value,
        "lease_owner": None,
        "lease_expires_at": None,
        "not_before": None,
        "ring_after": next_notification_at(at, 0),
        "rings": 0,
        "phase": None,
        "progress_done": None,
        "progress_total": None,
        "progress_unit": None,
        "progress_eta_s": None,
        "updated_at": at,
    }


CANCELLED_ERROR = PublicError(code="cancelled", message="The job was cancelled.")
