"""The dispatchers' side of deliveries: lease what is due, settle attempts. Any number may run at once.

A row is leased under a lock and for a limited time; every later write is fenced by lease owner and attempt.
If a dispatcher dies, its rows fall due again: a message is sent at least once, always under the same id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from rebase.schemas.callbacks import DeliveryState
from rebase.store.database import Database
from rebase.store.deliveries import AttemptRecord, LeasedDelivery, Settlement
from rebase.store.repository import Clock, utcnow
from rebase.store.tables.callbacks import CallbackAttempt, CallbackDelivery, CallbackStop

DISPATCHER_LOST = "courier_lost"


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """How many deliveries one dispatcher leases at once: per receiver of a tenant, per tenant, in total."""

    per_endpoint: int = 4
    per_tenant: int = 16
    total: int = 64


class DeliveryQueue:
    """Lease due deliveries and settle their attempts."""

    def __init__(self, db: Database, clock: Clock = utcnow, limits: LeaseLimits | None = None) -> None:
        self.db = db
        self.clock = clock
        self.limits = limits or LeaseLimits()

    def lease(
        self, lease_owner: str, lease_s: float, leased: Sequence[LeasedDelivery] = ()
    ) -> list[LeasedDelivery]:
        """Lease due deliveries fairly, for a dispatcher that already holds `leased`.

        Tenants take turns, and so do the receivers within a tenant. A receiver with thousands of undelivered
        messages therefore delays only its own.
        """
        now = self.clock()
        capacity = self.limits.total - len(leased)
        if capacity <= 0:
            return []
        with self.db.read() as connection:
            candidates = list(connection.execute(self._select_candidates(now, leased).limit(capacity)))
        ids = self._apply_limits(candidates, leased)
        if not ids:
            return []
        with self.db.write() as connection:
            return self._lease_rows(connection, ids, now, lease_owner, lease_s)

    def _select_candidates(self, now: datetime, leased: Sequence[LeasedDelivery]) -> Select[Any]:
        counts = _LeasedCounts.from_deliveries(leased)
        full_endpoints = [
            pair for pair, number in counts.by_endpoint.items() if number >= self.limits.per_endpoint
        ]
        full_tenants = [
            tenant for tenant, number in counts.by_tenant.items() if number >= self.limits.per_tenant
        ]
        due = _is_due(now)
        if full_endpoints:
            due = and_(
                due, tuple_(CallbackDelivery.tenant_id, CallbackDelivery.receiver).not_in(full_endpoints)
            )
        if full_tenants:
            due = and_(due, CallbackDelivery.tenant_id.not_in(full_tenants))
        table = CallbackDelivery
        rank_at_endpoint = func.row_number().over(
            partition_by=(table.tenant_id, table.receiver), order_by=(table.next_at, table.id)
        )
        first = select(
            table.id, table.tenant_id, table.receiver, table.next_at, rank_at_endpoint.label("place")
        ).where(due)
        inner = first.subquery()
        rank_in_tenant = func.row_number().over(
            partition_by=inner.c.tenant_id, order_by=(inner.c.place, inner.c.next_at, inner.c.id)
        )
        second = (
            select(inner, rank_in_tenant.label("turn"))
            .where(inner.c.place <= self.limits.per_endpoint)
            .subquery()
        )
        return (
            select(second.c.id, second.c.tenant_id, second.c.receiver)
            .where(second.c.turn <= self.limits.per_tenant)
            .order_by(second.c.turn, second.c.next_at, second.c.id)
        )

    def _apply_limits(self, candidates: Sequence[Row[Any]], leased: Sequence[LeasedDelivery]) -> list[str]:
        counts, ids = _LeasedCounts.from_deliveries(leased), []
        for row in candidates:
            pair = (row.tenant_id, row.receiver)
            if counts.by_endpoint.get(pair, 0) >= self.limits.per_endpoint:
                continue
            if counts.by_tenant.get(row.tenant_id, 0) >= self.limits.per_tenant:
                continue
            counts.add(*pair)
            ids.append(row.id)
        return ids

    def _lease_rows(
        self, connection: Connection, ids: Collection[str], now: datetime, lease_owner: str, lease_s: float
    ) -> list[LeasedDelivery]:
        """Lease the rows that are still due. An expired lease of another dispatcher is logged as lost."""
        table = CallbackDelivery
        rows = connection.execute(
            select(table.__table__)
            .where(table.id.in_(ids), _is_due(now))
            .order_by(table.id)
            .with_for_update(skip_locked=True)
        ).all()
        abandoned = [one for one in rows if one.held_by is not None]
        if rows:
            connection.execute(
                update(table)
                .where(table.id.in_([one.id for one in rows]))
                .values(
                    held_by=lease_owner,
                    held_until=now + timedelta(seconds=lease_s),
                    attempts=table.attempts + 1,
                    updated_at=now,
                )
            )
        if abandoned:
            connection.execute(
                update(table)
                .where(table.id.in_([one.id for one in abandoned]))
                .values(failures=table.failures + 1)
            )
            connection.execute(insert(CallbackAttempt), [_build_lost_attempt(one) for one in abandoned])
        return [
            LeasedDelivery(
                id=one.id,
                tenant_id=one.tenant_id,
                receiver=one.receiver,
                url=one.url,
                payload=one.payload,
                attempt=one.attempts + 1,
                failures=one.failures + (1 if one.held_by is not None else 0),
                lease_owner=lease_owner,
            )
            for one in rows
        ]

    def settle(self, delivery: LeasedDelivery, attempt: AttemptRecord, settlement: Settlement) -> bool:
        """Log an attempt and update its delivery. False: the lease was lost, and nothing was written."""
        now, table = self.clock(), CallbackDelivery
        with self.db.write() as connection:
            updated = connection.execute(
                update(table)
                .where(
                    table.id == delivery.id,
                    table.held_by == delivery.lease_owner,
                    table.attempts == delivery.attempt,
                    table.state == DeliveryState.PENDING.value,
                )
                .values(
                    state=settlement.state.value,
                    failures=delivery.failures + (0 if settlement.state is DeliveryState.DELIVERED else 1),
                    next_at=settlement.next_at,
                    held_by=None,
                    held_until=None,
                    updated_at=now,
                )
                .returning(table.tenant_id, table.url_sha256)
            ).one_or_none()
            if updated is None:
                return False
            values = {name: getattr(attempt, name) for name in AttemptRecord.__slots__}
            connection.execute(insert(CallbackAttempt).values(delivery_id=delivery.id, **values))
            if settlement.state is DeliveryState.STOPPED:
                _stop_url(connection, updated.tenant_id, updated.url_sha256, now)
        return True


@dataclass(slots=True)
class _LeasedCounts:
    by_endpoint: dict[tuple[str, str], int]
    by_tenant: dict[str, int]

    @classmethod
    def from_deliveries(cls, leased: Sequence[LeasedDelivery]) -> _LeasedCounts:
        counts = cls({}, {})
        for delivery in leased:
            counts.add(delivery.tenant_id, delivery.receiver)
        return counts

    def add(self, tenant: str, receiver: str) -> None:
        self.by_endpoint[tenant, receiver] = self.by_endpoint.get((tenant, receiver), 0) + 1
        self.by_tenant[tenant] = self.by_tenant.get(tenant, 0) + 1


def _is_due(now: datetime) -> ColumnElement[bool]:
    table = CallbackDelivery
    is_unleased = or_(table.held_until.is_(None), table.held_until <= now)
    return and_(table.state == DeliveryState.PENDING.value, table.next_at <= now, is_unleased)


def _build_lost_attempt(row: Row[Any]) -> dict[str, Any]:
    return {
        "delivery_id": row.id,
        "number": row.attempts,
        "at": row.updated_at,
        "status": None,
        "reason": DISPATCHER_LOST,
        "detail": "The dispatcher ended before it could record the result of this attempt.",
        "duration_ms": None,
    }


def _stop_url(connection: Connection, tenant_id: str, url_sha256: str, now: datetime) -> None:
    """The receiver is gone for good: stop its pending and future deliveries until one is replayed."""
    build_insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(
        build_insert(CallbackStop)
        .values(tenant_id=tenant_id, url_sha256=url_sha256, at=now)
        .on_conflict_do_nothing(index_elements=["tenant_id", "url_sha256"])
    )
    table = CallbackDelivery
    connection.execute(
        update(table)
        .where(
            table.tenant_id == tenant_id,
            table.url_sha256 == url_sha256,
            table.state == DeliveryState.PENDING.value,
            or_(table.held_until.is_(None), table.held_until <= now),
        )
        .values(
            state=DeliveryState.STOPPED.value, next_at=None, held_by=None, held_until=None, updated_at=now
        )
    )
