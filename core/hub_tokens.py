"""Tokens for the Hub: one per tenant, one per request, both sealed; and which of them a job uses.

A job's own token comes before its tenant's, and that before the deployment's, which jobs of other tenants
than `default` use only where `REBASE_SHARE_HUB_TOKEN` says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sqlalchemy import delete, insert, select

from core.audit import Trail, write_line
from core.errors import NotFound, RequestInvalid
from core.jobs.base import StoreBase
from core.settings import Settings
from core.tables.base import DEFAULT_TENANT
from core.tables.jobs import JobToken
from core.tables.tenants import HubToken, Tenant
from core.vault import Vault

HEADER = "X-Hub-Token"
MOST_CHARACTERS = 512
_TOKEN = re.compile(rf"[!-~]{{1,{MOST_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class SealedFor:
    """A request's token, to be sealed for the job that it makes. Neither shows in a message."""

    vault: Vault = field(repr=False)
    token: str = field(repr=False)

    def seal(self, job_id: str) -> str:
        """What `job_tokens` holds."""
        return self.vault.seal(_of_job(job_id), self.token)


class Job(Protocol):
    """Whose token is asked for."""

    @property
    def job_id(self) -> str:
        """Its id."""

    @property
    def tenant_id(self) -> str:
        """Its owner."""


def check_hub_token(token: str) -> str:
    """The token without space around it. Raises RequestInvalid, without quoting it."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise RequestInvalid(
            f"A Hub token is 1 to {MOST_CHARACTERS} printable ASCII characters without spaces.",
            hint="Copy it again from the settings page of your Hub account.",
        )
    return token


def put_tenant_token(store: StoreBase, vault: Vault, tenant_id: str, token: str, trail: Trail | None) -> None:
    """Store a tenant's token in place of the one before. Raises RequestInvalid, NotFound (no such tenant)."""
    sealed, now = vault.seal(_of_tenant(tenant_id), check_hub_token(token)), store.clock()
    with store.db.write() as connection:
        # The row is locked, so that two who store a token at once come one after the other.
        query = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update()
        if connection.scalar(query) is None:
            raise NotFound(f"There is no tenant '{tenant_id}'.", hint="`rebase tenants ls` lists them.")
        connection.execute(delete(HubToken).where(HubToken.tenant_id == tenant_id))
        connection.execute(insert(HubToken).values(tenant_id=tenant_id, sealed=sealed, updated_at=now))
        write_line(connection, now, trail, "hub_token.set", tenant_id)


def delete_tenant_token(store: StoreBase, tenant_id: str, trail: Trail | None) -> None:
    """Forget a tenant's token; jobs that begin later do without. Raises NotFound."""
    with store.db.write() as connection:
        if connection.execute(delete(HubToken).where(HubToken.tenant_id == tenant_id)).rowcount != 1:
            raise NotFound("No Hub token is stored for this tenant.")
        write_line(connection, store.clock(), trail, "hub_token.deleted", tenant_id)


def token_set_at(store: StoreBase, tenant_id: str) -> datetime | None:
    """When the tenant's token was stored; None where there is none."""
    with store.db.read() as connection:
        return connection.scalar(select(HubToken.updated_at).where(HubToken.tenant_id == tenant_id))


def token_of(store: StoreBase, settings: Settings, job: Job) -> str | None:
    """The token that this job is to use; None: the Hub is asked without one. Raises SettingsInvalid where one
    is stored that this deployment cannot open."""
    with store.db.read() as connection:
        own = connection.scalar(select(JobToken.sealed).where(JobToken.job_id == job.job_id))
        tenants = connection.scalar(select(HubToken.sealed).where(HubToken.tenant_id == job.tenant_id))
    if own is not None:
        return Vault.of(settings).open(_of_job(job.job_id), own)
    if tenants is not None:
        return Vault.of(settings).open(_of_tenant(job.tenant_id), tenants)
    if settings.hub_token is None or not (settings.share_hub_token or job.tenant_id == DEFAULT_TENANT):
        return None
    return settings.hub_token.get_secret_value() or None


def _of_tenant(tenant_id: str) -> str:
    return f"hub_token/{tenant_id}"


def _of_job(job_id: str) -> str:
    return f"job_token/{job_id}"
