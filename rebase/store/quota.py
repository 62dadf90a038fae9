"""How many more jobs a tenant may submit, checked in the transaction that inserts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, select, union_all

from rebase.errors import QuotaExceeded
from rebase.schemas.states import TERMINAL, JobState
from rebase.store.limits import Limits
from rebase.store.records import INTERNAL_KINDS
from rebase.store.repository import lock_tenant
from rebase.store.tables.jobs import Job
from rebase.store.tables.tenants import CountedJob

DAY = timedelta(hours=24)
_IS_OPEN = Job.state.in_(sorted(state.value for state in JobState if state not in TERMINAL))
_IS_CLIENT_JOB = Job.kind.not_in(INTERNAL_KINDS)  # submitted by the tenant itself
_RETRY_AFTER_S = 30  # after this a job may have ended


@dataclass(frozen=True, slots=True)
class Quota:
    """`remaining` more jobs are allowed; `error` is raised for the next one."""

    remaining: float
    error: QuotaExceeded | None = None


def load_quota(
    connection: Connection, tenant_id: str, limits: Limits, now: datetime, *, is_new: bool = True
) -> Quota:
    """The tenant's remaining quota, locked against concurrent submissions until the transaction ends.

    `is_new` False: an existing job is queued again, which does not count towards the daily limit. Costs one
    count of open jobs and one of at most a day's limit of the newest jobs; nothing without limits.
    """
    if not limits.has_job_limits:
        return Quota(math.inf)
    lock_tenant(connection, "room", tenant_id)
    quotas = [Quota(math.inf)]
    if limits.max_queued is not None:
        quotas.append(_load_open_quota(connection, tenant_id, limits.max_queued))
    if limits.jobs_per_day is not None and is_new:
        quotas.append(_load_daily_quota(connection, tenant_id, limits.jobs_per_day, now))
    return min(quotas, key=lambda quota: quota.remaining)


def require_quota(
    connection: Connection,
    tenant_id: str,
    limits: Limits,
    now: datetime,
    *,
    is_new: bool = True,
    count: int = 1,
) -> None:
    """Raises QuotaExceeded unless `count` more jobs are allowed."""
    quota = load_quota(connection, tenant_id, limits, now, is_new=is_new)
    if quota.remaining < count and quota.error is not None:
        raise quota.error


def delete_jobs(connection: Connection, ids: Sequence[str], now: datetime) -> None:
    """Delete ended jobs with their dependent rows. Those of the last 24 hours still count as submitted, or a
    tenant could evade its limit by deleting its data."""
    # Only the transaction that deletes a row gets it back, so concurrent deletions count it once.
    deleted = connection.execute(
        delete(Job).where(Job.id.in_(ids)).returning(Job.id, Job.tenant_id, Job.kind, Job.created_at)
    )
    counted = [
        {"id": row.id, "tenant_id": row.tenant_id, "created_at": row.created_at}
        for row in deleted
        if row.kind not in INTERNAL_KINDS and row.created_at > now - DAY
    ]
    if counted:
        connection.execute(insert(CountedJob), counted)


def _load_open_quota(connection: Connection, tenant_id: str, max_jobs: int) -> Quota:
    query = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, _IS_OPEN, _IS_CLIENT_JOB)
    error = QuotaExceeded(
        f"This tenant has reached its limit of {max_jobs} unfinished jobs.",
        hint="Wait until some have finished, or cancel some.",
        retry_after_s=_RETRY_AFTER_S,
    )
    return Quota(max_jobs - (connection.scalar(query) or 0), error)


def _load_daily_quota(connection: Connection, tenant_id: str, max_jobs: int, now: datetime) -> Quota:
    """Read at most `max_jobs` of the newest jobs, in index order, then as many deleted ones. One statement,
    so that a job being deleted concurrently is counted exactly once."""
    existing = select(Job.id, Job.created_at).where(Job.tenant_id == tenant_id, _IS_CLIENT_JOB)
    deleted = select(CountedJob.id, CountedJob.created_at).where(CountedJob.tenant_id == tenant_id)
    submitted = union_all(
        select(existing.order_by(Job.id.desc()).limit(max_jobs).subquery()),
        select(deleted.order_by(CountedJob.id.desc()).limit(max_jobs).subquery()),
    ).subquery()
    newest = select(submitted.c.created_at).order_by(submitted.c.id.desc()).limit(max_jobs).subquery()
    in_last_day = newest.c.created_at > now - DAY
    count, oldest = connection.execute(
        select(func.count(), func.min(newest.c.created_at)).select_from(newest).where(in_last_day)
    ).one()
    wait_s = (oldest + DAY - now).total_seconds() if oldest is not None else 0.0
    error = QuotaExceeded(
        f"This tenant has reached its limit of {max_jobs} submitted jobs within 24 hours.",
        hint="Wait, or ask the operator of this service for a higher limit.",
        retry_after_s=max(1, math.ceil(wait_s)),
    )
    return Quota(max_jobs - count, error)
