"""`/keys`: a tenant's admin makes, lists, rotates and revokes the keys of that tenant."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from rebase.store.api_keys import KeyRecord


class Scope(StrEnum):
    """`read`: look. `convert`: also submit, cancel, retry, delete jobs and pools. `admin`: also keys, tokens
    and data of the tenant."""

    READ = "read"
    CONVERT = "convert"
    ADMIN = "admin"

    def allows(self, required: Scope) -> bool:
        """Is `needed` this scope or one that it implies?"""
        return _ORDER.index(required) <= _ORDER.index(self)


_ORDER = (Scope.READ, Scope.CONVERT, Scope.ADMIN)


class KeyOut(BaseModel):
    """A key, never the key itself: `prefix` is its beginning. `last_used_at` is exact to the hour;
    `rotated_at` is when another key took its place."""

    id: str
    name: str
    prefix: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    rotated_at: datetime | None

    @classmethod
    def from_record(cls, key: KeyRecord) -> KeyOut:
        """The view of a record."""
        return cls(**{name: getattr(key, name) for name in cls.model_fields})


class NewKeyOut(KeyOut):
    """A key in the only answer that holds it."""

    key: str


class KeyListOut(BaseModel):
    """All keys of the tenant, oldest first."""

    keys: list[KeyOut]
