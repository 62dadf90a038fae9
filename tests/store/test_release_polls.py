"""The keeper asks for looks at the Hub when they are due, and not where that is turned off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebase.store.database import Database
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from support.campaigns import a_subscription, release_claims


@pytest.fixture
def subscribed(sqlite_url: str, tmp_path: Path) -> Iterator[Store]:
    """A store by the real clock, with one subscription."""
    database = Database.open(sqlite_url)
    store = Store(database)
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    yield store
    database.close()


def test_a_look_is_queued_and_rung(subscribed: Store) -> None:
    rung: list[str] = []
    keeper = Scheduler(subscribed, rung.append, 0.05, reconcile_s=0.1)
    keeper.start()
    deadline = time.monotonic() + 10
    while not rung and time.monotonic() < deadline:
        time.sleep(0.02)
    keeper.stop()
    (claim,) = release_claims(subscribed, "reconcile")
    assert rung == [claim.job_id]


def test_no_look_is_queued_where_looking_is_turned_off(subscribed: Store) -> None:
    keeper = Scheduler(subscribed, lambda job_id: None, 0.05)
    keeper.start()
    time.sleep(0.4)
    keeper.stop()
    assert release_claims(subscribed, "reconcile") == []
