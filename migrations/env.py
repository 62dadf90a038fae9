"""Alembic's environment. The URL comes from `migrations`, or from the settings when Alembic's CLI is used."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import event, text

from rebase.settings import get_settings
from rebase.store.database import make_engine
from rebase.store.tables.base import Base

# Serialises processes that start together, such as two API containers; any constant works.
_LOCK_ID = 7_232_732_273


def run() -> None:
    """Run the scripts in one transaction, so that a failed migration changes nothing."""
    url = context.config.attributes.get("url") or get_settings().resolved_database_url
    engine = make_engine(url, timeout_s=0)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _disable_foreign_keys)
    try:
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                render_as_batch=True,
                transactional_ddl=True,  # works on SQLite once its driver no longer commits by itself
                compare_type=True,
                compare_server_default=True,
            )
            with context.begin_transaction():
                if engine.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK_ID})
                context.run_migrations()
                if engine.dialect.name == "sqlite":
                    orphans = connection.execute(text("PRAGMA foreign_key_check")).all()
                    if orphans:
                        raise RuntimeError(f"rows without their parents after migrating: {orphans[:5]}")
    finally:
        engine.dispose()


def _disable_foreign_keys(connection: Any, _entry: Any) -> None:
    """Rebuilding a table drops it temporarily, which would cascade to all rows that refer to it. SQLite
    changes this setting only outside a transaction; foreign keys are checked at the end."""
    connection.execute("PRAGMA foreign_keys=OFF")


run()
