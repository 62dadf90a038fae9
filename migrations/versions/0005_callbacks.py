"""Callbacks: deliveries, their attempts, stopped URLs, and signing secrets.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "callback_deliveries",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("url_sha256", sa.String(length=64), nullable=False),
        sa.Column("receiver", sa.String(length=300), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_at", _TIMESTAMP, nullable=True),
        sa.Column("held_by", sa.String(length=64), nullable=True),
        sa.Column("held_until", _TIMESTAMP, nullable=True),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Column("updated_at", _TIMESTAMP, nullable=False),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'failed', 'stopped')",
            name=op.f("ck_callback_deliveries_state"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_callback_deliveries_tenant_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_callback_deliveries_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_callback_deliveries"),
    )
    op.create_index("ix_callback_deliveries_job_id", "callback_deliveries", ["job_id"])
    op.create_index("ix_callback_deliveries_tenant_id_id", "callback_deliveries", ["tenant_id", "id"])
    op.create_index("ix_callback_deliveries_state_next_at", "callback_deliveries", ["state", "next_at"])
    op.create_table(
        "callback_attempts",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", _TIMESTAMP, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.String(length=300), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["callback_deliveries.id"],
            name="fk_callback_attempts_delivery_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("delivery_id", "number", name="pk_callback_attempts"),
    )
    op.create_table(
        "callback_stops",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("url_sha256", sa.String(length=64), nullable=False),
        sa.Column("at", _TIMESTAMP, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_callback_stops_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "url_sha256", name="pk_callback_stops"),
    )
    op.create_table(
        "signing_secrets",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Column("retires_at", _TIMESTAMP, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_signing_secrets_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_signing_secrets"),
    )
    op.create_index("ix_signing_secrets_tenant_id", "signing_secrets", ["tenant_id"])


def downgrade() -> None:
    op.drop_index("ix_signing_secrets_tenant_id", table_name="signing_secrets")
    op.drop_table("signing_secrets")
    op.drop_table("callback_stops")
    op.drop_table("callback_attempts")
    for name in ("state_next_at", "tenant_id_id", "job_id"):
        op.drop_index(f"ix_callback_deliveries_{name}", table_name="callback_deliveries")
    op.drop_table("callback_deliveries")
