"""How many more jobs a tenant may submit. Asked inside the transaction that records them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, select, union_all

from core.errors import QuotaExceeded
from core.jobs.base import lock_tenant
from core.jobs.records import OWN_KINDS
from core.limits import Limits
from core.states import TERMINAL, JobState
from core.tables.jobs import Job
from core.tables.tenants import SpentJob

DAY = timedelta(hours=24)
_ACTIVE = Job.state.in_(sorted(state.value for state in JobState if state not in TERMINAL))
_ASKED = Job.kind.not_in(OWN_KINDS)  # by the tenant, not for it
_LOOK_AGAIN_S = 30  # after how long it is worth asking whether a job has ended


@dataclass(frozen=True, slots=True)
class Room:
    """`left` more jobs fit; `refusal` is what to say to the one behind them."""

    left: float
    refusal: QuotaExceeded | None = None


def room_of(
    connection: Connection, tenant_id: str, limits: Limits, now: datetime, *, new: bool = True
) -> Room:
    """Until the transaction ends nobody else submits for this tenant. Without limits nothing is asked.

    `new` False: a job that exists already is queued again, which no count of days is concerned with. Costs a
    count over the tenant's open jobs, and one over as many of its newest as it may submit a day.
    """
    if not limits.on_jobs:
        return Room(math.inf)
    lock_tenant(connection, "room", tenant_id)
    rooms = [Room(math.inf)]
    if limits.max_queued is not None:
        rooms.append(_of_open(connection, tenant_id, limits.max_queued))
    if limits.jobs_per_day is not None and new:
        rooms.append(_of_day(connection, tenant_id, limits.jobs_per_day, now))
    return min(rooms, key=lambda room: room.left)


def check_room(
    connection: Connection,
    tenant_id: str,
    limits: Limits,
    now: datetime,
    *,
    new: bool = True,
    count: int = 1,
) -> None:
    """Raises QuotaExceeded when not `count` more fit."""
    room = room_of(connection, tenant_id, limits, now, new=new)
    if room.left < count and room.refusal is not None:
        raise room.refusal


def forget_jobs(connection: Connection, ids: Sequence[str], now: datetime) -> None:
    """Delete ended jobs with all that hangs on them. Those of the last 24 hours still count as submitted, or
    a tenant that deletes its data could submit as many again."""
    # Whoever deletes a row gets it back, so that two that delete at once count it once.
    gone = connection.execute(
        delete(Job).where(Job.id.in_(ids)).returning(Job.id, Job.tenant_id, Job.kind, Job.created_at)
    )
    spent = [
        {"id": row.id, "tenant_id": row.tenant_id, "created_at": row.created_at}
        for row in gone
        if row.kind not in OWN_KINDS and row.created_at > now - DAY
    ]
    if spent:
        connection.execute(insert(SpentJob), spent)


def _of_open(connection: Connection, tenant_id: str, most: int) -> Room:
    query = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, _ACTIVE, _ASKED)
    refusal = QuotaExceeded(
        f"This tenant may have {most} jobs that are not done, and has as many.",
        hint="Wait until some have ended, or cancel some.",
        retry_after_s=_LOOK_AGAIN_S,
    )
    return Room(most - (connection.scalar(query) or 0), refusal)


def _of_day(connection: Connection, tenant_id: str, most: int, now: datetime) -> Room:
    """The newest `most` jobs are looked at, in the order of the index, and no more; then as many of those
    that were deleted. It is one statement, so that a job that is being deleted is seen once."""
    there = select(Job.id, Job.created_at).where(Job.tenant_id == tenant_id, _ASKED)
    gone = select(SpentJob.id, SpentJob.created_at).where(SpentJob.tenant_id == tenant_id)
    both = union_all(
        select(there.order_by(Job.id.desc()).limit(most).subquery()),
        select(gone.order_by(SpentJob.id.desc()).limit(most).subquery()),
    ).subquery()
    newest = select(both.c.created_at).order_by(both.c.id.desc()).limit(most).subquery()
    within = newest.c.created_at > now - DAY
    count, oldest = connection.execute(
        select(func.count(), func.min(newest.c.created_at)).select_from(newest).where(within)
    ).one()
    wait = (oldest + DAY - now).total_seconds() if oldest is not None else 0.0
    refusal = QuotaExceeded(
        f"This tenant may submit {most} jobs within 24 hours, and has done so.",
        hint="Wait, or ask whoever runs this service for more.",
        retry_after_s=max(1, math.ceil(wait)),
    )
    return Room(most - count, refusal)
