"""A move of a job and the news of it are one transaction; deliveries are shared out, held and replayed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select

from rebase.errors import NotFound, RequestInvalid, StateConflict
from rebase.schemas.callbacks import EVENT_BY_STATE, DeliveryState
from rebase.schemas.states import TERMINAL, TRANSITIONS, JobState
from rebase.store.deliveries import delete_deliveries
from rebase.store.delivery_queue import LeaseLimits
from rebase.store.store import Store
from rebase.store.tables.callbacks import CallbackAttempt, CallbackDelivery
from support.callbacks import (
    ENDINGS,
    EVERYTHING,
    URL,
    Ending,
    a_job,
    a_tenant,
    book_of,
    claimed,
    ended_job,
    fails_at_once,
    queue_of,
    settle,
    succeeds,
)
from support.databases import HandClock, a_request

TENANT = "default"
DELIVERED, PENDING, FAILED, STOPPED = (
    DeliveryState.DELIVERED,
    DeliveryState.PENDING,
    DeliveryState.FAILED,
    DeliveryState.STOPPED,
)


def test_every_end_of_a_job_is_an_event() -> None:
    assert {state for state in EVENT_BY_STATE if state is not JobState.RUNNING} == TERMINAL
    assert {state for targets in TRANSITIONS.values() for state in targets} >= TERMINAL
    assert {expected for _, expected in ENDINGS} == {EVENT_BY_STATE[state].value for state in TERMINAL}


@pytest.mark.parametrize(("ending", "expected"), ENDINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_way_to_end_writes_one_delivery(
    store: Store, clock: HandClock, ending: Ending, expected: str
) -> None:
    job_id = a_job(store)
    ending(store, clock, job_id)

    job = store.jobs.get(TENANT, job_id)
    assert job.is_done
    (delivery,) = book_of(store).list_for_job(TENANT, job_id)
    assert (delivery.event, delivery.url, delivery.state, delivery.log) == (expected, URL, PENDING, ())
    data = delivery.payload["data"]
    assert delivery.payload["type"] == expected
    assert (data["job"], data["state"], data["path"]) == (job_id, job.state.value, f"/jobs/{job_id}")
    assert (data["adapter"], data["target"], data["kind"]) == ("acme/sql-lora", "acme/base-2", "convert")
    assert (data["error"] is None) == (job.state is JobState.SUCCEEDED)
    if job.error is not None:
        assert data["error"] == {"code": job.error["code"], "message": job.error["message"]}


def test_a_success_tells_where_the_output_is_and_no_path_of_ours(store: Store, clock: HandClock) -> None:
    job_id = a_job(store)
    succeeds(store, clock, job_id)

    (delivery,) = book_of(store).list_for_job(TENANT, job_id)
    assert delivery.payload["data"]["output"] == {"repo_id": "acme/out", "commit": "c" * 40}
    assert "/srv" not in str(delivery.payload)


def test_only_what_was_asked_for_is_told_and_starts_are_told_of_each_attempt(
    store: Store, clock: HandClock
) -> None:
    silent = store.submissions.submit(TENANT, "convert", a_request())[0].id
    picky = a_job(store, events=["job.succeeded"])
    curious = a_job(store, events=EVERYTHING)
    for job_id in (silent, picky, curious):
        claimed(store, job_id)
    clock.move(61)
    store.outbox.reap()
    for job_id in (silent, picky, curious):
        fails_at_once(store, clock, job_id)

    told = {
        job_id: [one.event for one in book_of(store).list_for_job(TENANT, job_id)]
        for job_id in (silent, picky)
    }
    assert told == {silent: [], picky: []}
    starts = book_of(store).list_for_job(TENANT, curious)
    assert [(one.event, one.payload["data"]["attempt"]) for one in starts] == [
        ("job.started", 1),
        ("job.started", 2),
        ("job.failed", 2),
    ]


def test_a_job_that_is_retried_tells_of_its_next_end_under_an_id_of_its_own(
    store: Store, clock: HandClock
) -> None:
    job_id = a_job(store)
    fails_at_once(store, clock, job_id)
    store.jobs.retry(TENANT, job_id)
    succeeds(store, clock, job_id)

    first, second = book_of(store).list_for_job(TENANT, job_id)
    assert (first.event, second.event) == ("job.failed", "job.succeeded")
    assert first.id != second.id


def test_a_move_that_is_rolled_back_tells_nobody_anything(store: Store) -> None:
    job_id = a_job(store)
    claim = claimed(store, job_id)

    def break_it(*_: object) -> None:
        raise RuntimeError("the power went")

    event.listen(store.db.engine, "commit", break_it)
    with pytest.raises(RuntimeError, match="the power went"):
        store.queue.succeed(claim, {})
    event.remove(store.db.engine, "commit", break_it)

    assert store.jobs.get(TENANT, job_id).state is JobState.RUNNING
    assert book_of(store).list_for_job(TENANT, job_id) == ()


def test_couriers_at_once_take_each_delivery_once(store: Store) -> None:
    for number in range(40):
        ended_job(store, f"https://h{number}.example/")
    taken: list[str] = []
    lock = threading.Lock()

    def courier(number: int) -> None:
        queue = queue_of(store, LeaseLimits(total=7, per_tenant=7))
        while found := queue.lease(f"courier-{number}", 60):
            with lock:
                taken.extend(one.id for one in found)
            for one in found:
                assert settle(queue, one, DELIVERED, 200)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(courier, range(4)))

    assert len(taken) == len(set(taken)) == 40
    assert book_of(store).count_by_state().by_state[DELIVERED] == 40


@pytest.mark.parametrize("next_holder", ["other", "dies"])
def test_what_a_dead_courier_held_falls_due_again_under_the_same_id_and_the_log_says_so(
    store: Store, clock: HandClock, next_holder: str
) -> None:
    job_id = ended_job(store)
    queue = queue_of(store)
    (first,) = queue.lease("dies", 60)
    assert queue.lease("other", 60) == []
    clock.move(61)
    (second,) = queue.lease(next_holder, 60)

    assert (second.id, second.payload, second.attempt) == (first.id, first.payload, 2)
    assert not settle(queue, first, DELIVERED, 200)  # it was not dead, only slow: too late
    assert settle(queue, second, DELIVERED, 200)
    (delivery,) = book_of(store).list_for_job(TENANT, job_id)
    assert [(one.number, one.reason) for one in delivery.log] == [(1, "courier_lost"), (2, None)]


def test_an_attempt_is_settled_once(store: Store, clock: HandClock) -> None:
    job_id = ended_job(store)
    queue = queue_of(store)
    (one,) = queue.lease("c", 60)

    assert settle(queue, one, PENDING, 503, wait_s=30)
    assert not settle(queue, one, DELIVERED, 200)
    (delivery,) = book_of(store).list_for_job(TENANT, job_id)
    assert (delivery.state, len(delivery.log)) == (PENDING, 1)


def test_a_failed_delivery_waits_for_its_time(store: Store, clock: HandClock) -> None:
    job_id = ended_job(store)
    queue = queue_of(store)
    (one,) = queue.lease("c", 60)
    settle(queue, one, PENDING, 503, wait_s=30)
    clock.move(29)
    assert queue.lease("c", 60) == []
    clock.move(2)

    (again,) = queue.lease("c", 60)
    assert (again.id, again.failures, again.attempt) == (one.id, 1, 2)
    assert book_of(store).list_for_job(TENANT, job_id)[0].log[0].status == 503


def test_a_receiver_with_thousands_of_messages_delays_its_own_and_no_other(
    store: Store, clock: HandClock
) -> None:
    for _ in range(60):
        ended_job(store, "https://dead.example/")
    clock.move(1)
    other = ended_job(store, "https://alive.example/")
    a_tenant(store, "rival")
    rival = ended_job(store, "https://dead.example/", "rival")
    queue = queue_of(store, LeaseLimits(per_endpoint=3, per_tenant=5, total=8))

    taken = queue.lease("c", 60)
    jobs = [row.job_id for row in _rows(store, [one.id for one in taken])]
    assert {other, rival} <= set(jobs)
    assert len([one for one in taken if one.receiver == "dead.example:443"]) == 3 + 1
    assert queue.lease("c", 60, taken) == []  # what is in hand counts


def test_no_tenant_takes_all_of_a_courier(store: Store, clock: HandClock) -> None:
    for number in range(30):
        ended_job(store, f"https://h{number}.example/")
    clock.move(1)
    a_tenant(store, "rival")
    ended_job(store, "https://late.example/", "rival")
    queue = queue_of(store, LeaseLimits(per_endpoint=2, per_tenant=5, total=20))

    taken = queue.lease("c", 60)
    assert sorted(one.tenant_id for one in taken) == ["default"] * 5 + ["rival"]
    assert queue.lease("c", 60, [one for one in taken if one.tenant_id == "default"]) == []


def test_a_receiver_that_is_gone_stops_what_waits_and_what_comes_until_a_replay(
    store: Store, clock: HandClock
) -> None:
    a_tenant(store, "rival")
    first, waiting = ended_job(store), ended_job(store)
    elsewhere, rival = ended_job(store, f"{URL}/2"), ended_job(store, URL, "rival")
    queue, book = queue_of(store, LeaseLimits(per_endpoint=1)), book_of(store)
    one = next(taken for taken in queue.lease("c", 60) if taken.url == URL and taken.tenant_id == TENANT)
    settle(queue, one, STOPPED, 410)
    coming = ended_job(store)

    def state(job_id: str, tenant: str = TENANT) -> DeliveryState:
        return book.list_for_job(tenant, job_id)[0].state

    assert [state(job) for job in (first, waiting, coming)] == [STOPPED] * 3
    assert state(elsewhere) is PENDING
    assert state(rival, "rival") is PENDING

    replayed = book.replay(TENANT, one.id)
    assert (replayed.state, replayed.id) == (PENDING, one.id)
    assert state(ended_job(store)) is PENDING
    assert state(waiting) is STOPPED  # each is replayed by itself


def test_a_replay_starts_the_schedule_anew_and_keeps_id_and_log(store: Store, clock: HandClock) -> None:
    job_id = ended_job(store)
    queue, book = queue_of(store), book_of(store)
    (one,) = queue.lease("c", 60)
    with pytest.raises(StateConflict, match="currently being sent"):
        book.replay(TENANT, one.id)
    settle(queue, one, FAILED)
    assert queue.lease("c", 60) == []
    book.replay(TENANT, one.id)

    (again,) = queue.lease("c", 60)
    assert (again.id, again.payload, again.failures, again.attempt) == (one.id, one.payload, 0, 2)
    settle(queue, again, DELIVERED, 204)
    (delivery,) = book.list_for_job(TENANT, job_id)
    assert [(entry.number, entry.status) for entry in delivery.log] == [(1, 500), (2, 204)]
    assert delivery.next_at is None


def test_another_tenants_deliveries_do_not_exist(store: Store) -> None:
    a_tenant(store, "rival")
    job_id = ended_job(store)
    book = book_of(store)
    (delivery,) = book.list_for_job(TENANT, job_id)

    for ask in (book.get, book.replay):
        with pytest.raises(NotFound):
            ask("rival", delivery.id)
        with pytest.raises(NotFound):
            ask(TENANT, "no id at all\x00")
    with pytest.raises(NotFound):
        book.list_for_job("rival", job_id)
    assert book.list_deliveries("rival").deliveries == ()


def test_pages_are_newest_first_and_filtered_by_state(store: Store) -> None:
    jobs = [ended_job(store, f"https://h{number}.example/") for number in range(5)]
    queue, book = queue_of(store), book_of(store)
    settle(queue, next(one for one in queue.lease("c", 60) if "h2." in one.url), DELIVERED, 200)

    first = book.list_deliveries(TENANT, limit=3)
    second = book.list_deliveries(TENANT, limit=3, cursor=first.next_cursor)
    assert [one.job_id for one in (*first.deliveries, *second.deliveries)] == jobs[::-1]
    assert second.next_cursor is None
    assert [one.job_id for one in book.list_deliveries(TENANT, state=DELIVERED).deliveries] == [jobs[2]]
    with pytest.raises(RequestInvalid):
        book.list_deliveries(TENANT, cursor="mine")


def test_old_deliveries_are_forgotten_with_their_logs_and_pending_ones_are_not(
    store: Store, clock: HandClock
) -> None:
    a_tenant(store, "rival")
    done, pending = ended_job(store), ended_job(store, "https://late.example/")
    rival = ended_job(store, URL, "rival")
    queue, book = queue_of(store), book_of(store)
    for one in queue.lease("c", 600):
        if one.receiver != "late.example:443":
            settle(queue, one, DELIVERED, 200)
    clock.move(100)
    fresh = ended_job(store)

    before = clock() - timedelta(seconds=50)
    assert delete_deliveries(store.db, before, limit=1) == 1
    assert book.list_for_job(TENANT, done) == ()
    assert delete_deliveries(store.db, before, limit=10) == 1
    assert book.list_for_job("rival", rival) == ()
    assert all(book.list_for_job(TENANT, job) for job in (pending, fresh))
    with store.db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(CallbackAttempt)) == 0


def test_counts_tell_of_every_state_and_the_oldest_that_waits(store: Store, clock: HandClock) -> None:
    book = book_of(store)
    assert (book.count_by_state().oldest_pending, set(book.count_by_state().by_state.values())) == (None, {0})
    made = clock()
    ended_job(store)
    clock.move(60)
    ended_job(store)

    assert book.count_by_state().by_state[PENDING] == 2
    assert book.count_by_state().oldest_pending == made


def _rows(store: Store, ids: list[str]) -> list[CallbackDelivery]:
    with store.db.read() as connection:
        query = select(CallbackDelivery.__table__).where(CallbackDelivery.id.in_(ids))
        return list(connection.execute(query))
