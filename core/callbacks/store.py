"""Deliveries of a tenant: look, page, replay. Another tenant's delivery does not exist here."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from core.audit import AuditContext, write_audit_event
from core.callbacks.records import AttemptRecord, DeliveryCounts, DeliveryPage, DeliveryRecord
from core.callbacks.spec import DeliveryState
from core.clock import Clock, utcnow
from core.db import Database
from core.errors import NotFound, StateConflict
from core.jobs.client_side import check_page_limit, is_valid_id
from core.jobs.records import decode_cursor, encode_cursor
from core.tables.callbacks import CallbackAttempt, CallbackDelivery, CallbackStop
from core.tables.jobs import Job

_ATTEMPT_COLUMNS = [getattr(CallbackAttempt, name) for name in AttemptRecord.__slots__]


class DeliveryRepository:
    """What clients may ask of deliveries."""

    def __init__(self, db: Database, clock: Clock = utcnow) -> None:
        self.db = db
        self.clock = clock

    def list_for_job(self, tenant_id: str, job_id: str) -> tuple[DeliveryRecord, ...]:
        """Every delivery of a job with its log, oldest first. Raises NotFound for another's job."""
        if not is_valid_id(job_id):
            raise NotFound("There is no such job.")
        owned = select(Job.id).where(Job.id == job_id, Job.tenant_id == tenant_id)
        query = (
            _select_deliveries(tenant_id)
            .where(CallbackDelivery.job_id == job_id)
            .order_by(CallbackDelivery.id)
        )
        with self.db.read() as connection:
            if connection.scalar(owned) is None:
                raise NotFound("There is no such job.")
            return _attach_logs(connection, list(connection.execute(query)))

    def get(self, tenant_id: str, delivery_id: str) -> DeliveryRecord:
        """One delivery with its log. Raises NotFound."""
        with self.db.read() as connection:
            return _attach_logs(connection, [_load(connection, tenant_id, delivery_id)])[0]

    def list_deliveries(
        self,
        tenant_id: str,
        *,
        state: DeliveryState | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> DeliveryPage:
        """Newest first, each with its log. Raises RequestInvalid for a foreign cursor."""
        check_page_limit(limit)
        query = _select_deliveries(tenant_id).order_by(CallbackDelivery.id.desc())
        if state is not None:
            query = query.where(CallbackDelivery.state == state.value)
        if cursor is not None:
            query = query.where(CallbackDelivery.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = list(connection.execute(query.limit(limit + 1)))
            deliveries = _attach_logs(connection, rows[:limit])
        return DeliveryPage(deliveries, encode_cursor(deliveries[-1].id) if len(rows) > limit else None)

    def replay(self, tenant_id: str, delivery_id: str, audit: AuditContext | None = None) -> DeliveryRecord:
        """Send it (again), now, under the same `webhook-id` and with the whole schedule before it.

        A URL that had answered 410 counts as willing again. Raises NotFound, and StateConflict while a
        courier is busy with this very delivery.
        """
        now = self.clock()
        with self.db.write() as connection:
            row = _load(connection, tenant_id, delivery_id, lock=True)
            if row.held_until is not None and row.held_until > now:
                raise StateConflict(
                    "This delivery is being sent right now.", hint="Look again in a minute: GET its log."
                )
            connection.execute(
                delete(CallbackStop).where(
                    CallbackStop.tenant_id == tenant_id, CallbackStop.url_sha256 == row.url_sha256
                )
            )
            connection.execute(
                update(CallbackDelivery)
                .where(CallbackDelivery.id == delivery_id)
                .values(state=DeliveryState.PENDING.value, failures=0, next_at=now, updated_at=now)
            )
            write_audit_event(connection, now, audit, "delivery.replayed", delivery_id)
            return _attach_logs(connection, [_load(connection, tenant_id, delivery_id)])[0]

    def count_by_state(self) -> DeliveryCounts:
        """Of all tenants, for /metrics."""
        grouped = select(CallbackDelivery.state, func.count()).group_by(CallbackDelivery.state)
        oldest = select(func.min(CallbackDelivery.created_at)).where(
            CallbackDelivery.state == DeliveryState.PENDING.value
        )
        with self.db.read() as connection:
            counts = {row[0]: row[1] for row in connection.execute(grouped)}
            return DeliveryCounts(
                {state: counts.get(state.value, 0) for state in DeliveryState}, connection.scalar(oldest)
            )


def delete_deliveries(db: Database, cutoff: datetime, limit: int) -> int:
    """Delete the oldest deliveries made before this, with their logs, `limit` at most; how many. Pending ones
    stay until they end."""
    old = (
        select(CallbackDelivery.id)
        .where(CallbackDelivery.created_at < cutoff, CallbackDelivery.state != DeliveryState.PENDING.value)
        .order_by(CallbackDelivery.id)
        .limit(limit)
    )
    with db.write() as connection:
        return connection.execute(delete(CallbackDelivery).where(CallbackDelivery.id.in_(old))).rowcount


def _select_deliveries(tenant_id: str) -> Any:
    return select(CallbackDelivery.__table__).where(CallbackDelivery.tenant_id == tenant_id)


def _load(connection: Connection, tenant_id: str, delivery_id: str, *, lock: bool = False) -> Row[Any]:
    if is_valid_id(delivery_id):
        query = _select_deliveries(tenant_id).where(CallbackDelivery.id == delivery_id)
        row: Row[Any] | None = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is not None:
            return row
    raise NotFound("There is no such delivery.", hint="GET /deliveries lists yours.")


def _attach_logs(connection: Connection, rows: list[Row[Any]]) -> tuple[DeliveryRecord, ...]:
    logs: dict[str, list[AttemptRecord]] = {row.id: [] for row in rows}
    query = (
        select(CallbackAttempt.delivery_id, *_ATTEMPT_COLUMNS)
        .where(CallbackAttempt.delivery_id.in_(logs))
        .order_by(CallbackAttempt.delivery_id, CallbackAttempt.number)
    )
    for delivery_id, *values in connection.execute(query) if rows else ():
        logs[delivery_id].append(AttemptRecord(*values))
    return tuple(DeliveryRecord.from_row(row, tuple(logs[row.id])) for row in rows)
