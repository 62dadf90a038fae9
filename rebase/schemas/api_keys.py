"""API keys and their scopes: responses of `/keys`."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from rebase.store.api_keys import KeyRecord


class Scope(StrEnum):
    """`read`: read only. `convert`: also submit, cancel, retry and delete jobs and pools. `admin`: also
    manage the tenant's keys, tokens and data."""

    READ = "read"
    CONVERT = "convert"
    ADMIN = "admin"

    def allows(self, required: Scope) -> bool:
        """Whether this scope is or implies `required`."""
        return _ORDER.index(required) <= _ORDER.index(self)


_ORDER = (Scope.READ, Scope.CONVERT, Scope.ADMIN)


class KeyOut(BaseModel):
    """A key without its secret: `prefix` is its beginning. `last_used_at` is precise to the hour;
    `rotated_at` is when another key replaced it."""

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
        """Build from a record."""
        return cls(**{name: getattr(key, name) for name in cls.model_fields})


class NewKeyOut(KeyOut):
    """A new key; the only response that contains the key itself."""

    key: str


class KeyListOut(BaseModel):
    """All keys of the tenant, oldest first."""

    keys: list[KeyOut]
