"""Jobs that ask to be told, brought to each of their ends, and a courier's side without a network."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import insert

from rebase.errors import PublicError
from rebase.schemas.callbacks import CallbackEvent, DeliveryState
from rebase.store.database import Database
from rebase.store.deliveries import AttemptRecord, DeliveryRepository, LeasedDelivery, Settlement
from rebase.store.delivery_queue import DeliveryQueue, LeaseLimits
from rebase.store.records import Claim
from rebase.store.store import Store
from rebase.store.tables.tenants import Tenant
from support.databases import HandClock, a_request

URL = "https://hooks.acme.example/rebase"
EVERYTHING = [event.value for event in CallbackEvent]
OOPS = PublicError(code="disk_full", message="No room.")


def a_job(store: Store, url: str = URL, tenant: str = "default", events: list[str] | None = None) -> str:
    """A queued job with a callback."""
    callback = {"url": url, **({"events": events} if events is not None else {})}
    return store.submissions.submit(tenant, "convert", a_request(callback=callback))[0].id


def claimed(store: Store, job_id: str) -> Claim:
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    return claim


def ended_job(store: Store, url: str = URL, tenant: str = "default") -> str:
    """A job that succeeded, with its one delivery."""
    job_id = a_job(store, url, tenant)
    store.queue.succeed(claimed(store, job_id), {"output": {"repo_id": "acme/out", "commit": "c" * 40}})
    return job_id


def a_tenant(store: Store, tenant: str) -> None:
    with store.db.write() as connection:
        connection.execute(insert(Tenant).values(id=tenant, created_at=store.clock()))


# Every way in which a job comes to its end, by who brings it there.
Ending = Callable[[Store, HandClock, str], None]


def succeeds(store: Store, _clock: HandClock, job_id: str) -> None:
    claim = claimed(store, job_id)
    store.queue.mark_publishing(claim)
    store.queue.succeed(claim, {"output": {"repo_id": "acme/out", "commit": "c" * 40, "url": "/srv/hub/out"}})


def is_rejected(store: Store, _clock: HandClock, job_id: str) -> None:
    claim = claimed(store, job_id)
    store.queue.save_diagnostics(claim, {}, [], "incompatible")
    store.queue.reject(claim, PublicError(code="incompatible", message="They differ."))


def fails_at_once(store: Store, _clock: HandClock, job_id: str) -> None:
    store.queue.fail(claimed(store, job_id), OOPS)


def fails_after_its_attempts(store: Store, clock: HandClock, job_id: str) -> None:
    for _ in range(store.max_attempts):
        store.queue.fail(claimed(store, job_id), OOPS, retry_in_s=1)
        clock.move(2)


def is_cancelled_in_the_queue(store: Store, _clock: HandClock, job_id: str) -> None:
    store.jobs.cancel("default", job_id)


def is_cancelled_while_waiting(store: Store, _clock: HandClock, job_id: str) -> None:
    store.queue.fail(claimed(store, job_id), OOPS, retry_in_s=10)
    store.jobs.cancel("default", job_id)


def is_cancelled_by_its_worker(store: Store, _clock: HandClock, job_id: str) -> None:
    claim = claimed(store, job_id)
    store.jobs.cancel("default", job_id)
    store.queue.mark_cancelled(claim)


def fails_when_it_was_to_be_cancelled(store: Store, _clock: HandClock, job_id: str) -> None:
    claim = claimed(store, job_id)
    store.jobs.cancel("default", job_id)
    store.queue.fail(claim, OOPS, retry_in_s=1)


def loses_its_worker_for_good(store: Store, clock: HandClock, job_id: str) -> None:
    for _ in range(store.max_attempts):
        claimed(store, job_id)
        clock.move(61)
        store.outbox.reap()


def loses_its_worker_when_it_was_to_be_cancelled(store: Store, clock: HandClock, job_id: str) -> None:
    claimed(store, job_id)
    store.jobs.cancel("default", job_id)
    clock.move(61)
    store.outbox.reap()


ENDINGS: list[tuple[Ending, str]] = [
    (succeeds, "job.succeeded"),
    (is_rejected, "job.rejected"),
    (fails_at_once, "job.failed"),
    (fails_after_its_attempts, "job.failed"),
    (loses_its_worker_for_good, "job.failed"),
    (is_cancelled_in_the_queue, "job.cancelled"),
    (is_cancelled_while_waiting, "job.cancelled"),
    (is_cancelled_by_its_worker, "job.cancelled"),
    (fails_when_it_was_to_be_cancelled, "job.cancelled"),
    (loses_its_worker_when_it_was_to_be_cancelled, "job.cancelled"),
]


def queue_of(store: Store, bounds: LeaseLimits | None = None) -> DeliveryQueue:
    return DeliveryQueue(store.db, store.clock, bounds)


def book_of(store: Store) -> DeliveryRepository:
    return DeliveryRepository(store.db, store.clock)


def settle(
    queue: DeliveryQueue, taken: LeasedDelivery, state: DeliveryState, status: int = 500, wait_s: float = 5
) -> bool:
    """What a courier writes after an attempt."""
    bad = state is not DeliveryState.DELIVERED
    attempt = AttemptRecord(taken.attempt, queue.clock(), status, "status" if bad else None, None, 12)
    at = queue.clock() + timedelta(seconds=wait_s) if state is DeliveryState.PENDING else None
    return queue.settle(taken, attempt, Settlement(state, at))


def sql_text(db: Database) -> str:
    """Everything that the database holds, as text."""
    from sqlalchemy import select

    from rebase.store.tables.base import Base

    with db.read() as connection:
        return "\n".join(
            repr(row) for table in Base.metadata.sorted_tables for row in connection.execute(select(table))
        )
