"""A running app on an SQLite file, with a broker that only records notifications."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from support.api import Api


@pytest.fixture
def api(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app without keys."""
    with Api.start(sqlite_url, tmp_path) as running:
        yield running


@pytest.fixture
def client(api: Api) -> TestClient:
    """Its HTTP side."""
    return api.client
