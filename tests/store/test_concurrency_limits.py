"""No tenant runs more jobs at once than it may, whoever claims; and nobody's job is forgotten over it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, select

from rebase.errors import PublicError
from rebase.schemas.states import JobState
from rebase.store import api_keys as keys
from rebase.store.limits import UNLIMITED, Limits, set_limits
from rebase.store.records import Claim
from rebase.store.store import Store
from rebase.store.tables.jobs import Outbox
from rebase.store.tenants import change_limits
from support.databases import HandClock, a_request

TWO = {"max_running": 2}
FAILURE = PublicError(code="x", message="x")


def _jobs(store: Store, tenant: str, count: int) -> list[str]:
    keys.create_key(store, tenant, "key")
    return [store.submissions.submit(tenant, "convert", a_request())[0].id for _ in range(count)]


def _limit(store: Store, tenant: str, **limits: int | None) -> None:
    with store.db.write() as connection:
        set_limits(connection, tenant, limits, store.clock())


def _bells(store: Store) -> list[str]:
    with store.db.read() as connection:
        return list(connection.scalars(select(Outbox.job_id).order_by(Outbox.id)))


def _silence(store: Store) -> None:
    """As if every bell had been rung and heard for nothing."""
    with store.db.write() as connection:
        connection.execute(delete(Outbox))


def test_beyond_its_limit_a_tenants_job_stays_queued_and_another_tenants_starts(store: Store) -> None:
    first, second, third = _jobs(store, "acme", 3)
    (other,) = _jobs(store, "rival", 1)
    _limit(store, "acme", **TWO)

    assert store.queue.claim(first, "w", 60) is not None
    assert store.queue.claim(second, "w", 60) is not None
    assert store.queue.claim(third, "w", 60) is None
    assert store.jobs.get("acme", third).state is JobState.QUEUED
    assert store.jobs.get("acme", third).attempt == 0
    assert store.queue.claim(other, "w", 60) is not None


@pytest.mark.parametrize("stores", [1, 2], ids=["one process", "two processes"])
def test_workers_that_claim_at_once_never_take_more_than_the_limit(store: Store, stores: int) -> None:
    """Real transactions on real connections: eight claims meet at one barrier, five times over."""
    others = [store, *(Store(store.db, store.clock) for _ in range(stores - 1))]
    ids = _jobs(store, "acme", 8)
    _limit(store, "acme", **TWO)
    for _ in range(5):
        barrier = threading.Barrier(len(ids))

        def claim(number: int, barrier: threading.Barrier = barrier) -> Claim | None:
            barrier.wait()
            return others[number % stores].queue.claim(ids[number], f"w{number}", 60)

        with ThreadPoolExecutor(len(ids)) as pool:
            taken = [one for one in pool.map(claim, range(len(ids))) if one is not None]
        assert len(taken) == 2
        for one in taken:
            store.queue.fail(one, FAILURE, retry_in_s=0)
    assert all(job.state is not JobState.RUNNING for job in store.jobs.list("acme").jobs)


def _succeeds(store: Store, claim: Claim) -> None:
    store.queue.succeed(claim, {})


def _fails(store: Store, claim: Claim) -> None:
    store.queue.fail(claim, FAILURE)


def _waits(store: Store, claim: Claim) -> None:
    store.queue.fail(claim, FAILURE, retry_in_s=100)


def _is_cancelled(store: Store, claim: Claim) -> None:
    store.jobs.cancel("acme", claim.job_id)
    store.queue.mark_cancelled(claim)


@pytest.mark.parametrize("end", [_succeeds, _fails, _waits, _is_cancelled])
def test_when_a_job_lets_go_the_tenants_oldest_waiting_one_is_rung(
    store: Store, end: Callable[[Store, Claim], None]
) -> None:
    first, second, third = _jobs(store, "acme", 3)
    _limit(store, "acme", max_running=1)
    claim = store.queue.claim(first, "w", 60)
    assert claim is not None
    assert store.queue.claim(second, "w", 60) is None
    _silence(store)

    end(store, claim)

    assert _bells(store) == [second]
    assert store.queue.claim(second, "w", 60) is not None
    assert store.queue.claim(third, "w", 60) is None


def test_when_a_worker_dies_the_tenants_next_job_is_rung_in_its_place(store: Store, clock: HandClock) -> None:
    first, second = _jobs(store, "acme", 2)
    _limit(store, "acme", max_running=1)
    assert store.queue.claim(first, "w", 10) is not None
    assert store.queue.claim(second, "w", 10) is None
    _silence(store)
    clock.move(11)

    store.outbox.reap()

    assert set(_bells(store)) >= {first}
    assert store.queue.claim(first, "w", 60) is not None
    assert store.queue.claim(second, "w", 60) is None


def test_a_raised_limit_rings_for_those_that_may_start_now(store: Store) -> None:
    first, *waiting = _jobs(store, "acme", 4)
    _limit(store, "acme", max_running=1)
    assert store.queue.claim(first, "w", 60) is not None
    _silence(store)

    assert change_limits(store, "acme", {"max_running": 3}, None) == 2
    assert _bells(store) == waiting[:2]


def test_a_lost_bell_for_a_waiting_job_is_made_good_by_the_sweeper(store: Store, clock: HandClock) -> None:
    first, second = _jobs(store, "acme", 2)
    _limit(store, "acme", max_running=1)
    claim = store.queue.claim(first, "w", 1e6)
    assert claim is not None
    for _ in range(8):  # the sweeper rings, a worker comes, and finds that it may not
        clock.move(4000)
        store.outbox.reap()
        assert store.queue.claim(second, "w", 60) is None
        _silence(store)
    store.queue.succeed(claim, {})
    _silence(store)  # the bell of the end is lost as well

    clock.move(31)
    store.outbox.reap()

    assert _bells(store) == [second]


def test_the_settings_hold_for_whoever_has_no_row_and_a_row_can_lift_them(store: Store) -> None:
    bounded = Store(store.db, store.clock, limits=Limits(max_running=1))
    ours, theirs = _jobs(store, "acme", 2), _jobs(store, "rival", 2)
    _limit(store, "rival", max_running=UNLIMITED)

    assert [bounded.queue.claim(job_id, "w", 60) is not None for job_id in (*ours, *theirs)] == [
        True,
        False,
        True,
        True,
    ]
