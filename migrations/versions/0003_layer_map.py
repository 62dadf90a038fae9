"""Layer similarities, as rows.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "layer_similarities",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("source_layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("target_layer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("cka", sa.Double(), nullable=False),
        sa.Column("chosen", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_layer_similarities_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "source_layer", "target_layer", name="pk_layer_similarities"),
    )


def downgrade() -> None:
    op.drop_table("layer_similarities")
