"""API keys: 256 random bits, shown once, kept as SHA-256.

A slow password hash would buy nothing: nobody guesses 256 bits, and one look-up per request must stay cheap.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update

from core.errors import NotFound, RequestInvalid
from core.jobs import JobStore
from core.jobs.records import new_id
from core.tables import ApiKey, Tenant

PREFIX = "rb_"
_SHOWN = len(PREFIX) + 6
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it may be listed: never the key itself."""

    id: str
    tenant_id: str
    name: str
    prefix: str
    created_at: datetime
    revoked_at: datetime | None


def create(store: JobStore, tenant: str, name: str) -> str:
    """Make a key for a tenant (made too when it is new) and return it; it cannot be shown again.

    Raises RequestInvalid for a tenant that is not 1 to 64 of a-z, 0-9, '-', '_', or a bad name.
    """
    if not _TENANT.fullmatch(tenant):
        raise RequestInvalid("A tenant is 1 to 64 characters of a-z, 0-9, '-' and '_'.", pointer="/tenant")
    if not 0 < len(name) <= 200:
        raise RequestInvalid("A key's name is 1 to 200 characters.", pointer="/name")
    key = PREFIX + secrets.token_urlsafe(32)
    now = store.clock()
    with store.db.write() as connection:
        if connection.scalar(select(Tenant.id).where(Tenant.id == tenant)) is None:
            connection.execute(insert(Tenant).values(id=tenant, created_at=now))
        connection.execute(
            insert(ApiKey).values(
                id=new_id(),
                tenant_id=tenant,
                name=name,
                prefix=key[:_SHOWN],
                sha256=digest(key),
                created_at=now,
            )
        )
    return key


def tenant_of(store: JobStore, key: str) -> str | None:
    """The tenant that a key belongs to; None for a key that is unknown or revoked."""
    with store.db.read() as connection:
        query = select(ApiKey.tenant_id).where(ApiKey.sha256 == digest(key), ApiKey.revoked_at.is_(None))
        return connection.scalar(query)


def list_keys(store: JobStore, tenant: str | None = None) -> list[KeyRecord]:
    """All keys, or one tenant's, oldest first."""
    columns = [getattr(ApiKey, name) for name in KeyRecord.__slots__]
    query = select(*columns).order_by(ApiKey.id)
    if tenant is not None:
        query = query.where(ApiKey.tenant_id == tenant)
    with store.db.read() as connection:
        return [KeyRecord(*row) for row in connection.execute(query)]


def revoke(store: JobStore, key_id: str) -> None:
    """End a key's life; running services notice within ten seconds. Raises NotFound."""
    with store.db.write() as connection:
        changed = connection.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=store.clock())
        )
        if changed.rowcount != 1:
            raise NotFound("There is no such key, or it was revoked before.")


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()
