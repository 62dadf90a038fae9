"""Migrated databases for tests, a clock that is moved by hand, and requests to submit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

import migrations
from rebase.schemas.conversions import ConversionRequest
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.tables import DEFAULT_TENANT, Base, Tenant
from support.postgres import a_database, a_postgres


class HandClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def a_request(**changes: Any) -> ConversionRequest:
    """A valid request; `changes` replace its top-level fields."""
    body = {"adapter": {"repo_id": "acme/sql-lora"}, "target": {"repo_id": "acme/base-2"}}
    return ConversionRequest.model_validate({**body, **changes})


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server, started once a session."""
    with a_postgres(local=False) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A migrated PostgreSQL database, shared by the tests that ask for `database_url`."""
    with a_database(postgres_server) as url:
        migrations.upgrade(url)
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty, migrated database, once of either kind."""
    name = "sqlite_url" if request.param == "sqlite" else "empty_postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """An empty, migrated SQLite database."""
    shutil.copy(sqlite_template, tmp_path / "rebase.db")
    return f"sqlite:///{tmp_path / 'rebase.db'}"


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> str:
    """The shared PostgreSQL database with nothing in it but the default tenant."""
    db = Database.open(postgres_url)
    with db.write() as connection:
        # Not TRUNCATE, which makes a new file of each table and takes ten times as long.
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
        connection.execute(insert(Tenant).values(id=DEFAULT_TENANT, created_at=datetime.now(UTC)))
    db.close()
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database in which nothing was ever migrated, once of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bare.db'}"
        return
    with a_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(database_url: str, clock: HandClock) -> Iterator[Store]:
    """A job store on either kind of database."""
    db = Database.open(database_url, pool_size=25)
    yield Store(db, clock)
    db.close()
