"""Opening and migrating the deployment's database from the CLI. SQLAlchemy is imported only on use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rebase.errors import CommandFailed
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.store.store import Store


def open_store(settings: Settings) -> Store:
    """The store of the deployment with these settings."""
    from rebase.store.database import Database
    from rebase.store.limits import Limits
    from rebase.store.store import Store

    return Store(Database.open(settings.resolved_database_url), limits=Limits.from_settings(settings))


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a missing or unmigrated database into an error for the operator, without its URL, which may
    contain a password."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as exc:
        raise CommandFailed(
            "The database cannot be reached or has not been set up.",
            hint="Check REBASE_DATABASE_URL, then run `rebase migrate`.",
        ) from exc


def migrate_database(url: str) -> str:
    """Migrate to the newest schema and return its revision. Raises CommandFailed."""
    from migrations import head, upgrade

    with database_errors():
        upgrade(url)
    return head()
