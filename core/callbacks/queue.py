"""What couriers do with deliveries: take what is due, settle what was tried. Any number may run at once.

A row is taken under a lock and held for a while; every later write is fenced by holder and attempt. A courier
that dies lets its rows fall due again: a message is sent at least once, always under the same id.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from core.callbacks.records import AttemptRecord, Settlement, Taken
from core.callbacks.spec import DeliveryState
from core.clock import Clock, utcnow
from core.db import Database
from core.tables.callbacks import CallbackAttempt, CallbackDelivery, CallbackStop

COURIER_LOST = "courier_lost"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one courier has in hand at once: of one tenant's receiver, of one tenant, of everybody."""

    receiver: int = 4
    tenant: int = 16
    total: int = 64


class DeliveryQueue:
    """The couriers' side of the tables."""

    def __init__(self, db: Database, clock: Clock = utcnow, bounds: Bounds | None = None) -> None:
        self.db = db
        self.clock = clock
        self.bounds = bounds or Bounds()

    def take(self, holder: str, hold_s: float, in_hand: Sequence[Taken] = ()) -> list[Taken]:
        """Due deliveries for a courier that has `in_hand` already, shared out fairly.

        Each tenant's first comes before anybody's second, and within a tenant each receiver's, so that a
        receiver with thousands of messages that nobody accepts delays its own and no other.
        """
        now = self.clock()
        room = self.bounds.total - len(in_hand)
        if room <= 0:
            return []
        with self.db.read() as connection:
            offered = list(connection.execute(self._offered(now, in_hand).limit(room)))
        chosen = self._within_bounds(offered, in_hand)
        if not chosen:
            return []
        with self.db.write() as connection:
            return self._hold(connection, chosen, now, holder, hold_s)

    def _offered(self, now: datetime, in_hand: Sequence[Taken]) -> Select[Any]:
        busy = _Busy.of(in_hand)
        full = [pair for pair, number in busy.receivers.items() if number >= self.bounds.receiver]
        tired = [tenant for tenant, number in busy.tenants.items() if number >= self.bounds.tenant]
        due = _due(now)
        if full:
            due = and_(due, tuple_(CallbackDelivery.tenant_id, CallbackDelivery.receiver).not_in(full))
        if tired:
            due = and_(due, CallbackDelivery.tenant_id.not_in(tired))
        row = CallbackDelivery
        at_receiver = func.row_number().over(
            partition_by=(row.tenant_id, row.receiver), order_by=(row.next_at, row.id)
        )
        first = select(row.id, row.tenant_id, row.receiver, row.next_at, at_receiver.label("place")).where(
            due
        )
        inner = first.subquery()
        of_tenant = func.row_number().over(
            partition_by=inner.c.tenant_id, order_by=(inner.c.place, inner.c.next_at, inner.c.id)
        )
        second = (
            select(inner, of_tenant.label("turn")).where(inner.c.place <= self.bounds.receiver).subquery()
        )
        return (
            select(second.c.id, second.c.tenant_id, second.c.receiver)
            .where(second.c.turn <= self.bounds.tenant)
            .order_by(second.c.turn, second.c.next_at, second.c.id)
        )

    def _within_bounds(self, offered: Sequence[Row[Any]], in_hand: Sequence[Taken]) -> list[str]:
        busy, chosen = _Busy.of(in_hand), []
        for row in offered:
            pair = (row.tenant_id, row.receiver)
            if busy.receivers.get(pair, 0) >= self.bounds.receiver:
                continue
            if busy.tenants.get(row.tenant_id, 0) >= self.bounds.tenant:
                continue
            busy.add(*pair)
            chosen.append(row.id)
        return chosen

    def _hold(
        self, connection: Connection, ids: Collection[str], now: datetime, holder: str, hold_s: float
    ) -> list[Taken]:
        """Take those that are still due. One that another courier held was lost with it: the log says so."""
        row = CallbackDelivery
        locked = connection.execute(
            select(row.__table__)
            .where(row.id.in_(ids), _due(now))
            .order_by(row.id)
            .with_for_update(skip_locked=True)
        ).all()
        lost = [one for one in locked if one.held_by is not None]
        if locked:
            connection.execute(
                update(row)
                .where(row.id.in_([one.id for one in locked]))
                .values(
                    held_by=holder,
                    held_until=now + timedelta(seconds=hold_s),
                    attempts=row.attempts + 1,
                    updated_at=now,
                )
            )
        if lost:
            connection.execute(
                update(row).where(row.id.in_([one.id for one in lost])).values(failures=row.failures + 1)
            )
            connection.execute(insert(CallbackAttempt), [_lost_attempt(one) for one in lost])
        return [
            Taken(
                id=one.id,
                tenant_id=one.tenant_id,
                receiver=one.receiver,
                url=one.url,
                payload=one.payload,
                attempt=one.attempts + 1,
                failures=one.failures + (1 if one.held_by is not None else 0),
                holder=holder,
            )
            for one in locked
        ]

    def settle(self, taken: Taken, attempt: AttemptRecord, settlement: Settlement) -> bool:
        """Log an attempt and move its delivery. False: it was no longer ours, and nothing was written."""
        now, row = self.clock(), CallbackDelivery
        with self.db.write() as connection:
            changed = connection.execute(
                update(row)
                .where(
                    row.id == taken.id,
                    row.held_by == taken.holder,
                    row.attempts == taken.attempt,
                    row.state == DeliveryState.PENDING.value,
                )
                .values(
                    state=settlement.state.value,
                    failures=taken.failures + (0 if settlement.state is DeliveryState.DELIVERED else 1),
                    next_at=settlement.next_at,
                    held_by=None,
                    held_until=None,
                    updated_at=now,
                )
                .returning(row.tenant_id, row.url_sha256)
            ).one_or_none()
            if changed is None:
                return False
            values = {name: getattr(attempt, name) for name in AttemptRecord.__slots__}
            connection.execute(insert(CallbackAttempt).values(delivery_id=taken.id, **values))
            if settlement.state is DeliveryState.STOPPED:
                _stop_url(connection, changed.tenant_id, changed.url_sha256, now)
        return True


