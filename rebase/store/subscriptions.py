"""A tenant's subscriptions. Another tenant's subscription raises NotFound."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from rebase.errors import NotFound, QuotaExceeded
from rebase.schemas.subscriptions import ReconcileTask, SubscriptionRequest
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.job_submission import build_job_record, insert_jobs
from rebase.store.records import SubscriptionPage, SubscriptionRecord
from rebase.store.repository import (
    Repository,
    check_page_limit,
    decode_cursor,
    encode_cursor,
    is_valid_id,
    new_id,
)
from rebase.store.tables.releases import Subscription
from rebase.store.tables.tenants import Tenant

MAX_SUBSCRIPTIONS = 200  # per tenant; a release that matches all of them queues as many jobs
_RETRY_AFTER_S = 30  # after this one may have been deleted
_COLUMNS = [getattr(Subscription, name) for name in SubscriptionRecord.__slots__]


class SubscriptionRepository(Repository):
    """Create, read, list, pause and delete."""

    def create(
        self, tenant_id: str, request: SubscriptionRequest, audit: AuditContext | None = None
    ) -> tuple[SubscriptionRecord, bool]:
        """Record a subscription; for a repeated request return the existing one and False. `audit`: the actor
        recorded in the audit log. Raises QuotaExceeded."""
        now = self.clock()
        fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        with self.db.write() as connection:
            # Serialised per tenant, so that two concurrent equal requests make one subscription.
            tenant_lock = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
            connection.execute(tenant_lock)
            same_request = _select_subscriptions(tenant_id).where(Subscription.fingerprint == fingerprint)
            existing = connection.execute(same_request).one_or_none()
            if existing is not None:
                return _to_record(existing), False
            _require_below_limit(connection, tenant_id)
            subscription_id = new_id()
            values = {
                "id": subscription_id,
                "tenant_id": tenant_id,
                "owner": request.owner,
                "request": request.model_dump(mode="json"),
                "fingerprint": fingerprint,
                "paused": False,
                "since": request.since or now,
                "asked_at": now,
                "looked_at": request.since or now,
                "created_at": now,
            }
            connection.execute(insert(Subscription).values(values))
            if request.since is not None:  # look for existing releases at once
                task = ReconcileTask(owner=request.owner)
                insert_jobs(connection, [build_job_record(self, tenant_id, "reconcile", task)])
            write_audit_event(connection, now, audit, "subscription.made", subscription_id)
            return _load(connection, tenant_id, subscription_id), True

    def get(self, tenant_id: str, subscription_id: str) -> SubscriptionRecord:
        """One subscription. Raises NotFound."""
        with self.db.read() as connection:
            return _load(connection, tenant_id, subscription_id)

    def list(self, tenant_id: str, *, cursor: str | None = None, limit: int = 50) -> SubscriptionPage:
        """Newest first. Raises RequestInvalid for an invalid cursor."""
        check_page_limit(limit)
        query = _select_subscriptions(tenant_id).order_by(Subscription.id.desc())
        if cursor is not None:
            query = query.where(Subscription.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        subscriptions = tuple(_to_record(row) for row in rows[:limit])
        return SubscriptionPage(
            subscriptions, encode_cursor(subscriptions[-1].id) if len(rows) > limit else None
        )

    def set_paused(
        self, tenant_id: str, subscription_id: str, paused: bool, audit: AuditContext | None = None
    ) -> SubscriptionRecord:
        """Pause or resume. A paused subscription starts no campaigns; the first poll after resuming finds
        what was released meanwhile. Raises NotFound."""
        with self.db.write() as connection:
            _load(connection, tenant_id, subscription_id)
            connection.execute(
                update(Subscription).where(Subscription.id == subscription_id).values(paused=paused)
            )
            action = "subscription.paused" if paused else "subscription.resumed"
            write_audit_event(connection, self.clock(), audit, action, subscription_id)
            return _load(connection, tenant_id, subscription_id)

    def delete(self, tenant_id: str, subscription_id: str, audit: AuditContext | None = None) -> None:
        """Delete a subscription. Its campaigns are kept and continue. Raises NotFound."""
        with self.db.write() as connection:
            _load(connection, tenant_id, subscription_id)
            connection.execute(delete(Subscription).where(Subscription.id == subscription_id))
            write_audit_event(connection, self.clock(), audit, "subscription.deleted", subscription_id)


def find_subscriptions_to_owner(
    connection: Connection, owner: str, tenant_id: str | None, *, lock: bool = False
) -> list[SubscriptionRecord]:
    """Unpaused subscriptions to this owner (lower case), of one tenant or of all. `lock`: none of them can be
    deleted before the transaction ends."""
    query = select(*_COLUMNS).where(Subscription.owner == owner, Subscription.paused.is_(False))
    if tenant_id is not None:
        query = query.where(Subscription.tenant_id == tenant_id)
    query = query.order_by(Subscription.id)
    if lock:
        query = query.with_for_update(read=True, key_share=True)
    return [_to_record(row) for row in connection.execute(query)]


def _select_subscriptions(tenant_id: str) -> Select[Any]:
    return select(*_COLUMNS).where(Subscription.tenant_id == tenant_id)


def _require_below_limit(connection: Connection, tenant_id: str) -> None:
    query = select(func.count()).select_from(Subscription).where(Subscription.tenant_id == tenant_id)
    if (connection.scalar(query) or 0) >= MAX_SUBSCRIPTIONS:
        raise QuotaExceeded(
            f"This tenant has reached the limit of {MAX_SUBSCRIPTIONS} subscriptions.",
            hint="Delete some, or list more adapters in one.",
            retry_after_s=_RETRY_AFTER_S,
        )


def _load(connection: Connection, tenant_id: str, subscription_id: str) -> SubscriptionRecord:
    row = None
    if is_valid_id(subscription_id):
        query = _select_subscriptions(tenant_id).where(Subscription.id == subscription_id)
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("There is no such subscription.", hint="GET /subscriptions lists yours.")
    return _to_record(row)


def _to_record(row: Row[Any]) -> SubscriptionRecord:
    values = row._mapping
    return SubscriptionRecord(**{name: values[name] for name in SubscriptionRecord.__slots__})
