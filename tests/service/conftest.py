"""Databases of both kinds, and a running app on an SQLite file with a broker that only takes notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from support.api import Api
from support.databases import (  # noqa: F401  (fixtures)
    clock,
    database_url,
    empty_postgres_url,
    postgres_server,
    postgres_url,
    sqlite_template,
    sqlite_url,
    store,
)


@pytest.fixture
def api(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:  # noqa: F811
    """The app without keys."""
    with Api.start(sqlite_url, tmp_path) as running:
        yield running


@pytest.fixture
def client(api: Api) -> TestClient:
    """Its HTTP side."""
    return api.client
