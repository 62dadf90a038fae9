"""Database migrations: packaged Alembic scripts, and the functions that run them."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from rebase.errors import Busy


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate a database to `revision`. Idempotent, and safe to run from two processes at once."""
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate back to `revision` (`base`: an empty database). Rows of dropped tables are lost."""
    command.downgrade(_config(url), revision)


def head() -> str:
    """The newest revision in this code."""
    revision = ScriptDirectory(str(Path(__file__).parent)).get_current_head()
    if revision is None:
        raise Busy("This installation holds no migrations.")
    return revision


def current(connection: Connection) -> str | None:
    """The database's current revision; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config
