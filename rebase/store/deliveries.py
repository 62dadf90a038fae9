"""Callback deliveries: records, enqueueing in a job's transaction, and the queries of clients."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from rebase.errors import NotFound, StateConflict
from rebase.schemas.callbacks import EVENT_BY_STATE, CallbackEvent, DeliveryState, parse_callback_url
from rebase.schemas.states import JobState
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.database import Database
from rebase.store.repository import (
    Clock,
    check_page_limit,
    decode_cursor,
    encode_cursor,
    is_valid_id,
    new_id,
    utcnow,
)
from rebase.store.tables.callbacks import CallbackAttempt, CallbackDelivery, CallbackStop
from rebase.store.tables.jobs import Job


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt. `status`: the receiver's HTTP status; `reason`: why it does not count as delivered."""

    number: int
    at: datetime
    status: int | None
    reason: str | None
    detail: str | None
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery as shown to its owner; `id` is the `webhook-id`. `next_at` is set only while pending."""

    id: str
    job_id: str
    event: str
    url: str
    payload: dict[str, Any]
    state: DeliveryState
    attempts: int
    failures: int
    next_at: datetime | None
    created_at: datetime
    updated_at: datetime
    log: tuple[AttemptRecord, ...] = ()

    @classmethod
    def from_row(cls, row: Row[Any], log: tuple[AttemptRecord, ...] = ()) -> DeliveryRecord:
        """Build from a row of `callback_deliveries`."""
        return cls(
            id=row.id,
            job_id=row.job_id,
            event=row.event,
            url=row.url,
            payload=json.loads(row.payload),
            state=DeliveryState(row.state),
            attempts=row.attempts,
            failures=row.failures,
            next_at=row.next_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            log=log,
        )


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """A page of deliveries, newest first, and the cursor of the next page (None: this is the last one)."""

    deliveries: tuple[DeliveryRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class LeasedDelivery:
    """A dispatcher's lease on a delivery; `lease_owner` and `attempt` fence its writes."""

    id: str
    tenant_id: str
    receiver: str
    url: str
    payload: str
    attempt: int
    failures: int
    lease_owner: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """The new state of a delivery after an attempt; `next_at` is set only for `pending`."""

    state: DeliveryState
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """Deliveries by state, and the oldest one that is still pending."""

    by_state: dict[DeliveryState, int]
    oldest_pending: datetime | None


# A delivery is written in the transaction of the job's transition: it is sent if and only if the
# transition is committed.


def enqueue_delivery(connection: Connection, job_id: str, at: datetime, state: JobState) -> None:
    """Record a delivery if the job's request subscribes to this event. The job's row must have the new state.

    If the URL has answered 410 to this tenant, the delivery is recorded as stopped, so it can be replayed.
    """
    event = EVENT_BY_STATE.get(state)
    if event is None:
        return
    # Most jobs have no callback, and the rest of a request may be long.
    callback = connection.scalar(select(Job.request["callback"]).where(Job.id == job_id))
    if callback is None or event.value not in callback["events"]:
        return
    row = connection.execute(select(Job.__table__).where(Job.id == job_id)).one()
    url = callback["url"]
    digest = hash_url(url)
    stopped = select(CallbackStop.at).where(
        CallbackStop.tenant_id == row.tenant_id, CallbackStop.url_sha256 == digest
    )
    is_pending = connection.scalar(stopped) is None
    connection.execute(
        insert(CallbackDelivery).values(
            id=new_id(),
            tenant_id=row.tenant_id,
            job_id=job_id,
            event=event.value,
            url=url,
            url_sha256=digest,
            receiver=parse_callback_url(url).origin,
            payload=build_payload(row, event, at),
            state=(DeliveryState.PENDING if is_pending else DeliveryState.STOPPED).value,
            attempts=0,
            failures=0,
            next_at=at if is_pending else None,
            created_at=at,
            updated_at=at,
        )
    )


def hash_url(url: str) -> str:
    """The key under which a URL is stopped."""
    return hashlib.sha256(url.encode()).hexdigest()


def build_payload(job: Row[Any], event: CallbackEvent, at: datetime) -> str:
    """The message as JSON text. Small and stable: names and codes; receivers query the API for details."""
    output = (job.result or {}).get("output") or {}
    error = job.error or {}
    data = {
        "job": job.id,
        "kind": job.kind,
        "state": job.state,
        "attempt": job.attempt,
        "verdict": job.verdict,
        "adapter": job.adapter_repo,
        "target": job.target_repo,
        "output": {"repo_id": output.get("repo_id"), "commit": output.get("commit")} if output else None,
        "error": {"code": error.get("code"), "message": error.get("message")} if error else None,
        "path": f"/jobs/{job.id}",
    }
    message = {"type": event.value, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(message, ensure_ascii=True, separators=(",", ":"))


# A tenant's deliveries: list, read, replay. Another tenant's delivery raises NotFound.

_ATTEMPT_COLUMNS = [getattr(CallbackAttempt, name) for name in AttemptRecord.__slots__]


class DeliveryRepository:
    """What clients can do with deliveries."""

    def __init__(self, db: Database, clock: Clock = utcnow) -> None:
        self.db = db
        self.clock = clock

    def list_for_job(self, tenant_id: str, job_id: str) -> tuple[DeliveryRecord, ...]:
        """Every delivery of a job with its attempts, oldest first. Raises NotFound."""
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
        """One delivery with its attempts. Raises NotFound."""
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
        """Newest first, each with its attempts. Raises RequestInvalid for an invalid cursor."""
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
        """Send it again, now, under the same `webhook-id` and with the full retry schedule.

        Deliveries to a URL that had answered 410 are enabled again. Raises NotFound, and StateConflict while
        a dispatcher is sending this delivery.
        """
        now = self.clock()
        with self.db.write() as connection:
            row = _load(connection, tenant_id, delivery_id, lock=True)
            if row.held_until is not None and row.held_until > now:
                raise StateConflict(
                    "This delivery is currently being sent.", hint="Check its log with GET in a minute."
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
        """Counts over all tenants, for /metrics."""
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
    """Delete the oldest deliveries created before `cutoff`, with their attempts; returns how many, at most
    `limit`. Pending deliveries are kept."""
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
