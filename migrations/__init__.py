"""The database's history: Alembic scripts, packaged, and the few calls that the project makes of them."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from rebase.errors import Busy


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database to `revision`; doing it twice, or from two processes at once, is fine."""
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Go back to `revision` (`base`: an empty database). Rows of dropped tables are lost."""
    command.downgrade(_config(url), revision)


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory(str(Path(__file__).parent)).get_current_head()
    if revision is None:
        raise Busy("This installation holds no migrations.")
    return revision


def current(connection: Connection) -> str | None:
    """The revision that a database is at; None when it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config
