"""Hub tokens: one per tenant and optionally one per request, both encrypted; and which one a job uses.

A job's own token takes precedence over its tenant's, and that over the deployment's. Tenants other than
`default` use the deployment's token only if `REBASE_SHARE_HUB_TOKEN` is set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, delete, insert, select, update

from rebase.errors import NotFound, RequestInvalid
from rebase.settings import Settings
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.repository import Repository
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import JobToken
from rebase.store.tables.tenants import HubToken, Tenant
from rebase.store.vault import Vault

HUB_TOKEN_HEADER = "X-Hub-Token"  # noqa: S105
MAX_TOKEN_LENGTH = 512
_TOKEN_PATTERN = re.compile(rf"[!-~]{{1,{MAX_TOKEN_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class JobTokenEncryptor:
    """Encrypts a request's token for the job that it creates. Its repr shows neither token nor keys."""

    vault: Vault = field(repr=False)
    token: str = field(repr=False)

    def encrypt(self, job_id: str) -> str:
        """The ciphertext to store in `job_tokens`."""
        return self.vault.encrypt(_make_job_purpose(job_id), self.token)


class TokenOwner(Protocol):
    """The job whose token is resolved."""

    @property
    def job_id(self) -> str:
        """The job's id."""

    @property
    def tenant_id(self) -> str:
        """The job's tenant."""


def check_hub_token(token: str) -> str:
    """The token, stripped. Raises RequestInvalid, without quoting it."""
    token = token.strip()
    if not _TOKEN_PATTERN.fullmatch(token):
        raise RequestInvalid(
            f"A Hub token must be 1 to {MAX_TOKEN_LENGTH} printable ASCII characters without spaces.",
            hint="Copy it again from the settings page of your Hub account.",
        )
    return token


def put_tenant_token(
    store: Repository, vault: Vault, tenant_id: str, token: str, audit: AuditContext | None
) -> None:
    """Store a tenant's token, replacing any earlier one. Raises RequestInvalid, NotFound (no such tenant)."""
    encrypted, now = vault.encrypt(_make_tenant_purpose(tenant_id), check_hub_token(token)), store.clock()
    with store.db.write() as connection:
        # Lock the row, so that concurrent writers are serialised.
        query = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update()
        if connection.scalar(query) is None:
            raise NotFound(f"There is no tenant '{tenant_id}'.", hint="`rebase tenants ls` lists them.")
        connection.execute(delete(HubToken).where(HubToken.tenant_id == tenant_id))
        connection.execute(insert(HubToken).values(tenant_id=tenant_id, sealed=encrypted, updated_at=now))
        write_audit_event(connection, now, audit, "hub_token.set", tenant_id)


def delete_tenant_token(store: Repository, tenant_id: str, audit: AuditContext | None) -> None:
    """Delete a tenant's token; jobs that start later run without it. Raises NotFound."""
    with store.db.write() as connection:
        if connection.execute(delete(HubToken).where(HubToken.tenant_id == tenant_id)).rowcount != 1:
            raise NotFound("No Hub token is stored for this tenant.")
        write_audit_event(connection, store.clock(), audit, "hub_token.deleted", tenant_id)


def get_token_updated_at(store: Repository, tenant_id: str) -> datetime | None:
    """When the tenant's token was stored; None if there is none."""
    with store.db.read() as connection:
        return connection.scalar(select(HubToken.updated_at).where(HubToken.tenant_id == tenant_id))


def resolve_hub_token(store: Repository, settings: Settings, job: TokenOwner) -> str | None:
    """The token that this job uses; None: access the Hub without one. Raises SettingsInvalid if the stored
    token cannot be decrypted with this deployment's keys."""
    with store.db.read() as connection:
        job_token = connection.scalar(select(JobToken.sealed).where(JobToken.job_id == job.job_id))
        tenant_token = connection.scalar(select(HubToken.sealed).where(HubToken.tenant_id == job.tenant_id))
    if job_token is not None:
        return Vault.from_settings(settings).decrypt(_make_job_purpose(job.job_id), job_token)
    if tenant_token is not None:
        return Vault.from_settings(settings).decrypt(_make_tenant_purpose(job.tenant_id), tenant_token)
    if settings.hub_token is None or not (settings.share_hub_token or job.tenant_id == DEFAULT_TENANT):
        return None
    return settings.hub_token.get_secret_value() or None


def _make_tenant_purpose(tenant_id: str) -> str:
    return f"hub_token/{tenant_id}"


def _make_job_purpose(job_id: str) -> str:
    return f"job_token/{job_id}"


# The encrypted Hub token from a job's request: stored with the job, deleted when it ends.


def insert_tokens(connection: Connection, encrypted: Mapping[str, str], now: datetime) -> None:
    """Store the tokens of new jobs (id → encrypted token) in the transaction that queues them."""
    rows = [
        {"job_id": job_id, "sealed": ciphertext, "created_at": now}
        for job_id, ciphertext in encrypted.items()
    ]
    if rows:
        connection.execute(insert(JobToken), rows)


def upsert_token(connection: Connection, job_id: str, ciphertext: str, now: datetime) -> None:
    """Store the token of a job that is queued again."""
    result = connection.execute(update(JobToken).where(JobToken.job_id == job_id).values(sealed=ciphertext))
    if result.rowcount == 0:
        connection.execute(insert(JobToken).values(job_id=job_id, sealed=ciphertext, created_at=now))


def delete_token(connection: Connection, job_id: str) -> None:
    """Delete it in the transaction that ends the job; does nothing if there is none."""
    connection.execute(delete(JobToken).where(JobToken.job_id == job_id))
