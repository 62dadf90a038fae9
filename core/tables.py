"""Every table. SQL is the truth about a job; the broker only rings.

tenants ─┬─ api_keys              who may call; only hashes of keys are stored
         ├─ tenant_limits         what a tenant may use, where it differs from the settings
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

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.callbacks.spec import DeliveryState
from core.releases.states import Stored
from core.scopes import Scope
from core.states import TERMINAL, JobState

DEFAULT_TENANT = "default"

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which has no time zones, holds it as naive UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


RowId = BigInteger().with_variant(Integer, "sqlite")
Hex = String(32)
JsonObject = dict[str, Any]


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {datetime: UtcDateTime(), JsonObject: JSON()}  # noqa: RUF012  (read by SQLAlchemy)


def _one_of(column: str, values: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


_ACTIVE = text(_one_of("state", [state.value for state in JobState if state not in TERMINAL]))


class Tenant(Base):
    """Whoever owns jobs. `default` owns everything of a deployment without keys."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A key's SHA-256 (it is high-entropy, so no slow hash is needed) and the prefix that people know."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint(_one_of("scope", [scope.value for scope in Scope]), name="scope"),)

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    scope: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the hour


class TenantLimits(Base):
    """What differs from the settings for one tenant: null takes the setting, -1 is without limit."""

    __tablename__ = "tenant_limits"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    max_running: Mapped[int | None]
    max_queued: Mapped[int | None]
    jobs_per_day: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    updated_at: Mapped[datetime]


