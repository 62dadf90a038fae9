"""API keys: 256 random bits, shown once, stored as SHA-256.

A slow password hash would add nothing: 256 random bits cannot be guessed, and look-ups must be fast.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, or_, select, update

from rebase.errors import NotFound, RequestInvalid, StateConflict
from rebase.schemas.api_keys import Scope
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.limits import LIMIT_FIELDS as LIMITS
from rebase.store.limits import Limits, merge_limits
from rebase.store.repository import Repository, is_valid_id, new_id
from rebase.store.tables.tenants import ApiKey, Tenant, TenantLimits

PREFIX = "rb_"
_SHOWN_LENGTH = len(PREFIX) + 6
_TENANT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LAST_USED_PRECISION = timedelta(hours=1)  # precision of `last_used_at`
MIN_LIFETIME = timedelta(minutes=1)
MAX_LIFETIME = timedelta(days=3650)
DEFAULT_OVERLAP = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as shown in lists: never the key itself."""

    id: str
    tenant_id: str
    name: str
    prefix: str
    scope: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    rotated_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key with its plaintext, which is available only now."""

    key: str
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class Identity:
    """The tenant and scope of a key. The caller must check `expires_at` and `revoked_at`."""

    key_id: str
    tenant_id: str
    scope: Scope
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: Limits


def create_key(store: Repository, tenant: str, name: str, scope: Scope = Scope.ADMIN) -> str:
    """Like `issue_key`, but return only the key itself."""
    return issue_key(store, tenant, name, scope).key


def issue_key(
    store: Repository,
    tenant: str,
    name: str,
    scope: Scope = Scope.ADMIN,
    expires_in: timedelta | None = None,
    audit: AuditContext | None = None,
) -> NewKey:
    """Create a key for a tenant, creating the tenant if it is new. The key cannot be shown again.

    Raises RequestInvalid for an invalid tenant id (1 to 64 of a-z, 0-9, '-', '_'), name or lifetime.
    """
    if not _TENANT_ID.fullmatch(tenant):
        raise RequestInvalid(
            ("A tenant's name must be 1 to 64 characters of a-z, 0-9, '-' and '_'."), pointer="/tenant"
        )
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise RequestInvalid("A key's name must be 1 to 200 printable characters.", pointer="/name")
    if expires_in is not None and not MIN_LIFETIME <= expires_in <= MAX_LIFETIME:
        raise RequestInvalid("A key's lifetime must be one minute to ten years.", pointer="/expires_in_s")
    now = store.clock()
    expires = now + expires_in if expires_in is not None else None
    with store.db.write() as connection:
        if connection.scalar(select(Tenant.id).where(Tenant.id == tenant)) is None:
            connection.execute(insert(Tenant).values(id=tenant, created_at=now))
        new_key = _insert(connection, tenant, name, scope, now, expires)
        write_audit_event(connection, now, audit, "key.created", new_key.record.id)
    return new_key


def rotate_key(
    store: Repository,
    key_id: str,
    overlap: timedelta = DEFAULT_OVERLAP,
    *,
    tenant: str | None = None,
    audit: AuditContext | None = None,
) -> NewKey:
    """Issue a key with the same tenant, name, scope and lifetime; the old key expires after `overlap` unless
    it expires sooner. `tenant`: the tenant that must own the key.

    Raises NotFound, StateConflict for a key that has expired, was revoked or was rotated before (its
    lifetime was shortened by that rotation), and RequestInvalid for a negative overlap.
    """
    if not timedelta(0) <= overlap <= MAX_LIFETIME:
        raise RequestInvalid("The overlap must be zero to ten years.", pointer="/overlap_s")
    now = store.clock()
    with store.db.write() as connection:
        old = _load(connection, key_id, tenant)
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise StateConflict(
                ("This key has expired or was revoked and cannot be rotated."), hint="Create a new one."
            )
        if old.rotated_at is not None:
            raise StateConflict(
                "This key was already rotated: another key has replaced it.",
                hint="Rotate that one, or create a new one.",
            )
        expires = now + (old.expires_at - old.created_at) if old.expires_at is not None else None
        new_key = _insert(connection, old.tenant_id, old.name, Scope(old.scope), now, expires)
        end = now + overlap
        new_expiry = end if old.expires_at is None else min(end, old.expires_at)
        connection.execute(
            update(ApiKey).where(ApiKey.id == key_id).values(expires_at=new_expiry, rotated_at=now)
        )
        write_audit_event(connection, now, audit, "key.rotated", key_id)
    return new_key


def revoke_key(
    store: Repository, key_id: str, *, tenant: str | None = None, audit: AuditContext | None = None
) -> None:
    """Revoke a key; running services notice within ten seconds. `tenant`: the tenant that must own it. Raises
    NotFound."""
    change = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    if tenant is not None:
        change = change.where(ApiKey.tenant_id == tenant)
    now = store.clock()
    with store.db.write() as connection:
        if not is_valid_id(key_id) or connection.execute(change.values(revoked_at=now)).rowcount != 1:
            raise NotFound("There is no such key, or it is already revoked.")
        write_audit_event(connection, now, audit, "key.revoked", key_id)


def identify_key(store: Repository, key: str) -> Identity | None:
    """The identity behind a key, even if expired or revoked; None for an unknown key. Records use hourly."""
    columns = [getattr(TenantLimits, name) for name in LIMITS]
    query = (
        select(ApiKey.__table__, *columns)
        .join(TenantLimits, TenantLimits.tenant_id == ApiKey.tenant_id, isouter=True)
        .where(ApiKey.sha256 == hash_key(key))
    )
    with store.db.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    _record_use(store, row.id, row.last_used_at)
    limits = merge_limits(store.limits, row._mapping)
    return Identity(row.id, row.tenant_id, Scope(row.scope), row.expires_at, row.revoked_at, limits)


def is_active(store: Repository, key_id: str) -> bool:
    """Whether a key that was accepted earlier is still valid."""
    query = select(ApiKey.revoked_at, ApiKey.expires_at).where(ApiKey.id == key_id)
    with store.db.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None or row.revoked_at is not None:
        return False
    return row.expires_at is None or bool(row.expires_at > store.clock())


def list_keys(store: Repository, tenant: str | None = None) -> list[KeyRecord]:
    """All keys, or one tenant's, oldest first."""
    query = select(*_COLUMNS).order_by(ApiKey.id)
    if tenant is not None:
        query = query.where(ApiKey.tenant_id == tenant)
    with store.db.read() as connection:
        return [KeyRecord(*row) for row in connection.execute(query)]


