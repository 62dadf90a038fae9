"""Operating on tenants: list them, change their limits, delete their data or the tenant itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update

from rebase.errors import StateConflict
from rebase.schemas.states import LEASED, TERMINAL, JobState
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.concurrency_limits import notify_waiting
from rebase.store.jobs import cancel_locked
from rebase.store.limits import Limits, check_tenant_exists, load_limits, load_stored_limits, set_limits
from rebase.store.quota import delete_jobs
from rebase.store.records import JobRecord
from rebase.store.repository import Repository
from rebase.store.tables.base import DEFAULT_TENANT, Base
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Release, ReleaseMatch, Subscription
from rebase.store.tables.tenants import ApiKey, HubToken, Tenant

_DELETE_BATCH = 200  # jobs deleted in one transaction, with their events and diagnostics
_OPEN_STATES = [state.value for state in JobState if state not in TERMINAL]
# Kept when a tenant's data is deleted: its keys, limits, audit log and today's job count. Deleting the tenant
# deletes these as well.
_TABLES_KEPT_WITH_TENANT = frozenset({"api_keys", "tenant_limits", "spent_jobs", "audit_log"})


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """One tenant: its limits (`own`: those set in its row) and how much it has stored."""

    id: str
    created_at: datetime
    limits: Limits
    own: dict[str, int | None]
    keys: int
    jobs_running: int
    jobs_open: int
    hub_token: bool


def list_tenants(store: Repository) -> list[str]:
    """Sorted tenant ids."""
    with store.db.read() as connection:
        return list(connection.scalars(select(Tenant.id).order_by(Tenant.id)))


def get_tenant(store: Repository, tenant_id: str) -> TenantRecord:
    """One tenant. Raises NotFound."""
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
        counts: dict[str, int] = {
            row[0]: row[1]
            for row in connection.execute(
                select(Job.state, func.count())
                .where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN_STATES))
                .group_by(Job.state)
            )
        }
        is_active_key = (ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
        created = connection.execute(select(Tenant.created_at).where(Tenant.id == tenant_id)).scalar_one()
        return TenantRecord(
            id=tenant_id,
            created_at=created,
            limits=load_limits(connection, tenant_id, store.limits),
            own=load_stored_limits(connection, tenant_id),
            keys=connection.scalar(select(func.count()).select_from(ApiKey).where(*is_active_key)) or 0,
            jobs_running=sum(counts.get(state.value, 0) for state in LEASED),
            jobs_open=sum(counts.values()),
            hub_token=connection.scalar(select(HubToken.tenant_id).where(HubToken.tenant_id == tenant_id))
            is not None,
        )


def change_limits(
    store: Repository, tenant_id: str, changes: Mapping[str, int | None], audit: AuditContext | None
) -> int:
    """Change some of a tenant's limits and notify workers of jobs that may start now; returns how many.
    Services notice within ten seconds. Raises NotFound, RequestInvalid."""
    now = store.clock()
    with store.db.write() as connection:
        set_limits(connection, tenant_id, changes, now)
        write_audit_event(connection, now, audit, "tenant.limits", tenant_id)
        return notify_waiting(connection, tenant_id, store.limits, now)


def cancel_all_jobs(store: Repository, tenant_id: str) -> int:
    """Cancel every job of the tenant, at once if no worker runs it; returns how many a worker still runs. Its
    subscriptions are paused, so that new releases start no campaigns."""
    with store.db.write() as connection:
        query = (
            select(Job.__table__)
            .where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN_STATES))
            .order_by(Job.id)
            .with_for_update()
        )
        for row in connection.execute(query).all():
            job = JobRecord.from_row(row)
            # A job that is being published cannot be cancelled; its worker ends it soon.
            if job.state is not JobState.PUBLISHING and not job.cancel_requested:
                cancel_locked(connection, job, store.clock())
        # After the jobs: release decisions lock in the same order.
        owned = Subscription.tenant_id == tenant_id
        connection.execute(update(Subscription).where(owned).values(paused=True))
    return count_open_jobs(store, tenant_id)


def count_open_jobs(store: Repository, tenant_id: str) -> int:
    """Unfinished jobs: a worker runs them, or they were cancelled but may have published, which has yet to be
    checked."""
    with store.db.read() as connection:
        query = (
            select(func.count())
            .select_from(Job)
            .where(Job.tenant_id == tenant_id, Job.state.in_(_OPEN_STATES))
        )
        return connection.scalar(query) or 0


def erase_tenant_data(store: Repository, tenant_id: str, audit: AuditContext) -> None:
    """Delete a tenant's jobs with their dependent rows, pools, idempotency keys and stored secrets. Keys,
    limits, the audit log and today's job count are kept.

    Raises NotFound, and StateConflict while a job is unfinished (call `cancel_all_jobs` first).
    """
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
    _require_no_open_jobs(store, tenant_id)
    while _delete_job_batch(store, tenant_id):
        pass
    with store.db.write() as connection:
        _delete_rows(connection, tenant_id, _TABLES_KEPT_WITH_TENANT | {"jobs"})
        for owner in {tenant_id, DEFAULT_TENANT}:
            _write_audit_event_for(connection, store.clock(), audit, owner, "tenant.data_deleted", tenant_id)


def delete_tenant(store: Repository, tenant_id: str, audit: AuditContext) -> None:
    """Delete the tenant and all of its rows; recorded in the audit log of the deployment's own tenant.

    Raises NotFound, and StateConflict for the deployment's own tenant or while a job is unfinished.
    """
    if tenant_id == DEFAULT_TENANT:
        raise StateConflict(
            f"'{DEFAULT_TENANT}' is the deployment's own tenant and cannot be deleted.",
            hint="To delete only its data, use --data-only.",
        )
    with store.db.read() as connection:
        check_tenant_exists(connection, tenant_id)
    _require_no_open_jobs(store, tenant_id)
    while _delete_job_batch(store, tenant_id):
        pass
    with store.db.write() as connection:
        _delete_rows(connection, tenant_id, frozenset())
        connection.execute(delete(Tenant).where(Tenant.id == tenant_id))
        _write_audit_event_for(connection, store.clock(), audit, DEFAULT_TENANT, "tenant.deleted", tenant_id)


def revoke_all_keys(store: Repository, tenant_id: str) -> None:
    """Revoke every key of a tenant, so that it submits nothing new while it is being deleted."""
    is_active_key = (ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
    with store.db.write() as connection:
        check_tenant_exists(connection, tenant_id)
        connection.execute(update(ApiKey).where(*is_active_key).values(revoked_at=store.clock()))


def _require_no_open_jobs(store: Repository, tenant_id: str) -> None:
    open_jobs = count_open_jobs(store, tenant_id)
    if open_jobs:
        raise StateConflict(
            f"{open_jobs} job(s) of this tenant are still stopping.",
            hint="Try again in a few seconds.",
        )


def _delete_job_batch(store: Repository, tenant_id: str) -> bool:
    """Delete one batch of jobs with their rows. False: none were left."""
    query = (
        select(Job.id).where(Job.tenant_id == tenant_id, Job.state.not_in(_OPEN_STATES)).limit(_DELETE_BATCH)
    )
    with store.db.write() as connection:
        ids = connection.scalars(query).all()
        if ids:
            delete_jobs(connection, ids, store.clock())
    return bool(ids)


def _delete_rows(connection: Connection, tenant_id: str, kept_tables: frozenset[str]) -> None:
    """Delete from every table with a tenant column, children first; tables added later are included.
    Releases have no tenant but may have been seen with its token: those matched by nobody else go too."""
    _delete_releases(connection, tenant_id)
    for table in reversed(Base.metadata.sorted_tables):
        if "tenant_id" in table.c and table.name not in kept_tables:
            connection.execute(delete(table).where(table.c.tenant_id == tenant_id))


def _delete_releases(connection: Connection, tenant_id: str) -> None:
    matched = select(ReleaseMatch.release_id).join(
        Subscription, Subscription.id == ReleaseMatch.subscription_id
    )
    matched_by_tenant = matched.where(Subscription.tenant_id == tenant_id)
    matched_by_others = matched.where(Subscription.tenant_id != tenant_id)
    connection.execute(
        delete(Release).where(Release.id.in_(matched_by_tenant), Release.id.not_in(matched_by_others))
    )


def _write_audit_event_for(
    connection: Connection, now: datetime, audit: AuditContext, owner: str, action: str, tenant_id: str
) -> None:
    owner_audit = AuditContext(owner, audit.key_id, audit.request_id, audit.client)
    write_audit_event(connection, now, owner_audit, action, tenant_id)
