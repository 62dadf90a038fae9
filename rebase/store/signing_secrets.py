"""Tenants' signing secrets, and signatures as in Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, insert, or_, select, update

from rebase.errors import StateConflict
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.database import Database
from rebase.store.repository import Clock, new_id, utcnow
from rebase.store.tables.callbacks import SigningSecret
from rebase.store.tables.tenants import Tenant
from rebase.store.vault import Vault

SECRET_PREFIX = "whsec_"  # noqa: S105
_SECRET_BYTES = 32


def generate_secret() -> str:
    """`whsec_` and 32 random bytes as base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature made with one secret, as `v1,<base64>`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def build_signature_headers(
    secrets_: Sequence[str], message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The three signature headers. All secrets sign, so that a receiver may hold any one of them."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in secrets_),
    }


# A tenant's signing secrets: generated here, shown once, encrypted at rest, rotated with an overlap.

MAX_SIGNING_SECRETS = 3  # signatures in one header


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A secret as shown in lists: never the secret itself. `retires_at` is None for the newest one."""

    id: str
    created_at: datetime
    retires_at: datetime | None


class SigningSecretRepository:
    """The secrets of every tenant. Without a vault they can only be listed."""

    def __init__(self, db: Database, clock: Clock = utcnow) -> None:
        self.db = db
        self.clock = clock

    def rotate(
        self, vault: Vault, tenant_id: str, overlap_s: float, audit: AuditContext | None = None
    ) -> tuple[SecretRecord, str]:
        """Make a new secret, which signs from now on; earlier ones keep signing for at most `overlap_s`.

        The secret is returned only here. `audit`: the actor recorded in the audit log.
        """
        now, id_, secret = self.clock(), new_id(), generate_secret()
        end = now + timedelta(seconds=overlap_s)
        table = SigningSecret
        of_tenant = table.tenant_id == tenant_id
        with self.db.write() as connection:
            # Serialise rotations, so that exactly one secret is the newest.
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
        """The secrets currently used for signing, newest first."""
        return [SecretRecord(row.id, row.created_at, row.retires_at) for row in self._load_signing(tenant_id)]

    def require_secret(self, tenant_id: str) -> None:
        """Raises StateConflict for a tenant without a secret: its callbacks could not be verified."""
        if not self._load_signing(tenant_id):
            raise StateConflict(
                "Callbacks must be signed, and there is no signing secret yet.",
                hint=(
                    "Create one first, and give it to the receiver: POST /callback-secrets, or 'rebase "
                    "callbacks secret'."
                ),
                pointer="/callback",
            )

    def decrypt_signing(self, vault: Vault, tenant_id: str) -> list[str]:
        """The secrets to sign with, newest first. Raises SettingsInvalid if the vault cannot decrypt them."""
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
