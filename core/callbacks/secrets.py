"""Signing secrets of a tenant: made here, shown once, sealed at rest, replaced with an overlap."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update

from core.audit import AuditContext, write_audit_event
from core.callbacks.signature import generate_secret
from core.clock import Clock, utcnow
from core.db import Database
from core.errors import StateConflict
from core.ids import new_id
from core.tables.callbacks import SigningSecret
from core.tables.tenants import Tenant
from core.vault import Vault

MAX_SIGNING_SECRETS = 3  # signatures in one header


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret as it may be listed: never the secret itself. `retires_at` is null for the newest one."""

    id: str
    created_at: datetime
    retires_at: datetime | None


class SigningSecretRepository:
    """The secrets of every tenant. Without a vault they can be listed, but neither made nor opened."""

    def __init__(self, db: Database, clock: Clock = utcnow) -> None:
        self.db = db
        self.clock = clock

    def rotate(
        self, vault: Vault, tenant_id: str, overlap_s: float, audit: AuditContext | None = None
    ) -> tuple[SecretRecord, str]:
        """Make a new secret, which signs from now on; those before it sign along for `overlap_s` at most.

        The secret itself is returned here and never again. `trail`: who is named in the audit log.
        """
        now, id_, secret = self.clock(), new_id(), generate_secret()
        end = now + timedelta(seconds=overlap_s)
        table = SigningSecret
        of_tenant = table.tenant_id == tenant_id
        with self.db.write() as connection:
            # One rotation at a time, so that exactly one secret is the newest.
            connection.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update()).one()
            connection.execute(delete(table).where(of_tenant, table.retires_at <= now))
            connection.execute(
                update(table)
                .where(of_tenant, or_(table.retires_at.is_(None), table.retires_at > end))
                .values(retires_at=end)
            )
            signing_ids = connection.scalars(
                select(table.id).where(of_tenant).order_by(table.id.desc())
            ).all()
            connection.execute(
                delete(table).where(of_tenant, table.id.in_(signing_ids[MAX_SIGNING_SECRETS - 1 :]))
            )
            connection.execute(
                insert(table).values(
                    id=id_,
                    tenant_id=tenant_id,
                    sealed=vault.encrypt(_make_purpose(tenant_id, id_), secret),
                    created_at=now,
                )
            )
            write_audit_event(connection, now, audit, "callback_secret.made", id_)
        return SecretRecord(id_, now, None), secret

    def list_signing(self, tenant_id: str) -> list[SecretRecord]:
        """Those that sign, newest first."""
        return [SecretRecord(row.id, row.created_at, row.retires_at) for row in self._load_signing(tenant_id)]

    def require_secret(self, tenant_id: str) -> None:
        """Raises StateConflict for a tenant without a secret: nobody could verify its callbacks."""
        if not self._load_signing(tenant_id):
            raise StateConflict(
                "Callbacks are signed, and there is no signing secret yet.",
                hint="Make one first, and give it to the receiver: POST /callback-secrets, or "
                "'rebase callbacks secret'.",
                pointer="/callback",
            )

    def decrypt_signing(self, vault: Vault, tenant_id: str) -> list[str]:
        """The secrets to sign with, newest first. Raises SettingsInvalid when the vault's keys do not fit."""
        return [
            vault.decrypt(_make_purpose(tenant_id, row.id), row.sealed)
            for row in self._load_signing(tenant_id)
        ]

    def _load_signing(self, tenant_id: str) -> list[Row[Any]]:
        table, now = SigningSecret, self.clock()
        query = (
            select(table.id, table.sealed, table.created_at, table.retires_at)
            .where(table.tenant_id == tenant_id, or_(table.retires_at.is_(None), table.retires_at > now))
            .order_by(table.id.desc())
        )
        with self.db.read() as connection:
            return list(connection.execute(query))


def _make_purpose(tenant_id: str, id_: str) -> str:
    return f"signing_secret/{tenant_id}/{id_}"
