"""What the store of deliveries hands out: plain values, detached from the database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from core.callbacks.spec import DeliveryState


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt. `status`: what the receiver answered; `reason`: why it does not count as delivered."""

    number: int
    at: datetime
    status: int | None
    reason: str | None
    detail: str | None
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery as its owner may see it; `id` is the `webhook-id`. `next_at`: only while it is pending."""

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
        """Take it from a row of `callback_deliveries`."""
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
    """Some deliveries, newest first, and the cursor of those after them (None: there are none)."""

    deliveries: tuple[DeliveryRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class LeasedDelivery:
    """A courier's hold on a delivery; `holder` and `attempt` fence what it writes."""

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
    """What becomes of a delivery after an attempt; `next_at` belongs to `pending` alone."""

    state: DeliveryState
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeliveryCounts:
    """Deliveries by state, and the oldest one that is still to be delivered."""

    by_state: dict[DeliveryState, int]
    oldest_pending: datetime | None
