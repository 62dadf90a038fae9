"""Signing secrets of a tenant: made here, shown once, sealed at rest, replaced with an overlap."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update

from core.audit import Trail, write_line
from core.callbacks.signature import new_secret
from core.clock import Clock, utcnow
from core.db import Database
from core.errors import StateConflict
from core.ids import new_id
from core.tables.callbacks import SigningSecret
from core.tables.tenants import Tenant
from core.vault import Vault

MOST_SIGNING = 3  # signatures in one header


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret as it may be listed: never the secret itself. `retires_at` is null for the newest one."""

    id: str
    created_at: datetime
    retires_at: datetime | None


class SigningSecrets:
    """The secrets of every tenant. Without a vault they can be listed, but neither made nor opened."""

    def __init__(self, db: Database, clock: Clock = utcnow) -> None:
        self.db = db
        self.clock = clock

    def rotate(
        self, vault: Vault, tenant_id: str, overlap_s: float, trail: Trail | None = None
    ) -> tuple[SecretRecord, str]:
        """Make a new secret, which signs from now on; those before it sign along for `overlap_s` at most.

        The secret itself is returned here and never again. `trail`: who is named in the audit log.
        """
        now, id_, secret = self.clock(), new_id(), new_secret()
        end = now + timedelta(seconds=overlap_s)
        row = SigningSecret
        mine = row.tenant_id == tenant_id
        with self.db.write() as connection:
            # One rotation at a time, so that exactly one secret is the newest.
            connection.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update()).one()
            connection.execute(delete(row).where(mine, row.retires_at <= now))
            connection.execute(
                update(row)
                .where(mine, or_(row.retires_at.is_(None), row.retires_at > end))
                .values(retires_at=end)
            )
            kept = connection.scalars(select(row.id).where(mine).order_by(row.id.desc())).all()
            connection.execute(delete(row).where(mine, row.id.in_(kept[MOST_SIGNING - 1 :])))
            connection.execute(
                insert(row).values(
                    id=id_,
                    tenant_id=tenant_id,
                    sealed=vault.seal(_purpose(tenant_id, id_), secret),
                    created_at=now,
                )
            )
            write_line(connection, now, trail, "callback_secret.made", id_)
        return SecretRecord(id_, now, None), secret

    def listed(self, tenant_id: str) -> list[SecretRecord]:
        """Those that sign, newest first."""
        return [SecretRecord(row.id, row.created_at, row.retires_at) for row in self._signing(tenant_id)]

    def require(self, tenant_id: str) -> None:
        """Raises StateConflict for a tenant without a secret: nobody could verify its callbacks."""
        if not self._signing(tenant_id):
            raise StateConflict(
                "Callbacks are signed, and there is no signing secret yet.",
                hint="Make one first, and give it to the receiver: POST /callback-secrets, or "
                "'rebase callbacks secret'.",
                pointer="/callback",
            )

    def open(self, vault: Vault, tenant_id: str) -> list[str]:
        """The secrets to sign with, newest first. Raises SettingsInvalid when the vault's keys do not fit."""
        return [vault.open(_purpose(tenant_id, row.id), row.sealed) for row in self._signing(tenant_id)]

    def _signing(self, tenant_id: str) -> list[Row[Any]]:
        row, now = SigningSecret, self.clock()
        query = (
            select(row.id, row.sealed, row.created_at, row.retires_at)
            .where(row.tenant_id == tenant_id, or_(row.retires_at.is_(None), row.retires_at > now))
            .order_by(row.id.desc())
        )
        with self.db.read() as connection:
            return list(connection.execute(query))


def _purpose(tenant_id: str, id_: str) -> str:
    return f"signing_secret/{tenant_id}/{id_}"
