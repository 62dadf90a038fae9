"""Tenants: API keys, limits, Hub tokens and the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from rebase.schemas.api_keys import Scope
from rebase.store.tables.base import Base, HexId, RowId, build_in_check


class Tenant(Base):
    """An owner of jobs. `default` owns everything in a deployment without keys."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class ApiKey(Base):
    """An API key: its SHA-256 (its entropy makes a slow hash unnecessary) and the prefix shown in lists."""

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
    last_used_at: Mapped[datetime | None]  # precise to the hour
    rotated_at: Mapped[datetime | None]  # when it was rotated, which brought its expiry forward


class TenantLimits(Base):
    """Limits of one tenant that override the settings: null uses the setting, -1 means unlimited."""

    __tablename__ = "tenant_limits"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    max_running: Mapped[int | None]
    max_queued: Mapped[int | None]
    jobs_per_day: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    updated_at: Mapped[datetime]


class CountedJob(Base):
    """A job deleted within 24 hours of its submission; until then it counts towards the daily limit."""

    __tablename__ = "spent_jobs"
    __table_args__ = (Index("ix_spent_jobs_tenant_id_id", "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(HexId, primary_key=True)  # the job's
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]  # the job's


class HubToken(Base):
    """A tenant's own Hub token, encrypted by `rebase.store.vault`."""

    __tablename__ = "hub_tokens"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class AuditEvent(Base):
    """One action or denied attempt. Rows are inserted and, after their retention period, deleted; a trigger
    rejects updates. `client` is the caller's network, not its address."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_tenant_id_id", "tenant_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime]
    tenant_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(HexId)  # null: the operator's command line
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64))
    client: Mapped[str | None] = mapped_column(String(64))
