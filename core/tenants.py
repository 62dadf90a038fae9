"""Tenants as their operator sees them: who there is, what they may use, and how one is deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update

from core.audit import Trail, write_line
from core.errors import StateConflict
from core.jobs.base import StoreBase
from core.jobs.client_side import cancel_locked
from core.jobs.records import JobRecord
from core.jobs.room import forget_jobs
from core.jobs.turns import ring_next
from core.limits import Limits, check_tenant_exists, limits_of, own_limits, set_limits
from core.states import LEASED, TERMINAL, JobState
from core.tables.base import DEFAULT_TENANT, Base
from core.tables.jobs import Job
from core.tables.releases import Release, ReleaseMatch, Subscription
from core.tables.tenants import ApiKey, HubToken, Tenant

_AT_ONCE = 200  # jobs deleted in one transaction, with their events and diagnostics
_OPEN = [state.value for state in JobState if state not in TERMINAL]
# Deleting a tenant's data keeps who it is, what it did and how many jobs it has left today; the tenant itself
# is deleted with these.
_KEPT_WITH_THE_TENANT = frozenset({"api_keys", "tenant_limits", "spent_jobs", "audit_log"})


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """One tenant: what it may use (`own`: the part that its row says), and what it has."""

    id: str
    created_at: datetime
    limits: Limits
    own: dict[str, int | None]
    keys: int
    jobs_running: int
    jobs_open: int
    hub_token: bool


def list_tenants(store: StoreBase) -> list[str]:
    """Ids in order."""
    with store.db.read() as connection:
        return list(connection.scalars(select(Tenant.id).order_by(Tenant.id)))


def show_tenant(store: StoreBase, tenant_id: str) -> TenantRecord:
    """One tenant. Raises NotFound."""
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
        counts: dict[str, int] = {
            row[0]: row[1]
            for row in connection.execute(
                select(Job.state, func.count())
                .where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN))
                .group_by(Job.state)
            )
        }
        live = (ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        created = connection.execute(select(Tenant.created_at).where(Tenant.id == tenant_id)).scalar_one()
        return TenantRecord(
            id=tenant_id,
            created_at=created,
            limits=limits_of(connection, tenant_id, store.limits),
            own=own_limits(connection, tenant_id),
            keys=connection.scalar(select(func.count()).select_from(ApiKey).where(*live)) or 0,
            jobs_running=sum(counts.get(state.value, 0) for state in LEASED),
            jobs_open=sum(counts.values()),
            hub_token=connection.scalar(select(HubToken.tenant_id).where(HubToken.tenant_id == tenant_id))
            is not None,
        )


def change_limits(
    store: StoreBase, tenant_id: str, changes: Mapping[str, int | None], trail: Trail | None
) -> int:
    """Set some of a tenant's numbers; jobs that may start now are rung for. How many. Services notice within
    ten seconds. Raises NotFound, RequestInvalid."""
    now = store.clock()
    with store.db.write() as connection:
        set_limits(connection, tenant_id, changes, now)
        write_line(connection, now, trail, "tenant.limits", tenant_id)
        return ring_next(connection, tenant_id, store.limits, now)


def stop_jobs(store: StoreBase, tenant_id: str) -> int:
    """Cancel every job of the tenant: at once those that nobody runs. How many a worker still has. Its
    subscriptions are paused, so that a release that is told of now begins none anew."""
    with store.db.write() as connection:
        query = (
            select(Job.__table__)
            .where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN))
            .order_by(Job.id)
            .with_for_update()
        )
        for row in connection.execute(query).all():
            job = JobRecord.from_row(row)
            # What is being published cannot be called back; its worker ends it in a moment.
            if job.state is not JobState.PUBLISHING and not job.cancel_requested:
                cancel_locked(connection, job, store.clock())
        # Behind the jobs: whoever decides on a release locks in this order.
        theirs = Subscription.tenant_id == tenant_id
        connection.execute(update(Subscription).where(theirs).values(paused=True))
    return held_jobs(store, tenant_id)


def held_jobs(store: StoreBase, tenant_id: str) -> int:
    """Jobs that are not done: a worker has them, or a cancelled one that may have published has yet to be
    looked at."""
    with store.db.read() as connection:
        query = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN))
        return connection.scalar(query) or 0


def delete_data(store: StoreBase, tenant_id: str, trail: Trail) -> None:
    """Jobs with all that hangs on them, pools, idempotency keys and stored secrets of a tenant. Its keys,
    limits, how many jobs it submitted today, and its audit log stay.

    Raises NotFound, and StateConflict while one of its jobs is not done (`stop_jobs` sees to that).
    """
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
    _refuse_while_working(store, tenant_id)
    while _delete_some_jobs(store, tenant_id):
        pass
    with store.db.write() as connection:
        _delete_rows(connection, tenant_id, _KEPT_WITH_THE_TENANT | {"jobs"})
        for owner in {tenant_id, DEFAULT_TENANT}:
            _say(connection, store.clock(), trail, owner, "tenant.data_deleted", tenant_id)


def delete_tenant(store: StoreBase, tenant_id: str, trail: Trail) -> None:
    """The tenant and every row of it; a line in the audit log of the deployment's own tenant says so.

    Raises NotFound, StateConflict for the deployment's own tenant, and while a job is not done.
    """
    if tenant_id == DEFAULT_TENANT:
        raise StateConflict(
            f"'{DEFAULT_TENANT}' is the deployment's own tenant and cannot be deleted.",
            hint="Delete its data alone: --data-only.",
        )
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
    _refuse_while_working(store, tenant_id)
    while _delete_some_jobs(store, tenant_id):
        pass
    with store.db.write() as connection:
        _delete_rows(connection, tenant_id, frozenset())
        connection.execute(delete(Tenant).where(Tenant.id == tenant_id))
        _say(connection, store.clock(), trail, DEFAULT_TENANT, "tenant.deleted", tenant_id)


def revoke_all_keys(store: StoreBase, tenant_id: str) -> None:
    """End every key of a tenant, so that nothing new comes in while it is being deleted."""
    live = (ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
    with store.db.write() as connection:
        check_tenant_exists(connection, tenant_id)
        connection.execute(update(ApiKey).where(*live).values(revoked_at=store.clock()))


def _refuse_while_working(store: StoreBase, tenant_id: str) -> None:
    held = held_jobs(store, tenant_id)
    if held:
        raise StateConflict(
            f"{held} job(s) of this tenant were asked to stop and are not done yet.",
            hint="Try again in a few seconds.",
        )


def _delete_some_jobs(store: StoreBase, tenant_id: str) -> bool:
    """Some jobs with their rows. False: there were none left."""
    some = select(Job.id).where(Job.tenant_id == tenant_id, Job.state.not_in(_OPEN)).limit(_AT_ONCE)
    with store.db.write() as connection:
        ids = connection.scalars(some).all()
        if ids:
            forget_jobs(connection, ids, store.clock())
    return bool(ids)


def _delete_rows(connection: Connection, tenant_id: str, kept: frozenset[str]) -> None:
    """From every table that names tenants, children first: also from those that are added later.
    Releases name none, and may have been seen with this tenant's token: those told to nobody else go."""
    _delete_releases(connection, tenant_id)
    for table in reversed(Base.metadata.sorted_tables):
        if "tenant_id" in table.c and table.name not in kept:
            connection.execute(delete(table).where(table.c.tenant_id == tenant_id))


def _delete_releases(connection: Connection, tenant_id: str) -> None:
    told = select(ReleaseMatch.release_id).join(Subscription, Subscription.id == ReleaseMatch.subscription_id)
    theirs = told.where(Subscription.tenant_id == tenant_id)
    others = told.where(Subscription.tenant_id != tenant_id)
    connection.execute(delete(Release).where(Release.id.in_(theirs), Release.id.not_in(others)))


def _say(
    connection: Connection, now: datetime, trail: Trail, owner: str, action: str, tenant_id: str
) -> None:
    told = Trail(owner, trail.key_id, trail.request_id, trail.client)
    write_line(connection, now, told, action, tenant_id)
