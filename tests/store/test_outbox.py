"""Bells are rung, lost workers are noticed, nothing is lost with the broker."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from rebase.schemas.states import JobState
from rebase.settings import Settings
from rebase.store.broker import make_celery, send_notification
from rebase.store.database import Database
from rebase.store.outbox import LEASE_S, ReapResult
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store
from support.databases import HandClock, a_request
from support.redis_server import own_redis

TENANT = "default"


def _submit(store: Store, number: int = 1) -> list[str]:
    return [store.submissions.submit(TENANT, "convert", a_request())[0].id for _ in range(number)]


def _down(_job_id: str) -> None:
    raise ConnectionError("nobody there")


def test_two_relays_at_once_ring_each_bell_once(store: Store) -> None:
    ids = _submit(store, 40)
    rung: list[str] = []
    lock = threading.Lock()

    def slow_ring(job_id: str) -> None:
        with lock:
            rung.append(job_id)
        time.sleep(0.001)

    def relay(_: int) -> int:
        return sum(store.outbox.publish(slow_ring, limit=7) for _ in range(6))

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(relay, range(2)))

    assert sorted(rung) == sorted(ids)
    assert sum(counts) == 40
    assert store.outbox.count_pending() == 0


def test_bells_wait_with_growing_patience_for_a_broker_that_is_down(store: Store, clock: HandClock) -> None:
    (job_id,) = _submit(store)
    for wait in (1, 2, 4):
        with pytest.raises(ConnectionError):
            store.outbox.publish(_down)
        clock.move(wait - 0.1)
        assert store.outbox.publish(_down) == 0  # not due yet
        clock.move(0.2)

    rung: list[str] = []
    store.outbox.publish(rung.append)
    assert rung == [job_id]


def test_bells_that_a_relay_held_when_it_died_ring_later(store: Store, clock: HandClock) -> None:
    (job_id,) = _submit(store)
    with store.db.write() as connection:
        assert store.outbox._lease_rows(connection, clock(), 10)
    rung: list[str] = []
    store.outbox.publish(rung.append)
    assert rung == []

    clock.move(LEASE_S + 1)
    store.outbox.publish(rung.append)
    assert rung == [job_id]


def test_a_lost_worker_costs_one_attempt_each_time_until_the_job_fails(
    store: Store, clock: HandClock
) -> None:
    (job_id,) = _submit(store)
    for attempt in (1, 2, 3):
        store.outbox.publish(lambda _: None)
        claim = store.queue.claim(job_id, "worker", 60)
        assert claim is not None
        assert claim.attempt == attempt
        clock.move(61)
        swept = store.outbox.reap()
        assert swept == (ReapResult(requeued=1) if attempt < 3 else ReapResult(lost=1))
        assert store.outbox.count_pending() == (1 if attempt < 3 else 0)

    job = store.jobs.get(TENANT, job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_worker_lost_while_publishing_leaves_the_job_to_the_next_one(
    store: Store, clock: HandClock
) -> None:
    (job_id,) = _submit(store)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    store.queue.mark_publishing(claim)
    clock.move(61)

    assert store.outbox.reap().requeued == 1
    assert store.queue.claim(job_id, "worker-2", 60) is not None


def test_a_lost_workers_job_that_was_to_be_cancelled_is_cancelled(store: Store, clock: HandClock) -> None:
    (job_id,) = _submit(store)
    store.queue.claim(job_id, "worker", 60)
    store.jobs.cancel(TENANT, job_id)
    clock.move(61)

    assert store.outbox.reap() == ReapResult(cancelled=1)
    assert store.jobs.get(TENANT, job_id).state is JobState.CANCELLED


def test_a_queued_job_whose_bell_was_lost_is_rung_again_and_again_less_often(
    store: Store, clock: HandClock
) -> None:
    _submit(store)
    store.outbox.publish(lambda _: None)
    waits: list[int] = []
    waited = 0
    while len(waits) < 4:
        clock.move(1)
        waited += 1
        if store.outbox.reap().renotified:
            waits.append(waited)
            waited = 0
            store.outbox.publish(lambda _: None)

    assert waits == [30, 60, 120, 240]


def test_a_job_whose_bell_still_waits_is_not_rung_again(store: Store, clock: HandClock) -> None:
    _submit(store)
    clock.move(3600)

    assert store.outbox.reap() == ReapResult()


def test_two_sweepers_at_once_do_each_thing_once(store: Store, clock: HandClock) -> None:
    for job_id in _submit(store, 10):
        store.queue.claim(job_id, "worker", 60)
    store.outbox.publish(lambda _: None)
    clock.move(61)

    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: store.outbox.reap(), range(4)))

    assert sum(one.requeued for one in swept) == 10
    assert store.outbox.count_pending() == 10


def test_the_keeper_rings_soon_after_a_nudge_and_sweeps_by_itself(database_url: str) -> None:
    db = Database.open(database_url)
    store = Store(db)
    rung: list[str] = []
    heard = threading.Event()

    def note(job_id: str) -> None:
        rung.append(job_id)
        heard.set()

    keeper = Scheduler(store, note, interval=60)
    keeper.start()
    try:
        (job_id,) = _submit(store)
        keeper.wake()
        assert heard.wait(5)
    finally:
        keeper.stop()
        db.close()

    assert rung == [job_id]
    assert keeper.state.broker_ok
    assert keeper.state.last_reap == ReapResult()


def test_the_keeper_outlives_a_broker_that_is_down(database_url: str, clock: HandClock) -> None:
    db = Database.open(database_url)
    store = Store(db, clock)
    rung: list[str] = []
    broken = threading.Event()
    broken.set()
    tried = threading.Event()

    def flaky(job_id: str) -> None:
        tried.set()
        if broken.is_set():
            _down(job_id)
        rung.append(job_id)

    keeper = Scheduler(store, flaky, interval=0.05)
    keeper.start()
    try:
        (job_id,) = _submit(store)
        keeper.wake()
        assert tried.wait(5)
        broken.clear()
        clock.move(61)
        until = time.monotonic() + 5
        while not rung and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        keeper.stop()
        db.close()

    assert rung == [job_id]
    assert keeper.state.failures >= 1


def test_a_bell_on_a_real_redis_carries_the_job_id_and_nothing_else(store: Store) -> None:
    (job_id,) = _submit(store)
    with own_redis() as url:
        app = make_celery(Settings(broker_url=url))
        assert store.outbox.publish(lambda one: send_notification(app, one)) == 1
        app.pool.force_close_all()
        with Redis.from_url(url) as client:
            (message,) = client.lrange("rebase", 0, -1)

    body = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert body[:2] == [[job_id], {}]
