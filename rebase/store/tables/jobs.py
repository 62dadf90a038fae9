"""Jobs and their dependent tables."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from rebase.schemas.states import TERMINAL, JobState
from rebase.store.tables.base import Base, HexId, JsonObject, RowId, build_in_check

_IS_OPEN = text(build_in_check("state", [state.value for state in JobState if state not in TERMINAL]))


class Job(Base):
    """A conversion, pre-check or registration of an anchor pool, or an internal job for a subscription (kinds
    `release` and `reconcile`), which clients never see. `version` increases with every visible change and is
    the ETag."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(build_in_check("state", [state.value for state in JobState]), name="state"),
        CheckConstraint(
            build_in_check("kind", ["convert", "precheck", "pool", "release", "reconcile"]), name="kind"
        ),
        Index("ix_jobs_output_repo", "output_repo"),  # to recognise pushes of our own
        Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
        Index(
            "ix_jobs_active",
            "state",
            "id",
            postgresql_where=_IS_OPEN,
            sqlite_where=_IS_OPEN,
        ),
        # For concurrency limits: how many of a tenant's jobs run, and which one is next.
        Index(
            "ix_jobs_tenant_active",
            "tenant_id",
            "state",
            "id",
            postgresql_where=_IS_OPEN,
            sqlite_where=_IS_OPEN,
        ),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)  # UUID version 7: sorts by creation time
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    request: Mapped[JsonObject]
    adapter_repo: Mapped[str] = mapped_column(String(200))  # kind `pool`: its source base
    target_repo: Mapped[str] = mapped_column(String(200))  # kind `pool`: its target base

    # The claim. `attempt` only ever increases, so it fences writes even after a manual retry.
    attempt: Mapped[int] = mapped_column(default=0)
    attempt_limit: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    not_before: Mapped[datetime | None]  # end of the wait before a retry
    ring_after: Mapped[datetime | None]  # if still unclaimed then, the job is notified again
    rings: Mapped[int] = mapped_column(default=0)

    # What clients see.
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
    """A notification to send. A publisher leases it until `next_at`, sends it and deletes it."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tries: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime] = mapped_column(index=True)
    created_at: Mapped[datetime]


class JobEvent(Base):
    """One event of a job's history. Ids of one job increase in commit order (its row is locked first)."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[JsonObject]


class SiteDiagnostics(Base):
    """Measurements of one target site, in the order reported by the worker."""

    __tablename__ = "site_diagnostics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[JsonObject]


class LayerSimilarity(Base):
    """Similarity of a source and a target layer on the same text (debiased CKA); `chosen`: the target layer
    is paired with this source layer."""

    __tablename__ = "layer_similarities"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    source_layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    target_layer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cka: Mapped[float]
    chosen: Mapped[bool]


class EvaluationMetric(Base):
    """One metric of one model in a job's evaluation, with its interval over `n` examples; `reason`: why it
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
    """A client's idempotency key, kept as long as its job; `fingerprint` is the request's SHA-256."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class JobToken(Base):
    """A request's Hub token, encrypted. Every transition that ends the job deletes it."""

    __tablename__ = "job_tokens"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class AnchorPool(Base):
    """An anchor pool, looked up by tenant and pair of bases. Its id is that of the job which registers it.

    Its content is in the job: `request` as submitted, `result["pool"]` with every revision pinned. So is its
    state (`rebase.schemas.states.derive_pool_state`).
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
    anchors: Mapped[int]  # number of anchors
    created_at: Mapped[datetime]
