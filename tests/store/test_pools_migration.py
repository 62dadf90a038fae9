"""The migration to anchor pools rebuilds a table that everything hangs on; nothing of it may be lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

import migrations
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.tables.jobs import SiteDiagnostics
from support.databases import a_request
from support.pools import a_pool

TABLES = ("tenants", "jobs", "outbox", "job_events", "site_diagnostics", "idempotency_keys")
TENANT = "default"


def _rows(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: sorted(map(tuple, connection.execute(text(f"SELECT * FROM {table}"))), key=repr)
        for table in TABLES
    }


def _with_a_job(url: str) -> str:
    """A job with a row in every table, in a database of the first version."""
    db = Database.open(url)
    store = Store(db)
    job_id = store.submissions.submit(TENANT, "convert", a_request(), "key")[0].id
    with db.write() as connection:  # the store would also read and write tables of later versions
        running = text(
            "UPDATE jobs SET state = 'running', attempt = 1, lease_owner = 'worker' WHERE id = :id"
        )
        connection.execute(running, {"id": job_id})
        rows = [{"job_id": job_id, "position": n, "data": {"site": n}} for n in range(2)]
        connection.execute(insert(SiteDiagnostics), rows)
    db.close()
    return job_id


def test_jobs_and_all_that_hangs_on_them_survive_the_way_up_and_down(bare_url: str) -> None:
    migrations.upgrade(bare_url, "0001")
    _with_a_job(bare_url)
    db = Database.open(bare_url)
    with db.read() as connection:
        before = _rows(connection)
    assert all(before.values())
    db.close()

    migrations.upgrade(bare_url)
    db = Database.open(bare_url)
    with db.read() as connection:
        assert _rows(connection) == before
    store = Store(db)
    pool_id = store.pools.submit(TENANT, a_pool(), "another key")[0].id
    assert store.queue.claim(pool_id, "worker", 60) is not None
    db.close()

    migrations.downgrade(bare_url, "0001")
    db = Database.open(bare_url)
    with db.read() as connection:
        assert _rows(connection) == before, "what belongs to pools is gone, and nothing else"
    db.close()


def test_rows_still_go_with_their_job_after_the_rebuild(bare_url: str) -> None:
    migrations.upgrade(bare_url, "0001")
    job_id = _with_a_job(bare_url)
    migrations.upgrade(bare_url)
    db = Database.open(bare_url)
    with db.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job_id})
    with db.read() as connection:
        left = {table: len(rows) for table, rows in _rows(connection).items()}
    db.close()

    assert left == dict.fromkeys(TABLES, 0) | {"tenants": 1}


def test_each_version_knows_its_own_kinds_of_jobs(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    migrations.downgrade(bare_url, "0001")
    job_id = _with_a_job(bare_url)
    change = text("UPDATE jobs SET kind = :kind WHERE id = :id")
    db = Database.open(bare_url)
    with pytest.raises(IntegrityError), db.write() as connection:
        connection.execute(change, {"kind": "pool", "id": job_id})
    db.close()
    migrations.upgrade(bare_url)

    db = Database.open(bare_url)
    with db.write() as connection:
        connection.execute(change, {"kind": "pool", "id": job_id})
    for column in ("kind", "state"):
        with pytest.raises(IntegrityError), db.write() as connection:
            connection.execute(text(f"UPDATE jobs SET {column} = 'odd'"))
    db.close()


def test_a_migration_that_would_leave_orphans_fails_and_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'orphans.db'}"
    migrations.upgrade(url, "0001")
    row = "INSERT INTO outbox (job_id, tries, next_at, created_at) VALUES ('gone', 0, '2026-01-01', '')"
    connection = sqlite3.connect(tmp_path / "orphans.db")  # which does not look at foreign keys
    connection.execute(row)
    connection.commit()
    connection.close()

    with pytest.raises(RuntimeError, match="without their parents"):
        migrations.upgrade(url)
    db = Database.open(url)
    with db.read() as connection:
        assert migrations.current(connection) == "0001"
    db.close()
