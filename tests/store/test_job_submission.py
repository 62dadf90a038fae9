"""Submitting: one transaction, and a client's key is good for one job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from rebase.errors import IdempotencyInFlight, IdempotencyMismatch, RequestInvalid
from rebase.schemas.states import JobState
from rebase.store import job_submission
from rebase.store.database import Database
from rebase.store.repository import new_id
from rebase.store.store import Store
from rebase.store.tables.jobs import IdempotencyKey, Job, JobEvent, Outbox
from support.databases import a_request

TENANT = "default"


def _count(store: Store, table: Any) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def test_a_submitted_job_is_queued_with_its_first_event_and_one_bell(store: Store) -> None:
    job, created = store.submissions.submit(TENANT, "convert", a_request())

    assert created
    assert store.jobs.get(TENANT, job.id) == job
    assert job.state is JobState.QUEUED
    assert [event.data for event in store.jobs.list_events(TENANT, job.id)] == [{"state": "queued"}]
    rung: list[str] = []
    assert store.outbox.publish(rung.append) == 1
    assert rung == [job.id]


def test_postgresql_takes_a_submission_in_one_statement(empty_postgres_url: str) -> None:
    db = Database.open(empty_postgres_url)
    statements: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    Store(db).submissions.submit(TENANT, "convert", a_request())
    db.close()

    assert len(statements) == 1


def test_a_submission_that_fails_leaves_nothing_behind(store: Store) -> None:
    with store.db.write() as connection:
        connection.execute(text("DROP TABLE outbox"))
    try:
        with pytest.raises(Exception, match="outbox"):
            store.submissions.submit(TENANT, "convert", a_request())
        assert _count(store, Job) == 0
        assert _count(store, JobEvent) == 0
    finally:
        Outbox.__table__.create(store.db.engine)  # type: ignore[attr-defined]


def test_the_same_key_and_request_give_the_same_job(store: Store) -> None:
    first, created = store.submissions.submit(TENANT, "convert", a_request(), "key")
    again, created_again = store.submissions.submit(TENANT, "convert", a_request(method="auto"), "key")

    assert (created, created_again) == (True, False)
    assert again == first
    assert _count(store, Job) == _count(store, Outbox) == _count(store, IdempotencyKey) == 1


def test_the_same_key_for_another_request_is_refused(store: Store) -> None:
    store.submissions.submit(TENANT, "convert", a_request(), "key")

    with pytest.raises(IdempotencyMismatch):
        store.submissions.submit(TENANT, "convert", a_request(method="copy"), "key")
    with pytest.raises(IdempotencyMismatch):
        store.submissions.submit(TENANT, "precheck", a_request(), "key")


def test_two_processes_that_use_a_key_at_once_do_not_both_record_a_job(empty_postgres_url: str) -> None:
    ours, theirs = (Store(Database.open(empty_postgres_url)) for _ in range(2))
    with ours.db.write() as connection:
        job_submission._lock_key(connection, TENANT, "key")
        with pytest.raises(IdempotencyInFlight):
            theirs.submissions.submit(TENANT, "convert", a_request(), "key")
    job, created = theirs.submissions.submit(TENANT, "convert", a_request(), "key")
    ours.db.close()
    theirs.db.close()

    assert created
    assert job.state is JobState.QUEUED


def test_a_key_used_by_twenty_threads_at_once_makes_one_job(store: Store) -> None:
    def submit(_: int) -> str | None:
        try:
            return store.submissions.submit(TENANT, "convert", a_request(), "key")[0].id
        except IdempotencyInFlight:
            return None

    with ThreadPoolExecutor(20) as pool:
        seen = set(pool.map(submit, range(20))) - {None}

    assert len(seen) == 1
    assert _count(store, Job) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "naïve", "tab\t", "nul\0"])
def test_a_key_that_is_no_plain_short_text_is_refused(store: Store, key: str) -> None:
    with pytest.raises(RequestInvalid):
        store.submissions.submit(TENANT, "convert", a_request(), key)


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    ids = [new_id() for _ in range(2000)]

    assert all(len(an_id) == 32 and an_id[12] == "7" and an_id[16] in "89ab" for an_id in ids)
    assert len(set(ids)) == len(ids)
    assert [an_id[:15] for an_id in ids] == sorted(an_id[:15] for an_id in ids)