class HubToken(Base):
    """A tenant's own token for the Hub, as `core.vault` sealed it."""

    __tablename__ = "hub_tokens"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class JobToken(Base):
    """A Hub token that came with one request. Every move that ends the job deletes it."""

    __tablename__ = "job_tokens"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class AuditLine(Base):
    """One thing that somebody did, or tried. Rows are added and, after their time, deleted; never changed (a
    trigger refuses). `client` is the caller's network, not its address."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_tenant_id_id", "tenant_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    at: Mapped[datetime]
    tenant_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(Hex)  # null: the command line on the service's own side
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64))
    client: Mapped[str | None] = mapped_column(String(64))


class Job(Base):
    """One conversion, pre-check or registration of an anchor pool; or the service's own work for a
    subscription (kinds `release` and `reconcile`), which no client is shown. `version` rises with every
    visible change and is the ETag."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(_one_of("state", [state.value for state in JobState]), name="state"),
        CheckConstraint(
            _one_of("kind", ["convert", "precheck", "pool", "release", "reconcile"]), name="kind"
        ),
        Index("ix_jobs_output_repo", "output_repo"),  # is a push one of our own?
        Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
        Index(
            "ix_jobs_active",
            "state",
            "id",
            postgresql_where=_ACTIVE,
            sqlite_where=_ACTIVE,
        ),
        # For a tenant's own share: how many of its jobs run, and which of its jobs is next.
        Index(
            "ix_jobs_tenant_active",
            "tenant_id",
            "state",
            "id",
            postgresql_where=_ACTIVE,
            sqlite_where=_ACTIVE,
        ),
    )

    id: Mapped[str] = mapped_column(Hex, primary_key=True)  # UUID version 7: sorts by creation
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    request: Mapped[JsonObject]
    adapter_repo: Mapped[str] = mapped_column(String(200))  # of kind `pool`: its source base
    target_repo: Mapped[str] = mapped_column(String(200))  # of kind `pool`: its target base

    # Who works on it. `attempt` only ever rises, so it fences writes even after a person's retry.
    attempt: Mapped[int] = mapped_column(default=0)
    attempt_limit: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    not_before: Mapped[datetime | None]  # end of a wait between attempts
    ring_after: Mapped[datetime | None]  # a queued job that nobody took is rung again then
    rings: Mapped[int] = mapped_column(default=0)

    # What a reader sees.
    phase: Mapped[str | None] = mapped_column(String(16))
    progress_done: Mapped[int | None] = mapped_column(BigInteger)  # may count bytes
    progress_total: Mapped[int | None] = mapped_column(BigInteger)
    progress_unit: Mapped[str | None] = mapped_column(String(32))
    progress_eta_s: Mapped[float | None]
    adapter_sha: Mapped[str | None] = mapped_column(String(64))
    source_repo: Mapped[str | None] = mapped_column(String(200))
    source_sha: Mapped[str | None] = mapped_column(String(64))
    target_sha: Mapped[str | None] = mapped_column(String(64))
    output_repo: Mapped[str | None] = mapped_column(String(200))
    verdict: Mapped[str | None] = mapped_column(String(16))
    diagnostics: Mapped[JsonObject | None] = mapped_column(JSON(none_as_null=True))
    result: Mapped[JsonObject | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[JsonObject | None] = mapped_column(JSON(none_as_null=True))
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Outbox(Base):
    """A bell to be rung. A relay holds it until `next_at`, rings and deletes it; a dead relay's falls due."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tries: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime] = mapped_column(index=True)
    created_at: Mapped[datetime]


class JobEvent(Base):
    """One thing that happened to a job. Ids of one job rise in commit order (its row is locked first)."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[JsonObject]


class SiteDiagnostics(Base):
    """Measurements of one target site, in the order in which the worker gave them."""

    __tablename__ = "site_diagnostics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[JsonObject]


class LayerSimilarity(Base):
    """How alike a source layer and a target layer are on the same text (debiased CKA); `chosen`: the target
    layer is paired with this source layer."""

    __tablename__ = "layer_similarities"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    source_layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    target_layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cka: Mapped[float]
    chosen: Mapped[bool]


class EvaluationFigure(Base):
    """One figure of one model in a job's evaluation, with its interval over `n` examples; `reason`: why it
    has no value."""

    __tablename__ = "evaluations"
    __table_args__ = (Index("ix_evaluations_metric_subject", "metric", "subject"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    subject: Mapped[str] = mapped_column(String(32))
    metric: Mapped[str] = mapped_column(String(255))
    value: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    n: Mapped[int]
    reason: Mapped[str | None] = mapped_column(String(500))


class IdempotencyKey(Base):
    """A client's own key for a submission, kept as long as its job; `fingerprint` is its SHA-256."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class AnchorPool(Base):
    """An anchor pool, found by its tenant and the two bases. Its id is that of the job which registers it.

    What it holds stands in the job: `request` as it was sent, `result["pool"]` with every revision a commit.
    So does its state (`core.states.pool_state_of`).
    """

    __tablename__ = "anchor_pools"
    __table_args__ = (
        Index(
            "ix_anchor_pools_tenant_id_source_repo_target_repo_id",
            "tenant_id",
            "source_repo",
            "target_repo",
            "id",
        ),
    )

    id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(String(100))
    source_repo: Mapped[str] = mapped_column(String(200))
    target_repo: Mapped[str] = mapped_column(String(200))
    anchors: Mapped[int]  # how many
    created_at: Mapped[datetime]


class CallbackDelivery(Base):
    """One message to one receiver, written with the move that it tells of. Its id is the `webhook-id`.

    A courier holds a row by `held_by` and `held_until`; a dead courier's falls due again. `attempts` only
    ever rises and names the rows of the log; `failures` counts since the last replay.
    """

    __tablename__ = "callback_deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("state", [state.value for state in DeliveryState]), name="state"),
        Index("ix_callback_deliveries_tenant_id_id", "tenant_id", "id"),
        Index("ix_callback_deliveries_state_next_at", "state", "next_at"),
    )

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    event: Mapped[str] = mapped_column(String(32))
    url: Mapped[str] = mapped_column(String(2048))
    url_sha256: Mapped[str] = mapped_column(String(64))
    receiver: Mapped[str] = mapped_column(String(300))  # host and port: deliveries are shared out by it
    payload: Mapped[str] = mapped_column(Text)  # the very bytes that are signed and sent
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None]
    held_by: Mapped[str | None] = mapped_column(String(64))
    held_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class CallbackAttempt(Base):
    """One attempt at a delivery: what the receiver answered, or why there is no answer. No bodies."""

    __tablename__ = "callback_attempts"

    delivery_id: Mapped[str] = mapped_column(
        ForeignKey("callback_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    status: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(String(32))
    detail: Mapped[str | None] = mapped_column(String(300))
    duration_ms: Mapped[int | None]


class CallbackStop(Base):
    """A URL that answered 410 to this tenant: nothing more is sent there until somebody replays."""

    __tablename__ = "callback_stops"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    url_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime]


class SigningSecret(Base):
    """What a tenant's callbacks are signed with, sealed by `core.vault`; it signs until `retires_at`."""

    __tablename__ = "signing_secrets"

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    retires_at: Mapped[datetime | None]


class Subscription(Base):
    """When `owner` releases such a base, convert these adapters. `request` is a dump of SubscriptionRequest,
    `fingerprint` its SHA-256: the same one twice would convert everything twice."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        UniqueConstraint("tenant_id", "fingerprint"),
        Index("ix_subscriptions_owner", "owner"),
        Index("ix_subscriptions_asked_at", "asked_at"),
    )

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    owner: Mapped[str] = mapped_column(String(100))  # lower case
    request: Mapped[JsonObject]
    fingerprint: Mapped[str] = mapped_column(String(64))
    paused: Mapped[bool] = mapped_column(default=False)
    since: Mapped[datetime]  # repos created before are no releases
    asked_at: Mapped[datetime]  # when a look at the owner's models was last queued
    looked_at: Mapped[datetime]  # changes before this were seen by a look
    created_at: Mapped[datetime]


class Release(Base):
    """`ref` of a repo at a commit, as first seen. The two unique keys are what a delivery is known by, and
    what a delivery and a look at the Hub have in common."""

    __tablename__ = "releases"
    __table_args__ = (
        UniqueConstraint("repo_id", "ref", "sha"),
        UniqueConstraint("webhook_id", "hub_repo_id", "ref", "sha"),
        CheckConstraint(_one_of("seen_by", ["webhook", "poll"]), name="seen_by"),
    )

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    repo_id: Mapped[str] = mapped_column(String(200))
    ref: Mapped[str] = mapped_column(String(200))
    sha: Mapped[str] = mapped_column(String(64))
    webhook_id: Mapped[str | None] = mapped_column(String(100))
    hub_repo_id: Mapped[str | None] = mapped_column(String(100))
    seen_by: Mapped[str] = mapped_column(String(16))
    seen_at: Mapped[datetime]


class ReleaseMatch(Base):
    """A release that a subscription means; a job of kind `release` was queued with this row."""

    __tablename__ = "release_matches"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.id", ondelete="CASCADE"), primary_key=True)
    subscription_id: Mapped[str] = mapped_column(
        ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Campaign(Base):
    """What one subscription made of one base. `number` counts what `on_update` makes of the same base.

    `request` is the subscription's as it was then; `decision` says why: facts of the release, reasons, the
    adapters left out, and the output repo of each adapter.
    """

    __tablename__ = "campaigns"
    __table_args__ = (
        CheckConstraint(_one_of("state", [state.value for state in Stored]), name="state"),
        UniqueConstraint("subscription_id", "repo_id", "number"),
        Index("ix_campaigns_tenant_id_id", "tenant_id", "id"),
    )

    id: Mapped[str] = mapped_column(Hex, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    subscription_id: Mapped[str | None] = mapped_column(ForeignKey("subscriptions.id", ondelete="SET NULL"))
    repo_id: Mapped[str] = mapped_column(String(200))
    number: Mapped[int]
    sha: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    request: Mapped[JsonObject]
    decision: Mapped[JsonObject]
    dry_run: Mapped[bool]
    approved_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class CampaignJob(Base):
    """A campaign's job for the adapter at `position` of its request. The key is why no rerun can make two."""

    __tablename__ = "campaign_jobs"
    __table_args__ = (CheckConstraint(_one_of("stage", ["precheck", "convert"]), name="stage"),)

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
