"""Subscriptions, releases and campaigns."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from rebase.schemas.states import CampaignDbState
from rebase.store.tables.base import Base, HexId, JsonObject, build_in_check


class Subscription(Base):
    """When `owner` releases a matching base, convert these adapters. `request` is a dump of
    SubscriptionRequest, `fingerprint` its SHA-256: a duplicate would convert everything twice."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        UniqueConstraint("tenant_id", "fingerprint"),
        Index("ix_subscriptions_owner", "owner"),
        Index("ix_subscriptions_asked_at", "asked_at"),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    owner: Mapped[str] = mapped_column(String(100))  # lower case
    request: Mapped[JsonObject]
    fingerprint: Mapped[str] = mapped_column(String(64))
    paused: Mapped[bool] = mapped_column(default=False)
    since: Mapped[datetime]  # repos created earlier do not count as releases
    asked_at: Mapped[datetime]  # when a poll of the owner's models was last queued
    looked_at: Mapped[datetime]  # a poll has seen all changes before this
    created_at: Mapped[datetime]


class Release(Base):
    """`ref` of a repo at a commit, as first seen. One unique key identifies a webhook delivery, the other is
    what deliveries and polls have in common."""

    __tablename__ = "releases"
    __table_args__ = (
        UniqueConstraint("repo_id", "ref", "sha"),
        UniqueConstraint("webhook_id", "hub_repo_id", "ref", "sha"),
        CheckConstraint(build_in_check("seen_by", ["webhook", "poll"]), name="seen_by"),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
    repo_id: Mapped[str] = mapped_column(String(200))
    ref: Mapped[str] = mapped_column(String(200))
    sha: Mapped[str] = mapped_column(String(64))
    webhook_id: Mapped[str | None] = mapped_column(String(100))
    hub_repo_id: Mapped[str | None] = mapped_column(String(100))
    seen_by: Mapped[str] = mapped_column(String(16))
    seen_at: Mapped[datetime]


class ReleaseMatch(Base):
    """A release that matches a subscription; its job of kind `release` was queued in the same transaction."""

    __tablename__ = "release_matches"

    release_id: Mapped[str] = mapped_column(ForeignKey("releases.id", ondelete="CASCADE"), primary_key=True)
    subscription_id: Mapped[str] = mapped_column(
        ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Campaign(Base):
    """One subscription's campaign for one base. `number` counts those that `on_update` starts for that base.

    `request` is the subscription's request at that time; `decision` holds facts of the release, reasons, the
    adapters left out, and the output repo of each adapter.
    """

    __tablename__ = "campaigns"
    __table_args__ = (
        CheckConstraint(build_in_check("state", [state.value for state in CampaignDbState]), name="state"),
        UniqueConstraint("subscription_id", "repo_id", "number"),
        Index("ix_campaigns_tenant_id_id", "tenant_id", "id"),
    )

    id: Mapped[str] = mapped_column(HexId, primary_key=True)
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
    """A campaign's job for the adapter at `position` of its request. The key prevents duplicates."""

    __tablename__ = "campaign_jobs"
    __table_args__ = (CheckConstraint(build_in_check("stage", ["precheck", "convert"]), name="stage"),)

    campaign_id: Mapped[str] = mapped_column(ForeignKey("campaigns.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
