"""Every table. SQL is the truth about a job; the broker only rings.

tenants ─┬─ api_keys              who may call; only hashes of keys are stored
         ├─ tenant_limits         what a tenant may use, where it differs from the settings
         ├─ spent_jobs            jobs that were deleted and still count among the day's
         ├─ hub_tokens            a tenant's own token for the Hub, sealed
         └─ jobs ─┬─ outbox       bells still to be rung, written in the job's own transaction
                  ├─ job_tokens   a token that came with one request, sealed, gone when the job ends
                  ├─ job_events   append-only history, read by server-sent events
                  ├─ site_diagnostics
                  ├─ layer_similarities
                  ├─ evaluations
                  ├─ idempotency_keys
                  ├─ callback_deliveries ── callback_attempts   (signing_secrets, callback_stops: of a tenant)
                  └─ anchor_pools     a job of kind `pool` registers one; both have the same id

tenants ─── subscriptions ─┬─ release_matches ── releases     what a webhook or a look at the Hub found
                           └─ campaigns ── campaign_jobs ── jobs

audit_log                         who did what; belongs to no row, so that it outlives what it speaks of
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
