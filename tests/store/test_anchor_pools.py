"""Anchor pools in SQL: registered by a job, seen by their tenant alone, found by their two bases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from rebase.errors import IdempotencyMismatch, NotFound, PublicError, RequestInvalid, StateConflict
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.states import JobState, PoolState
from rebase.store import api_keys as keys
from rebase.store.anchor_pools import ScopedAnchorPools
from rebase.store.store import Store
from rebase.store.tables.jobs import AnchorPool, Job
from support.databases import HandClock, a_request
from support.pools import COMMIT, NEW, OLD, a_pool, finish_pool

TENANT = "default"
ERROR = PublicError(code="repo_not_found", message="No such repo.", pointer="/anchors/1/target")


def _register(store: Store, **changes: object) -> str:
    return store.pools.submit(TENANT, a_pool(**changes))[0].id  # type: ignore[arg-type]


def _count(store: Store, table: type[AnchorPool] | type[Job]) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def test_a_registration_is_a_job_with_the_pools_id_an_event_and_a_bell(store: Store) -> None:
    pool, created = store.pools.submit(TENANT, a_pool(name="tiny"))

    assert created
    assert store.pools.get(TENANT, pool.id) == pool
    assert (pool.state, pool.name, pool.anchor_count) == (PoolState.VALIDATING, "tiny", 3)
    job = store.jobs.get(TENANT, pool.id)
    assert (job.kind, job.state) == ("pool", JobState.QUEUED)
    assert [event.data for event in store.jobs.list_events(TENANT, pool.id)] == [{"state": "queued"}]
    rung: list[str] = []
    store.outbox.publish(rung.append)
    assert rung == [pool.id]


def test_a_worker_gets_the_pool_as_it_was_asked_for(store: Store) -> None:
    request = a_pool(name="tiny")
    pool, _ = store.pools.submit(TENANT, request)

    claim = store.queue.claim(pool.id, "worker", 60)

    assert claim is not None
    assert (claim.kind, claim.request) == ("pool", request)
    assert isinstance(claim.request, PoolRequest)


def test_jobs_of_pools_are_listed_under_their_two_bases(store: Store) -> None:
    pool_id = _register(store)
    store.submissions.submit(TENANT, "convert", a_request(target={"repo_id": NEW}))

    assert [job.id for job in store.jobs.list(TENANT, adapter=OLD, target=NEW).jobs] == [pool_id]


def test_a_pool_that_cannot_be_written_leaves_no_job(store: Store) -> None:
    with store.db.write() as connection:
        connection.execute(text("DROP TABLE anchor_pools"))
    try:
        with pytest.raises(Exception, match="anchor_pools"):
            _register(store)
        assert _count(store, Job) == 0
    finally:
        AnchorPool.__table__.create(store.db.engine)  # type: ignore[attr-defined]


def test_a_ready_pool_is_pinned_and_one_that_is_not_cannot_be_used(store: Store) -> None:
    pool_id = _register(store)
    with pytest.raises(StateConflict, match="still being validated") as refused:
        store.pools.get_ready(TENANT, pool_id)
    assert refused.value.pointer == "/method/pool"

    finish_pool(store, pool_id)

    assert store.pools.get(TENANT, pool_id).state is PoolState.READY
    pool = store.pools.get_ready(TENANT, pool_id)
    assert pool.id == pool_id
    refs = [ref for anchor in pool.spec.anchors for ref in (anchor.source, anchor.target)]
    assert {ref.revision for ref in (pool.spec.source, pool.spec.target, *refs)} == {COMMIT}


def test_a_pool_whose_registration_failed_is_invalid_until_it_is_retried(store: Store) -> None:
    pool_id = _register(store)
    claim = store.queue.claim(pool_id, "worker", 60)
    assert claim is not None
    store.queue.fail(claim, ERROR)

    pool = store.pools.get(TENANT, pool_id)
    assert pool.state is PoolState.INVALID
    assert pool.job.error == ERROR.model_dump()
    with pytest.raises(StateConflict, match="invalid"):
        store.pools.get_ready(TENANT, pool_id)

    store.jobs.retry(TENANT, pool_id)
    assert store.pools.get(TENANT, pool_id).state is PoolState.VALIDATING
    finish_pool(store, pool_id)
    assert store.pools.get_ready(TENANT, pool_id).id == pool_id


def test_another_tenants_pool_does_not_exist(store: Store) -> None:
    keys.create_key(store, "other", "a key")
    pool_id = _register(store)
    finish_pool(store, pool_id)

    for ask in (store.pools.get, store.pools.delete, store.pools.get_ready):
        with pytest.raises(NotFound):
            ask("other", pool_id)
    assert store.pools.list("other").pools == ()
    assert store.pools.find_for_bases("other", OLD, NEW) is None
    assert store.pools.find_for_bases(TENANT, OLD, NEW) is not None


@pytest.mark.parametrize("pool_id", ["", "nope", "nul\0", "0" * 32, "../../etc/passwd"])
def test_an_id_that_is_none_finds_nothing(store: Store, pool_id: str) -> None:
    for ask in (store.pools.get, store.pools.delete, store.pools.get_ready):
        with pytest.raises(NotFound):
            ask(TENANT, pool_id)


def test_a_job_of_another_kind_is_no_pool(store: Store) -> None:
    job_id = store.submissions.submit(TENANT, "convert", a_request())[0].id

    with pytest.raises(NotFound):
        store.pools.get(TENANT, job_id)


def test_pages_walk_through_all_pools_newest_first_and_filter_by_base(store: Store) -> None:
    ids = [_register(store) for _ in range(5)]
    other = _register(store, target={"repo_id": "acme/base-3"})

    seen: list[str] = []
    cursor = None
    while True:
        page = store.pools.list(TENANT, source=OLD, target=NEW, limit=2, cursor=cursor)
        seen += [pool.id for pool in page.pools]
        cursor = page.next_cursor
        _register(store)  # arrivals do not shift the pages that follow
        if cursor is None:
            break

    assert seen == ids[::-1]
    assert [pool.id for pool in store.pools.list(TENANT, target="acme/base-3").pools] == [other]
    assert store.pools.list(TENANT, source="acme/base-3").pools == ()


@pytest.mark.parametrize("wrong", [{"cursor": "!"}, {"limit": 0}, {"limit": 201}])
def test_a_foreign_cursor_or_limit_is_refused(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(RequestInvalid):
        store.pools.list(TENANT, **wrong)  # type: ignore[arg-type]


def test_the_newest_ready_pool_between_two_bases_is_the_one_that_covers_them(store: Store) -> None:
    first, second, unfinished = (_register(store) for _ in range(3))
    elsewhere = _register(store, target={"repo_id": "acme/base-3"})
    pools = ScopedAnchorPools(store.pools, TENANT)
    assert pools.find_for_bases(OLD, NEW) is None

    for pool_id in (second, first, elsewhere):
        finish_pool(store, pool_id)

    covering = pools.find_for_bases(OLD, NEW)
    assert covering is not None
    assert covering.id == second
    assert pools.get(second) == covering
    assert pools.find_for_bases(NEW, OLD) is None
    store.pools.delete(TENANT, second)
    covering = pools.find_for_bases(OLD, NEW)
    assert covering is not None
    assert covering.id == first
    assert store.pools.get(TENANT, unfinished).state is PoolState.VALIDATING


def test_a_deleted_pool_is_gone_and_the_history_of_its_job_stays(store: Store) -> None:
    pool_id = _register(store)
    finish_pool(store, pool_id)

    store.pools.delete(TENANT, pool_id)

    for ask in (store.pools.get, store.pools.delete, store.pools.get_ready):
        with pytest.raises(NotFound):
            ask(TENANT, pool_id)
    assert store.jobs.get(TENANT, pool_id).state is JobState.SUCCEEDED
    assert len(store.jobs.list_events(TENANT, pool_id)) == 3


def test_deleting_a_pool_that_waits_cancels_its_job_at_once(store: Store) -> None:
    pool_id = _register(store)

    store.pools.delete(TENANT, pool_id)

    job = store.jobs.get(TENANT, pool_id)
    assert (job.state, job.cancel_requested) == (JobState.CANCELLED, True)
    assert store.queue.claim(pool_id, "worker", 60) is None


def test_deleting_a_pool_that_is_being_read_stops_its_worker_with_the_heartbeat(store: Store) -> None:
    pool_id = _register(store)
    claim = store.queue.claim(pool_id, "worker", 60)
    assert claim is not None

    store.pools.delete(TENANT, pool_id)

    assert store.queue.heartbeat(claim, 60)
    store.queue.mark_cancelled(claim)
    assert store.jobs.get(TENANT, pool_id).state is JobState.CANCELLED


def test_a_pool_that_was_to_be_cancelled_already_can_be_deleted(store: Store) -> None:
    pool_id = _register(store)
    claim = store.queue.claim(pool_id, "worker", 60)
    assert claim is not None
    store.jobs.cancel(TENANT, pool_id)

    store.pools.delete(TENANT, pool_id)

    types = [event.type for event in store.jobs.list_events(TENANT, pool_id)]
    assert types.count("cancel_requested") == 1


def test_the_job_of_a_deleted_pool_cannot_be_retried(store: Store) -> None:
    pool_id = _register(store)
    store.pools.delete(TENANT, pool_id)

    with pytest.raises(StateConflict, match="deleted"):
        store.jobs.retry(TENANT, pool_id)
    assert store.jobs.get(TENANT, pool_id).state is JobState.CANCELLED


def test_of_many_that_delete_a_pool_one_succeeds(store: Store) -> None:
    pool_id = _register(store)

    def delete(_: int) -> bool:
        try:
            store.pools.delete(TENANT, pool_id)
        except NotFound:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(delete, range(8))) == 1
    types = [event.type for event in store.jobs.list_events(TENANT, pool_id)]
    assert types == ["state", "state"]


def test_a_key_is_good_for_one_pool(store: Store) -> None:
    first, created = store.pools.submit(TENANT, a_pool(), "key")
    again, created_again = store.pools.submit(TENANT, a_pool(name=None), "key")

    assert (created, created_again) == (True, False)
    assert again == first
    assert _count(store, AnchorPool) == _count(store, Job) == 1
    with pytest.raises(IdempotencyMismatch):
        store.pools.submit(TENANT, a_pool(count=4), "key")
    with pytest.raises(IdempotencyMismatch):
        store.submissions.submit(TENANT, "convert", a_request(), "key")


def test_a_key_does_not_bring_a_deleted_pool_back(store: Store) -> None:
    pool, _ = store.pools.submit(TENANT, a_pool(), "key")
    store.pools.delete(TENANT, pool.id)

    with pytest.raises(StateConflict, match="deleted"):
        store.pools.submit(TENANT, a_pool(), "key")
    assert _count(store, AnchorPool) == 0


def test_a_pool_outlives_the_death_of_its_worker(store: Store, clock: HandClock) -> None:
    pool_id = _register(store)
    assert store.queue.claim(pool_id, "worker", 60) is not None
    clock.move(61)

    assert store.outbox.reap().requeued == 1
    finish_pool(store, pool_id)
    assert store.pools.get(TENANT, pool_id).state is PoolState.READY


def test_the_database_itself_refuses_kinds_that_nobody_knows(store: Store) -> None:
    job_id = store.submissions.submit(TENANT, "convert", a_request())[0].id

    for column in ("kind", "state"):
        with pytest.raises(IntegrityError), store.db.write() as connection:
            connection.execute(text(f"UPDATE jobs SET {column} = 'odd' WHERE id = :id"), {"id": job_id})
