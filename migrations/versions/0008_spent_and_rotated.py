"""Deleted jobs that still count towards the daily limit, and rotated keys.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


_ROTATION_EVENTS = "FROM audit_log WHERE action = 'key.rotated' AND tenant_id = api_keys.tenant_id"


def upgrade() -> None:
    """Keys rotated before are taken from the audit log."""
    op.add_column("api_keys", sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        f"UPDATE api_keys SET rotated_at = (SELECT max(at) {_ROTATION_EVENTS} AND object = api_keys.id) "  # noqa: S608
        f"WHERE id IN (SELECT object {_ROTATION_EVENTS})"
    )
    op.create_table(
        "spent_jobs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_spent_jobs_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_spent_jobs"),
    )
    op.create_index("ix_spent_jobs_tenant_id_id", "spent_jobs", ["tenant_id", "id"])


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_column("rotated_at")
    op.drop_table("spent_jobs")
