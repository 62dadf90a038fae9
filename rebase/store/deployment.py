"""The deployment's database as its operator meets it. SQLAlchemy loads only when one of these is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rebase.errors import CommandFailed
from rebase.settings import Settings

if TYPE_CHECKING:
    from rebase.store.store import Store


def open_store(settings: Settings) -> Store:
    """The job store of these settings."""
    from rebase.store.database import Database
    from rebase.store.limits import Limits
    from rebase.store.store import Store

    return Store(Database.open(settings.resolved_database_url), limits=Limits.from_settings(settings))


@contextmanager
def database_errors() -> Iterator[None]:
    """A database that is absent or not set up is the operator's to mend. Its URL may hold a password: never
    shown."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as exc:
        raise CommandFailed(
            "The database cannot be reached or has not been set up.",
            hint="Check REBASE_DATABASE_URL, then run `rebase migrate`.",
        ) from exc


def migrate_database(url: str) -> str:
    """Bring it to the newest schema; the revision that it has then. Raises CommandFailed."""
    from migrations import head, upgrade

    with database_errors():
        upgrade(url)
    return head()
