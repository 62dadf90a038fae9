"""Whose turn it is: no tenant has more jobs running at once than its limit says.

A worker that comes for a job beyond the limit finds nothing to take: the job stays queued, and is rung again
when one of its tenant's jobs lets go of its worker. Tenants without a limit cost one look-up by primary key
per claim and per end. The service's own work for subscriptions is short, so it takes no place of the tenant's
jobs; but there may be much of it, so the same limit holds for it by itself.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from core.jobs.base import add_bells, is_paused, lock_tenant, ring_again_at
from core.jobs.records import OWN_KINDS
from core.limits import NAMES as LIMITS
from core.limits import Limits, limits_of, over
from core.states import LEASED, JobState
from core.tables.jobs import Job, Outbox
from core.tables.tenants import TenantLimits

_LEASED = sorted(state.value for state in LEASED)


def turn_of(connection: Connection, job_id: str, defaults: Limits) -> ColumnElement[bool] | None:
    """A condition for the claim of this job: its tenant has room. None: nothing to fulfil.

    Claims for one tenant come one after the other until their transactions end, so that two of them cannot
    both take the last place.
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
    most = over(defaults, row._mapping).max_running
    if most is None:
        return None
    lock_tenant(connection, "turns", row.tenant_id)
    other = Job.__table__.alias("other")
    running = (
        select(func.count())
        .select_from(other)
        .where(other.c.tenant_id == row.tenant_id)
        .where(other.c.state.in_(_LEASED), _alike(other.c.kind, own=row.kind in OWN_KINDS))
        .scalar_subquery()
    )
    return running < most


def ring_next(connection: Connection, tenant_id: str, defaults: Limits, now: datetime) -> int:
    """Ring for as many of the tenant's oldest queued jobs as may start now; how many bells were added.

    For the transaction in which one of its jobs stops running. Jobs whose bell still waits are not rung
    twice; one that was rung and not yet taken is, which does no harm.
    """
    most = limits_of(connection, tenant_id, defaults).max_running
    if most is None:
        return 0
    lock_tenant(connection, "turns", tenant_id)
    return sum(_ring_some(connection, tenant_id, most, now, own=own) for own in (False, True))


def _ring_some(connection: Connection, tenant_id: str, most: int, now: datetime, *, own: bool) -> int:
    """Of the tenant's jobs, or of the service's own for it."""
    theirs = (Job.tenant_id == tenant_id, _alike(Job.kind, own=own))
    leased = select(func.count()).select_from(Job).where(*theirs, Job.state.in_(_LEASED))
    running = connection.scalar(leased) or 0
    if running >= most:
        return 0
    queued = select(Job.id).where(*theirs, Job.state == JobState.QUEUED.value, ~is_paused()).order_by(Job.id)
    ids = connection.scalars(queued.limit(most - running)).all()
    unrung = set(connection.scalars(select(Outbox.job_id).where(Outbox.job_id.in_(ids))))
    waiting = [job_id for job_id in ids if job_id not in unrung]
    if waiting:
        # Should this bell be lost, the sweeper rings in half a minute and not in an hour.
        connection.execute(
            update(Job).where(Job.id.in_(waiting)).values(rings=0, ring_after=ring_again_at(now, 0))
        )
        add_bells(connection, waiting, now)
    return len(waiting)


def _alike(kind: ColumnElement[str] | InstrumentedAttribute[str], *, own: bool) -> ColumnElement[bool]:
    return kind.in_(OWN_KINDS) if own else kind.not_in(OWN_KINDS)
