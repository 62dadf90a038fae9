"""Two tenants in one deployment: keys of every scope, ended keys, and something of each kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import update

from rebase.schemas.api_keys import Scope
from rebase.store import api_keys as keys
from rebase.store.deliveries import DeliveryRepository
from rebase.store.store import Store
from rebase.store.tables.tenants import ApiKey
from service.auth import get_declared_scopes
from support.api import Api
from support.campaigns import a_subscription, bare_campaign
from support.databases import a_request
from support.pools import a_pool

# What is open to everybody. The Hub's webhook proves itself with a secret of its own.
OPEN = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
        "/webhooks/hub",
    }
)


def bearer(key: str) -> dict[str, str]:
    """The header that a client sends."""
    return {"Authorization": f"Bearer {key}"}


def guarded_routes(api: Api) -> list[tuple[str, str, Scope]]:
    """(verb, path, scope) of every route that asks who is calling."""
    found = get_declared_scopes(api.client.app)  # type: ignore[arg-type]
    return sorted(
        (method, path, scope)
        for (method, path), scope in found.items()
        if scope is not None and path not in OPEN and method != "HEAD"
    )


@dataclass
class Household:
    """What a tenant has: a key per scope, and the id of one thing of each kind."""

    tenant: str
    keys: dict[Scope, str]
    ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, store: Store, tenant: str) -> Household:
        """A new tenant with three keys and one of every kind of thing."""
        made = {scope: keys.issue_key(store, tenant, f"{tenant}-{scope}", scope) for scope in Scope}
        job, _ = store.submissions.submit(tenant, "convert", a_request(adapter={"repo_id": f"{tenant}/lora"}))
        pool, _ = store.pools.submit(tenant, a_pool())
        ids = {"job_id": job.id, "pool_id": pool.id, "key_id": made[Scope.READ].record.id}
        subscription, _ = store.subscriptions.create(tenant, a_subscription())
        told, _ = store.submissions.submit(
            tenant, "convert", a_request(callback={"url": "https://tools.example/hook"})
        )
        store.jobs.cancel(tenant, told.id)
        (delivery,) = DeliveryRepository(store.db, store.clock).list_for_job(tenant, told.id)
        ids |= {"subscription_id": subscription.id, "campaign_id": bare_campaign(store, subscription)}
        ids["delivery_id"] = delivery.id
        return cls(tenant, {scope: one.key for scope, one in made.items()}, ids)

    def headers(self, scope: Scope) -> dict[str, str]:
        """As a caller with this scope."""
        return bearer(self.keys[scope])

    def id_for(self, parameter: str) -> str:
        """An id of this tenant for a path parameter; its job's for a kind of thing that is not known here."""
        return self.ids.get(parameter, self.ids["job_id"])


def ended_keys(store: Store, tenant: str) -> dict[str, str]:
    """Admin keys that have ended, by how."""
    revoked, expired = (keys.issue_key(store, tenant, name) for name in ("revoked", "expired"))
    keys.revoke_key(store, revoked.record.id)
    past = store.clock() - timedelta(seconds=1)
    with store.db.write() as connection:
        change = update(ApiKey).where(ApiKey.id == expired.record.id)
        connection.execute(change.values(expires_at=past))
    return {"revoked": revoked.key, "expired": expired.key}


def without(answer: Any, *texts: str) -> str:
    """An answer's words without ids that differ by themselves."""
    said: str = answer.text
    for text in (*texts, answer.headers["x-request-id"]):
        said = said.replace(text, "…")
    return said
