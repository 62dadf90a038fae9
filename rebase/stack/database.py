"""The deployment's database as its operator meets it. SQLAlchemy loads only when one of these is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rebase.cli.exits import CommandFailed


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
