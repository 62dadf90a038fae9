"""Tenants: keys, limits, Hub tokens, and what was done."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from rebase.schemas.api_keys import Scope
from rebase.store.tables.base import Base, HexId, RowId, build_in_check


class Tenant(Base):
    """Whoever owns jobs. `default` owns everything of a deployment without keys."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A key's SHA-256 (it is high-entropy, so no slow hash is needed) and the prefix that people know."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(build_in_check("scope", [scope.value for scope in Scope]), name="scope"),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    scope: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the hour
    rotated_at: Mapped[datetime | None]  # when another key took its place, and its end was moved up


class TenantLimits(Base):
    """What differs from the settings for one tenant: null takes the setting, -1 is without limit."""

    __tablename__ = "tenant_limits"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    max_running: Mapped[int | None]
    max_queued: Mapped[int | None]
    jobs_per_day: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    updated_at: Mapped[datetime]


class CountedJob(Base):
    """A job that was deleted within 24 hours of its submission, and counts among the tenant's as long."""

    __tablename__ = "spent_jobs"
    __table_args__ = (Index("ix_spent_jobs_tenant_id_id", "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(HexId, primary_key=True)  # the job's
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]  # the job's


class HubToken(Base):
    """A tenant's own token for the Hub, as `rebase.store.vault` sealed it."""

    __tablename__ = "hub_tokens"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class AuditEvent(Base):
    """One thing that somebody did, or tried. Rows are added and, after their time, deleted; never changed (a
    trigger refuses). `client` is the caller's network, not its address."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_tenant_id_id", "tenant_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime]
    tenant_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(HexId)  # null: the command line on the service's own side
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64))
    client: Mapped[str | None] = mapped_column(String(64))
