"""How SQLite is set up, and how trouble of either database becomes `Busy`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from rebase.errors import Busy
from rebase.store.database import Database
from rebase.store.store import Store
from support.databases import a_request


def test_sqlite_runs_in_wal_mode_with_foreign_keys(sqlite_url: str) -> None:
    db = Database.open(sqlite_url)
    with db.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == 5000
    with pytest.raises(IntegrityError), db.write() as connection:
        connection.execute(
            text("INSERT INTO outbox (job_id, tries, next_at, created_at) VALUES ('x',0,'','')")
        )
    db.close()


def test_a_locked_sqlite_file_is_busy_and_readable_and_works_again_after(sqlite_url: str) -> None:
    holder, db = Database.open(sqlite_url), Database.open(sqlite_url, timeout_s=0.05)
    store = Store(db)
    with holder.write():
        with pytest.raises(Busy):
            store.submissions.submit("default", "convert", a_request())
        assert store.jobs.list("default").jobs == ()
    store.submissions.submit("default", "convert", a_request())
    holder.close()
    db.close()


def test_a_locked_postgresql_table_is_busy(empty_postgres_url: str) -> None:
    holder, db = Database.open(empty_postgres_url), Database.open(empty_postgres_url, timeout_s=0.2)
    with holder.write() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Busy):
            Store(db).submissions.submit("default", "convert", a_request())
    Store(db).submissions.submit("default", "convert", a_request())
    holder.close()
    db.close()


def test_a_server_that_is_not_there_is_busy() -> None:
    db = Database.open("postgresql+psycopg://postgres@127.0.0.1:1/none")
    with pytest.raises(Busy), db.read():
        pass
    db.close()


def test_a_pool_without_a_free_connection_is_busy(empty_postgres_url: str) -> None:
    db = Database.open(empty_postgres_url, pool_size=1, timeout_s=0.1)
    with db.read(), pytest.raises(Busy), db.read():
        pass
    db.close()


def test_a_missing_table_is_a_bug_and_not_busy(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(DBAPIError, match="no such table"):
        Store(db).jobs.get("default", "0" * 32)
    db.close()


def test_sqlite_writers_take_turns_and_lose_nothing(sqlite_url: str) -> None:
    db = Database.open(sqlite_url)
    store = Store(db)
    threads = [
        threading.Thread(
            target=lambda: [store.submissions.submit("default", "convert", a_request()) for _ in range(10)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(store.jobs.list("default", limit=200).jobs) == 80
    db.close()
