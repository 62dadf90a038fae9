"""Anchor pools, and the kind of job that registers them.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATES = (
    "state IN ('queued', 'running', 'publishing', 'retry_wait', "
    "'succeeded', 'rejected', 'failed', 'cancelled')"
)
_OLD_KINDS = "kind IN ('convert', 'precheck')"
_KINDS = "kind IN ('convert', 'precheck', 'pool')"
# 0001 named its checks with a prefix that the naming convention then added again. From here on, names match
# the models.
_OLD_PREFIX, _NEW_PREFIX = "ck_jobs_ck_jobs_", "ck_jobs_"
_POOL_JOB_IDS = "(SELECT id FROM jobs WHERE kind = 'pool')"


def upgrade() -> None:
    _replace_checks(_OLD_PREFIX, _NEW_PREFIX, _KINDS)
    op.create_table(
        "anchor_pools",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("source_repo", sa.String(length=200), nullable=False),
        sa.Column("target_repo", sa.String(length=200), nullable=False),
        sa.Column("anchors", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], name="fk_anchor_pools_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_anchor_pools_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_anchor_pools"),
    )
    op.create_index(
        "ix_anchor_pools_tenant_id_source_repo_target_repo_id",
        "anchor_pools",
        ["tenant_id", "source_repo", "target_repo", "id"],
    )


def downgrade() -> None:
    """Delete registrations with their pools and all dependent rows: SQLite does not cascade here."""
    op.drop_index("ix_anchor_pools_tenant_id_source_repo_target_repo_id", "anchor_pools")
    op.drop_table("anchor_pools")
    for table in ("site_diagnostics", "outbox", "job_events", "idempotency_keys"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN {_POOL_JOB_IDS}")  # noqa: S608  (our own names)
    op.execute("DELETE FROM jobs WHERE kind = 'pool'")
    _replace_checks(_NEW_PREFIX, _OLD_PREFIX, _OLD_KINDS)


def _replace_checks(old_prefix: str, new_prefix: str, kinds: str) -> None:
    """SQLite cannot alter a check, so the table is rebuilt there with all of its other properties."""
    with op.batch_alter_table("jobs") as jobs:
        for name, condition in (("kind", kinds), ("state", _STATES)):
            jobs.drop_constraint(op.f(f"{old_prefix}{name}"), type_="check")
            jobs.create_check_constraint(op.f(f"{new_prefix}{name}"), condition)
