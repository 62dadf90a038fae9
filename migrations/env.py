"""How Alembic reaches the database. The URL comes from `migrations`, or from the settings for its own CLI."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from core.db import make_engine
from core.settings import get_settings
from core.tables import Base

# Two processes that start together (two API containers, say) take turns; any constant number will do.
_LOCK = 7_232_732_273


def run() -> None:
    """Run the scripts in one transaction, so that a failed migration leaves nothing behind."""
    url = context.config.attributes.get("url") or get_settings().resolved_database_url
    engine = make_engine(url, wait_s=0)
    try:
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                render_as_batch=True,
                transactional_ddl=True,  # SQLite can, once the driver is kept from committing by itself
                compare_type=True,
                compare_server_default=True,
            )
            with context.begin_transaction():
                if engine.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK})
                context.run_migrations()
    finally:
        engine.dispose()


run()