@dataclass(slots=True)
class _Busy:
    receivers: dict[tuple[str, str], int]
    tenants: dict[str, int]

    @classmethod
    def of(cls, in_hand: Sequence[Taken]) -> _Busy:
        busy = cls({}, {})
        for one in in_hand:
            busy.add(one.tenant_id, one.receiver)
        return busy

    def add(self, tenant: str, receiver: str) -> None:
        self.receivers[tenant, receiver] = self.receivers.get((tenant, receiver), 0) + 1
        self.tenants[tenant] = self.tenants.get(tenant, 0) + 1


def _due(now: datetime) -> ColumnElement[bool]:
    row = CallbackDelivery
    free = or_(row.held_until.is_(None), row.held_until <= now)
    return and_(row.state == DeliveryState.PENDING.value, row.next_at <= now, free)


def _lost_attempt(row: Row[Any]) -> dict[str, Any]:
    return {
        "delivery_id": row.id,
        "number": row.attempts,
        "at": row.updated_at,
        "status": None,
        "reason": COURIER_LOST,
        "detail": "The courier ended before it could say what became of this attempt.",
        "duration_ms": None,
    }


def _stop_url(connection: Connection, tenant_id: str, url_sha256: str, now: datetime) -> None:
    """The receiver is gone for good: what waits for it waits for a replay, and so does what comes."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(
        make(CallbackStop)
        .values(tenant_id=tenant_id, url_sha256=url_sha256, at=now)
        .on_conflict_do_nothing(index_elements=["tenant_id", "url_sha256"])
    )
    row = CallbackDelivery
    connection.execute(
        update(row)
        .where(
            row.tenant_id == tenant_id,
            row.url_sha256 == url_sha256,
            row.state == DeliveryState.PENDING.value,
            or_(row.held_until.is_(None), row.held_until <= now),
        )
        .values(
            state=DeliveryState.STOPPED.value, next_at=None, held_by=None, held_until=None, updated_at=now
        )
    )
