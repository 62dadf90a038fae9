"""Subscriptions of a tenant. Another tenant's subscription does not exist here."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from core.audit import Trail, write_line
from core.errors import NotFound, QuotaExceeded
from core.ids import new_id
from core.jobs.client_side import check_limit, is_job_id
from core.jobs.insert import insert_jobs
from core.jobs.records import decode_cursor, encode_cursor
from core.jobs.release_records import SubscriptionPage, SubscriptionRecord
from core.jobs.submit import Submitting
from core.releases.spec import SubscriptionRequest
from core.releases.tasks import ReconcileTask
from core.tables.releases import Subscription
from core.tables.tenants import Tenant

MOST_SUBSCRIPTIONS = 200  # of a tenant; a release that all of them mean is as many looks at the Hub
_LOOK_AGAIN_S = 30  # after how long it is worth asking whether one was deleted
_COLUMNS = [getattr(Subscription, name) for name in SubscriptionRecord.__slots__]


class SubscriptionsSide(Submitting):
    """Subscribe, look, page, pause, end."""

    def subscribe(
        self, tenant_id: str, request: SubscriptionRequest, trail: Trail | None = None
    ) -> tuple[SubscriptionRecord, bool]:
        """Record a subscription; the same request again gives the one that stands, and False. `trail`: who is
        named in the audit log. Raises QuotaExceeded."""
        now = self.clock()
        fingerprint = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
        with self.db.write() as connection:
            # One at a time per tenant, so that two equal requests at once make one subscription.
            one_at_a_time = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
            connection.execute(one_at_a_time)
            mine = _of(tenant_id).where(Subscription.fingerprint == fingerprint)
            standing = connection.execute(mine).one_or_none()
            if standing is not None:
                return _record(standing), False
            _check_count(connection, tenant_id)
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
            if request.since is not None:  # what may exist already is looked for at once
                look = ReconcileTask(owner=request.owner)
                insert_jobs(connection, [self._new_record(tenant_id, "reconcile", look)])
            write_line(connection, now, trail, "subscription.made", subscription_id)
            return _load(connection, tenant_id, subscription_id), True

    def get_subscription(self, tenant_id: str, subscription_id: str) -> SubscriptionRecord:
        """One subscription. Raises NotFound."""
        with self.db.read() as connection:
            return _load(connection, tenant_id, subscription_id)

    def list_subscriptions(
        self, tenant_id: str, *, cursor: str | None = None, limit: int = 50
    ) -> SubscriptionPage:
        """Newest first. Raises RequestInvalid for a foreign cursor."""
        check_limit(limit)
        query = _of(tenant_id).order_by(Subscription.id.desc())
        if cursor is not None:
            query = query.where(Subscription.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        found = tuple(_record(row) for row in rows[:limit])
        return SubscriptionPage(found, encode_cursor(found[-1].id) if len(rows) > limit else None)

    def pause_subscription(
        self, tenant_id: str, subscription_id: str, paused: bool, trail: Trail | None = None
    ) -> SubscriptionRecord:
        """A paused subscription begins no campaign; what was released meanwhile is found by the next look
        after it goes on. Raises NotFound."""
        with self.db.write() as connection:
            _load(connection, tenant_id, subscription_id)
            connection.execute(
                update(Subscription).where(Subscription.id == subscription_id).values(paused=paused)
            )
            done = "subscription.paused" if paused else "subscription.resumed"
            write_line(connection, self.clock(), trail, done, subscription_id)
            return _load(connection, tenant_id, subscription_id)

    def unsubscribe(self, tenant_id: str, subscription_id: str, trail: Trail | None = None) -> None:
        """End a subscription. Its campaigns stay, and go on. Raises NotFound."""
        with self.db.write() as connection:
            _load(connection, tenant_id, subscription_id)
            connection.execute(delete(Subscription).where(Subscription.id == subscription_id))
            write_line(connection, self.clock(), trail, "subscription.deleted", subscription_id)


def subscriptions_to(
    connection: Connection, owner: str, tenant_id: str | None, *, keep: bool = False
) -> list[SubscriptionRecord]:
    """Those that wait for releases of this owner (lower case), of one tenant or of all. `keep`: none of them
    can be deleted before the transaction ends."""
    query = select(*_COLUMNS).where(Subscription.owner == owner, Subscription.paused.is_(False))
    if tenant_id is not None:
        query = query.where(Subscription.tenant_id == tenant_id)
    query = query.order_by(Subscription.id)
    if keep:
        query = query.with_for_update(read=True, key_share=True)
    return [_record(row) for row in connection.execute(query)]


def _of(tenant_id: str) -> Select[Any]:
    return select(*_COLUMNS).where(Subscription.tenant_id == tenant_id)


def _check_count(connection: Connection, tenant_id: str) -> None:
    query = select(func.count()).select_from(Subscription).where(Subscription.tenant_id == tenant_id)
    if (connection.scalar(query) or 0) >= MOST_SUBSCRIPTIONS:
        raise QuotaExceeded(
            f"A tenant may have {MOST_SUBSCRIPTIONS} subscriptions, and this one has as many.",
            hint="Delete some, or name more adapters in one.",
            retry_after_s=_LOOK_AGAIN_S,
        )


def _load(connection: Connection, tenant_id: str, subscription_id: str) -> SubscriptionRecord:
    row = None
    if is_job_id(subscription_id):
        query = _of(tenant_id).where(Subscription.id == subscription_id)
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("There is no such subscription.", hint="GET /subscriptions lists yours.")
    return _record(row)


def _record(row: Row[Any]) -> SubscriptionRecord:
    values = row._mapping
    return SubscriptionRecord(**{name: values[name] for name in SubscriptionRecord.__slots__})
