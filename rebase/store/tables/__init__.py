"""Every table. The database is the source of truth; queue messages are only notifications.

tenants ─┬─ api_keys              API keys; only their hashes are stored
         ├─ tenant_limits         limits that differ from the settings
         ├─ spent_jobs            deleted jobs that still count towards the daily limit
         ├─ hub_tokens            the tenant's own Hub token, encrypted
         └─ jobs ─┬─ outbox       notifications to send, written in the job's own transaction
                  ├─ job_tokens   a request's Hub token, encrypted, deleted when the job ends
                  ├─ job_events   append-only history, read by server-sent events
                  ├─ site_diagnostics
                  ├─ layer_similarities
                  ├─ evaluations
                  ├─ idempotency_keys
                  ├─ callback_deliveries ── callback_attempts   (per tenant: signing_secrets, callback_stops)
                  └─ anchor_pools     registered by a job of kind `pool` with the same id

tenants ─── subscriptions ─┬─ release_matches ── releases     reported by webhooks or found by polls
                           └─ campaigns ── campaign_jobs ── jobs

audit_log                         who did what; has no foreign keys, so that it outlives its objects
"""

from __future__ import annotations

from rebase.store.tables.base import DEFAULT_TENANT, Base
from rebase.store.tables.callbacks import CallbackAttempt, CallbackDelivery, CallbackStop, SigningSecret
from rebase.store.tables.jobs import (
    AnchorPool,
    EvaluationMetric,
    IdempotencyKey,
    Job,
    JobEvent,
    JobToken,
    LayerSimilarity,
    Outbox,
    SiteDiagnostics,
)
from rebase.store.tables.releases import Campaign, CampaignJob, Release, ReleaseMatch, Subscription
from rebase.store.tables.tenants import ApiKey, AuditEvent, CountedJob, HubToken, Tenant, TenantLimits

__all__ = [
    "DEFAULT_TENANT",
    "AnchorPool",
    "ApiKey",
    "AuditEvent",
    "Base",
    "CallbackAttempt",
    "CallbackDelivery",
    "CallbackStop",
    "Campaign",
    "CampaignJob",
    "CountedJob",
    "EvaluationMetric",
    "HubToken",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobToken",
    "LayerSimilarity",
    "Outbox",
    "Release",
    "ReleaseMatch",
    "SigningSecret",
    "SiteDiagnostics",
    "Subscription",
    "Tenant",
    "TenantLimits",
]
