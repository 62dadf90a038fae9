"""Per-tenant concurrency limits: no tenant runs more jobs at once than its limit allows.

A worker cannot claim a job beyond the limit: the job stays queued, and workers are notified again when one of
its tenant's jobs stops running. Tenants without a limit cost one primary-key look-up per claim and per end of
a job. Internal jobs for subscriptions are short, so they do not count against the tenant's own jobs; but
there can be many of them, so the same limit applies to them separately.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from rebase.schemas.states import LEASED, JobState
from rebase.store.job_events import campaign_paused, enqueue_notifications, next_notification_at
from rebase.store.limits import LIMIT_FIELDS as LIMITS
from rebase.store.limits import Limits, load_limits, merge_limits
from rebase.store.records import INTERNAL_KINDS
from rebase.store.repository import lock_tenant
from rebase.store.tables.jobs import Job, Outbox
from rebase.store.tables.tenants import TenantLimits

_LEASED = sorted(state.value for state in LEASED)


def build_concurrency_condition(
    connection: Connection, job_id: str, defaults: Limits
) -> ColumnElement[bool] | None:
    """SQL condition for claiming this job: its tenant is below the limit. None: no condition.

    Claims for one tenant are serialised until their transactions end, so that two of them cannot both take
    the last slot.
    """
    columns = [getattr(TenantLimits, name) for name in LIMITS]
    query = (
        select(Job.tenant_id, Job.kind, *columns)
        .join(TenantLimits, TenantLimits.tenant_id == Job.tenant_id, isouter=True)
        .where(Job.id == job_id)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    max_running = merge_limits(defaults, row._mapping).max_running
    if max_running is None:
        return None
    lock_tenant(connection, "turns", row.tenant_id)
    other = Job.__table__.alias("other")
    running = (
        select(func.count())
        .select_from(other)
        .where(other.c.tenant_id == row.tenant_id)
        .where(
            other.c.state.in_(_LEASED), _same_kind_group(other.c.kind, internal=row.kind in INTERNAL_KINDS)
        )
        .scalar_subquery()
    )
    return running < max_running


def notify_waiting(connection: Connection, tenant_id: str, defaults: Limits, now: datetime) -> int:
    """Notify workers of as many of the tenant's oldest queued jobs as may start now; returns how many.

    Call it in the transaction in which one of the tenant's jobs stops running. A job whose notification is
    still in the outbox is skipped; one already sent but not yet claimed is notified again, which is harmless.
    """
    max_running = load_limits(connection, tenant_id, defaults).max_running
    if max_running is None:
        return 0
    lock_tenant(connection, "turns", tenant_id)
    return sum(
        _notify_group(connection, tenant_id, max_running, now, internal=internal)
        for internal in (False, True)
    )


def _notify_group(
    connection: Connection, tenant_id: str, max_running: int, now: datetime, *, internal: bool
) -> int:
    """Notify for the tenant's own jobs, or for the internal jobs of its subscriptions."""
    in_group = (Job.tenant_id == tenant_id, _same_kind_group(Job.kind, internal=internal))
    leased = select(func.count()).select_from(Job).where(*in_group, Job.state.in_(_LEASED))
    running = connection.scalar(leased) or 0
    if running >= max_running:
        return 0
    queued = (
        select(Job.id)
        .where(*in_group, Job.state == JobState.QUEUED.value, ~campaign_paused())
        .order_by(Job.id)
    )
    ids = connection.scalars(queued.limit(max_running - running)).all()
    notified = set(connection.scalars(select(Outbox.job_id).where(Outbox.job_id.in_(ids))))
    waiting = [job_id for job_id in ids if job_id not in notified]
    if waiting:
        # If this notification is lost, the scheduler repeats it after 30 seconds instead of an hour.
        connection.execute(
            update(Job).where(Job.id.in_(waiting)).values(rings=0, ring_after=next_notification_at(now, 0))
        )
        enqueue_notifications(connection, waiting, now)
    return len(waiting)


def _same_kind_group(
    kind: ColumnElement[str] | InstrumentedAttribute[str], *, internal: bool
) -> ColumnElement[bool]:
    return kind.in_(INTERNAL_KINDS) if internal else kind.not_in(INTERNAL_KINDS)
