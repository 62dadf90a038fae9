"""Migrated databases for tests, a clock that is moved by hand, and requests to submit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

import migrations
from rebase.schemas.conversions import ConversionRequest
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.tenants import Tenant
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
def postgres_url() -> Iterator[str]:
    """A migrated PostgreSQL database, shared by the tests that ask for `database_url`."""
    with a_postgres() as server, a_database(server) as url:
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
        connection.execute(text("TRUNCATE tenants, releases, audit_log CASCADE"))
        connection.execute(insert(Tenant).values(id=DEFAULT_TENANT, created_at=datetime.now(UTC)))
    db.close()
    return postgres_url


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(database_url: str, clock: HandClock) -> Iterator[Store]:
    """A job store on either kind of database."""
    db = Database.open(database_url, pool_size=25)
    yield Store(db, clock)
    db.close()
