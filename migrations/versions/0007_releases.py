"""Releases, subscriptions and campaigns, and the two kinds of internal jobs for them.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OLD_KINDS = "kind IN ('convert', 'precheck', 'pool')"
_KINDS = "kind IN ('convert', 'precheck', 'pool', 'release', 'reconcile')"
_STATES = "state IN ('waiting', 'refused', 'open', 'paused', 'cancelled')"
_INTERNAL_JOB_IDS = "(SELECT id FROM jobs WHERE kind IN ('release', 'reconcile'))"
_JOB_TABLES = (
    "site_diagnostics",
    "layer_similarities",
    "evaluations",
    "outbox",
    "job_events",
    "idempotency_keys",
    "callback_deliveries",
    "job_tokens",
)
_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    _replace_kinds(_KINDS)
    op.create_index("ix_jobs_output_repo", "jobs", ["output_repo"])
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("since", _TIMESTAMP, nullable=False),
        sa.Column("asked_at", _TIMESTAMP, nullable=False),
        sa.Column("looked_at", _TIMESTAMP, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        _tenant_foreign_key("subscriptions"),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
        sa.UniqueConstraint("tenant_id", "fingerprint", name="uq_subscriptions_tenant_id_fingerprint"),
    )
    op.create_index("ix_subscriptions_owner", "subscriptions", ["owner"])
    op.create_index("ix_subscriptions_asked_at", "subscriptions", ["asked_at"])
    op.create_table(
        "releases",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("repo_id", sa.String(length=200), nullable=False),
        sa.Column("ref", sa.String(length=200), nullable=False),
        sa.Column("sha", sa.String(length=64), nullable=False),
        sa.Column("webhook_id", sa.String(length=100), nullable=True),
        sa.Column("hub_repo_id", sa.String(length=100), nullable=True),
        sa.Column("seen_by", sa.String(length=16), nullable=False),
        sa.Column("seen_at", _TIMESTAMP, nullable=False),
        sa.CheckConstraint("seen_by IN ('webhook', 'poll')", name=op.f("ck_releases_seen_by")),
        sa.PrimaryKeyConstraint("id", name="pk_releases"),
        sa.UniqueConstraint("repo_id", "ref", "sha", name="uq_releases_repo_id_ref_sha"),
        sa.UniqueConstraint(
            "webhook_id", "hub_repo_id", "ref", "sha", name="uq_releases_webhook_id_hub_repo_id_ref_sha"
        ),
    )
    op.create_table(
        "release_matches",
        sa.Column("release_id", sa.String(length=32), nullable=False),
        sa.Column("subscription_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["release_id"], ["releases.id"], name="fk_release_matches_release_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["subscription_id"],
            ["subscriptions.id"],
            name="fk_release_matches_subscription_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("release_id", "subscription_id", name="pk_release_matches"),
    )
    op.create_index("ix_release_matches_subscription_id", "release_matches", ["subscription_id"])
    _create_campaigns()


def downgrade() -> None:
    """Internal jobs for subscriptions are deleted; those of campaigns are ordinary jobs and are kept."""
    for table in ("campaign_jobs", "campaigns", "release_matches", "releases", "subscriptions"):
        op.drop_table(table)
    for table in _JOB_TABLES:
        op.execute(f"DELETE FROM {table} WHERE job_id IN {_INTERNAL_JOB_IDS}")  # noqa: S608  (our own names)
    op.execute("DELETE FROM jobs WHERE kind IN ('release', 'reconcile')")
    op.drop_index("ix_jobs_output_repo", "jobs")
    _replace_kinds(_OLD_KINDS)


def _create_campaigns() -> None:
    op.create_table(
        "campaigns",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("subscription_id", sa.String(length=32), nullable=True),
        sa.Column("repo_id", sa.String(length=200), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("decision", sa.JSON(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("approved_at", _TIMESTAMP, nullable=True),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Column("updated_at", _TIMESTAMP, nullable=False),
        sa.CheckConstraint(_STATES, name=op.f("ck_campaigns_state")),
        _tenant_foreign_key("campaigns"),
        sa.ForeignKeyConstraint(
            ["subscription_id"],
            ["subscriptions.id"],
            name="fk_campaigns_subscription_id",
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_campaigns"),
        sa.UniqueConstraint(
            "subscription_id", "repo_id", "number", name="uq_campaigns_subscription_id_repo_id_number"
        ),
    )
    op.create_index("ix_campaigns_tenant_id_id", "campaigns", ["tenant_id", "id"])
    op.create_table(
        "campaign_jobs",
        sa.Column("campaign_id", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.CheckConstraint("stage IN ('precheck', 'convert')", name=op.f("ck_campaign_jobs_stage")),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name="fk_campaign_jobs_campaign_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_campaign_jobs_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("campaign_id", "stage", "position", name="pk_campaign_jobs"),
        sa.UniqueConstraint("job_id", name="uq_campaign_jobs_job_id"),
    )


def _tenant_foreign_key(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id", ondelete="CASCADE"
    )


def _replace_kinds(kinds: str) -> None:
    """SQLite cannot alter a check, so the table is rebuilt there with all of its other properties."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_kind"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_kind"), kinds)
