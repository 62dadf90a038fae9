"""Callbacks: deliveries with their attempts, stopped URLs, signing secrets."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from rebase.schemas.callbacks import DeliveryState
from rebase.store.tables.base import Base, HexId, build_in_check


class CallbackDelivery(Base):
    """One message to one receiver, written in the job's transition. Its id is the `webhook-id`.

    A dispatcher leases a row by `held_by` and `held_until`; if it dies, the row falls due again. `attempts`
    only ever increases and numbers the rows of the log; `failures` counts since the last replay.
    """

    __tablename__ = "callback_deliveries"
    __table_args__ = (
        CheckConstraint(build_in_check("state", [state.value for state in DeliveryState]), name="state"),
        Index("ix_callback_deliveries_tenant_id_id", "tenant_id", "id"),
        Index("ix_callback_deliveries_state_next_at", "state", "next_at"),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    event: Mapped[str] = mapped_column(String(32))
    url: Mapped[str] = mapped_column(String(2048))
    url_sha256: Mapped[str] = mapped_column(String(64))
    receiver: Mapped[str] = mapped_column(String(300))  # host and port, the unit of fair scheduling
    payload: Mapped[str] = mapped_column(Text)  # exactly what is signed and sent
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None]
    held_by: Mapped[str | None] = mapped_column(String(64))
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class CallbackAttempt(Base):
    """One attempt at a delivery: the receiver's status, or why there is none. No response bodies."""

    __tablename__ = "callback_attempts"

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("callback_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    status: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str | None] = mapped_column(String(300))
    duration_ms: Mapped[int | None]


class CallbackStop(Base):
    """A URL that answered 410 to this tenant: nothing more is sent there until a delivery is replayed."""

    __tablename__ = "callback_stops"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    url_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime]


class SigningSecret(Base):
    """A secret that signs a tenant's callbacks, encrypted at rest; it signs until `retires_at`."""

    __tablename__ = "signing_secrets"

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    retires_at: Mapped[datetime | None]
