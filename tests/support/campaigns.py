"""Subscriptions for tests, webhook payloads, and campaigns brought about by hand."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select

from rebase.schemas.states import CampaignDbState
from rebase.schemas.subscriptions import MAIN_REF, SubscriptionRequest
from rebase.store.records import Claim, Decision, ReleaseEvent, SubscriptionRecord
from rebase.store.repository import new_id
from rebase.store.store import Store
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Campaign
from rebase.store.tables.tenants import Tenant

SHA = "a" * 40
FACTS: dict[str, Any] = {"content": "weights-1"}


def subscription_body(**changes: Any) -> dict[str, Any]:
    """The JSON of a valid subscription; `changes` replace its top-level fields."""
    body = {
        "bases": "acme/base-*",
        "adapters": [{"repo_id": "acme/sql-lora"}, {"repo_id": "acme/chat-lora"}],
        "method": "copy",
    }
    return {**body, **changes}


def a_subscription(**changes: Any) -> SubscriptionRequest:
    """The same as a model."""
    return SubscriptionRequest.model_validate(subscription_body(**changes))


def seen(sha: str = SHA, repo_id: str = "acme/base-2", **changes: Any) -> ReleaseEvent:
    """What a webhook told."""
    told = {"webhook_id": "hook", "hub_repo_id": "repo", "seen_by": "webhook", **changes}
    return ReleaseEvent(repo_id, MAIN_REF, sha, **told)


def add_tenant(store: Store, tenant: str) -> str:
    """A tenant beside the default one."""
    with store.db.write() as connection:
        connection.execute(insert(Tenant).values(id=tenant, created_at=store.clock()))
    return tenant


def release_claims(store: Store, kind: str = "release") -> list[Claim]:
    """Claim every waiting job of the service's own kinds."""
    with store.db.read() as connection:
        ids = connection.scalars(select(Job.id).where(Job.kind == kind).order_by(Job.id)).all()
    return [claim for job_id in ids if (claim := store.queue.claim(job_id, "worker", 60)) is not None]


def opened(store: Store, subscription: SubscriptionRecord, sha: str = SHA, **changes: Any) -> str:
    """The campaign of a release that passed all guards, as a worker begins it."""
    assert store.releases.record(seen(sha)) == "recorded"
    (claim,) = release_claims(store)
    outputs = {n: f"acme/out-{n}" for n in range(len(subscription.spec.adapters))}
    decision = Decision(CampaignDbState.OPEN, sha, facts=FACTS, outputs=outputs, **changes)
    decided = store.decisions.record(claim, subscription, "acme/base-2", decision)
    store.queue.succeed(claim, {"outcome": decided.outcome})
    assert decided.campaign_id is not None
    return decided.campaign_id


def bare_campaign(store: Store, subscription: SubscriptionRecord) -> str:
    """A campaign's row without jobs."""
    now = store.clock()
    values = {"id": new_id(), "tenant_id": subscription.tenant_id, "subscription_id": subscription.id}
    values |= {"repo_id": "acme/base-2", "number": 1, "sha": SHA, "state": CampaignDbState.OPEN.value}
    values |= {"request": subscription.request, "decision": {"outputs": {}, "left_out": [], "reasons": []}}
    values |= {"dry_run": False, "created_at": now, "updated_at": now}
    with store.db.write() as connection:
        connection.execute(insert(Campaign).values(values))
    return str(values["id"])


def payload(**changes: Any) -> dict[str, Any]:
    """A webhook of the Hub, version 3: a push to main. A dotted key changes a nested field; `...` removes
    it."""
    body: dict[str, Any] = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {
            "type": "model",
            "name": "acme/base-2",
            "id": "621ffdc036468d709f17434d",
            "private": False,
            "url": {
                "web": "https://hub.example/acme/base-2",
                "api": "https://hub.example/api/models/acme/base-2",
            },
            "tags": ["safetensors"],
            "headSha": SHA,
            "owner": {"id": "628b753283ef59b5be89e937"},
        },
        "updatedRefs": [{"ref": MAIN_REF, "oldSha": "0" * 40, "newSha": SHA}],
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = body
        for part in path:
            node = node[part]
        if value is ...:
            node.pop(last)
        else:
            node[last] = value
    return body