def hash_key(key: str) -> str:
    """The hash under which a key is stored."""
    return hashlib.sha256(key.encode()).hexdigest()


_COLUMNS = [getattr(ApiKey, name) for name in KeyRecord.__slots__]


def _insert(
    connection: Connection, tenant: str, name: str, scope: Scope, now: datetime, expires: datetime | None
) -> NewKey:
    key = PREFIX + secrets.token_urlsafe(32)
    record = KeyRecord(
        new_id(), tenant, name, key[:_SHOWN_LENGTH], scope.value, now, expires, None, None, None
    )
    values = {field: getattr(record, field) for field in KeyRecord.__slots__}
    connection.execute(insert(ApiKey).values(**values, sha256=hash_key(key)))
    return NewKey(key, record)


def _load(connection: Connection, key_id: str, tenant: str | None) -> KeyRecord:
    query = select(*_COLUMNS).where(ApiKey.id == key_id).with_for_update()
    row = connection.execute(query).one_or_none() if is_valid_id(key_id) else None
    if row is None or (tenant is not None and row.tenant_id != tenant):
        raise NotFound("There is no such key.")
    return KeyRecord(*row)


def _record_use(store: Repository, key_id: str, last_used_at: datetime | None) -> None:
    now = store.clock()
    if last_used_at is not None and now - last_used_at < _LAST_USED_PRECISION:
        return
    is_stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - _LAST_USED_PRECISION)
    with store.db.statement() as connection:
        connection.execute(update(ApiKey).where(ApiKey.id == key_id, is_stale).values(last_used_at=now))
