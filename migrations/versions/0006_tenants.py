"""Scopes and expiry of keys, limits per tenant, Hub tokens, the audit log.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ACTIVE = sa.text("state IN ('queued', 'running', 'publishing', 'retry_wait')")
_LIMIT_COLUMNS = ("max_running", "max_queued", "jobs_per_day", "requests_per_minute")


def upgrade() -> None:
    """Existing keys had full access so far, so they become `admin`."""
    op.add_column("api_keys", sa.Column("scope", sa.String(length=16), nullable=True))
    op.execute("UPDATE api_keys SET scope = 'admin'")
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("scope", existing_type=sa.String(length=16), nullable=False)
        keys.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        keys.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
        keys.create_check_constraint(op.f("ck_api_keys_scope"), "scope IN ('read', 'convert', 'admin')")
    op.create_table(
        "tenant_limits",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=True) for name in _LIMIT_COLUMNS),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_tenant_limits_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_limits"),
    )
    op.create_table(
        "hub_tokens",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_hub_tokens_tenant_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_hub_tokens"),
    )
    op.create_table(
        "job_tokens",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_tokens_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_tokens"),
    )
    op.create_index(
        "ix_jobs_tenant_active",
        "jobs",
        ["tenant_id", "state", "id"],
        postgresql_where=_ACTIVE,
        sqlite_where=_ACTIVE,
    )
    _create_audit_log()


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("client", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_tenant_id_id", "audit_log", ["tenant_id", "id"])
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'lines of the audit log are never changed'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION audit_log_unchanged() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'lines of the audit log are never changed'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON audit_log "
        "FOR EACH ROW EXECUTE FUNCTION audit_log_unchanged()"
    )


def downgrade() -> None:
    """Without scopes every key has full access, so only `admin` keys that never expire are kept."""
    op.execute("DELETE FROM api_keys WHERE scope <> 'admin' OR expires_at IS NOT NULL")
    op.drop_table("audit_log")
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_log_unchanged()")
    op.drop_index("ix_jobs_tenant_active", "jobs")
    op.drop_table("job_tokens")
    op.drop_table("hub_tokens")
    op.drop_table("tenant_limits")
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_constraint(op.f("ck_api_keys_scope"), type_="check")
        for name in ("last_used_at", "expires_at", "scope"):
            keys.drop_column(name)
