"""The audit log: who did what to which object, written in the same transaction as the change."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, insert, select

from rebase.errors import RequestInvalid
from rebase.store.database import Database
from rebase.store.tables.tenants import AuditEvent

AuditOutcome = Literal["done", "denied"]
MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class AuditContext:
    """Who is acting. `key_id` is None for the operator's command line."""

    tenant_id: str
    key_id: str | None = None
    request_id: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One audit event as shown to the tenant's admin."""

    id: int
    at: datetime
    tenant_id: str
    key_id: str | None
    action: str
    object: str
    outcome: str
    request_id: str | None
    client: str | None


def write_audit_event(
    connection: Connection,
    at: datetime,
    audit: AuditContext | None,
    action: str,
    object_id: str,
    outcome: AuditOutcome = "done",
) -> None:
    """Add an event in the caller's transaction; does nothing without `audit`. `action`: `noun.verb`;
    `object_id`: the object's id or name, never a secret."""
    if audit is None:
        return
    connection.execute(
        insert(AuditEvent).values(
            at=at,
            tenant_id=audit.tenant_id,
            key_id=audit.key_id,
            action=action,
            object=object_id[:200],
            outcome=outcome,
            request_id=audit.request_id,
            client=audit.client,
        )
    )


def list_audit_events(
    db: Database, tenant_id: str, *, before: int | None = None, limit: int = 50
) -> Sequence[AuditRecord]:
    """One tenant's events with ids below `before`, newest first. Raises RequestInvalid for a bad limit."""
    if not 1 <= limit <= MAX_EVENTS:
        raise RequestInvalid(f"'limit' must be between 1 and {MAX_EVENTS}.", pointer="/limit")
    columns = [getattr(AuditEvent, name) for name in AuditRecord.__slots__]
    query = select(*columns).where(AuditEvent.tenant_id == tenant_id).order_by(AuditEvent.id.desc())
    if before is not None:
        query = query.where(AuditEvent.id < before)
    with db.read() as connection:
        return [AuditRecord(*row) for row in connection.execute(query.limit(limit))]


def anonymize_address(address: str | None) -> str | None:
    """The network of an address (/24, or /48 for IPv6): enough to recognise an unfamiliar caller."""
    if address is None:
        return None
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = getattr(parsed, "ipv4_mapped", None)
    parsed = mapped or parsed
    prefix_length = 24 if parsed.version == 4 else 48
    return str(ipaddress.ip_network(f"{parsed}/{prefix_length}", strict=False))
