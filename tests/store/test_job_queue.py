"""A worker's writes: exactly one holder, everything fenced, attempts bounded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rebase.errors import Cancelled, LeaseLost, PublicError
from rebase.schemas.states import JobState, Phase
from rebase.store.job_queue import get_state_after_failure
from rebase.store.records import Claim
from rebase.store.store import Store
from support.databases import HandClock, a_request

TENANT = "default"
ERROR = PublicError(code="hub_unavailable", message="The hub does not answer.", retryable=True)
PINS = {
    "adapter_sha": "a" * 40,
    "source_repo": "acme/base-1",
    "source_sha": "b" * 40,
    "target_sha": "c" * 40,
    "output_repo": "acme/out",
}


def _running(store: Store) -> Claim:
    job_id = store.submissions.submit(TENANT, "convert", a_request())[0].id
    claim = store.queue.claim(job_id, "worker-1", 60)
    assert claim is not None
    return claim


def test_of_twenty_workers_that_claim_a_job_exactly_one_gets_it(store: Store) -> None:
    job_id = store.submissions.submit(TENANT, "convert", a_request())[0].id

    with ThreadPoolExecutor(20) as pool:
        claims = list(pool.map(lambda n: store.queue.claim(job_id, f"worker-{n}", 60), range(20)))

    winners = [claim for claim in claims if claim is not None]
    assert len(winners) == 1
    assert winners[0].attempt == 1
    assert winners[0].request == a_request()


def test_a_doubled_bell_for_an_ended_job_does_nothing(store: Store) -> None:
    claim = _running(store)
    store.queue.succeed(claim, {"repo_id": "acme/out"})

    assert store.queue.claim(claim.job_id, "worker-2", 60) is None
    assert store.jobs.get(TENANT, claim.job_id).state is JobState.SUCCEEDED


def test_a_job_from_claim_to_success_shows_every_step(store: Store) -> None:
    claim = _running(store)
    store.queue.record_resolved(claim, **PINS)
    store.queue.report_progress(claim, Phase.TRANSFERRING, 3, 14, "sites", 8.5)
    store.queue.save_diagnostics(
        claim, {"energy": 0.9}, [{"site": "0.q_proj"}, {"site": "0.v_proj"}], "compatible"
    )

    job = store.jobs.get(TENANT, claim.job_id)
    assert (job.phase, job.progress_done, job.progress_total) == ("transferring", 3, 14)
    assert (job.progress_unit, job.progress_eta_s, job.verdict) == ("sites", 8.5, "compatible")
    assert {name: getattr(job, name) for name in PINS} == PINS

    store.queue.mark_publishing(claim)
    store.queue.succeed(claim, {"repo_id": "acme/out"})
    job = store.jobs.get(TENANT, claim.job_id)
    assert (job.state, job.result, job.error, job.is_done) == (
        JobState.SUCCEEDED,
        {"repo_id": "acme/out"},
        None,
        True,
    )
    diagnostics = store.jobs.get_diagnostics(TENANT, claim.job_id)
    assert diagnostics.summary == {"energy": 0.9}
    assert [site["site"] for site in diagnostics.sites] == ["0.q_proj", "0.v_proj"]
    assert [event.type for event in store.jobs.list_events(TENANT, claim.job_id)] == [
        "state",
        "state",
        "resolved",
        "phase",
        "diagnostics",
        "state",
        "state",
    ]


def test_progress_inside_a_phase_is_no_event_but_changes_the_version(store: Store) -> None:
    claim = _running(store)
    store.queue.report_progress(claim, Phase.TRANSFERRING, 1, 14)
    events, version = (
        store.jobs.list_events(TENANT, claim.job_id),
        store.jobs.get(TENANT, claim.job_id).version,
    )
    store.queue.report_progress(claim, Phase.TRANSFERRING, 2, 14)

    assert store.jobs.list_events(TENANT, claim.job_id) == events
    assert store.jobs.get(TENANT, claim.job_id).version == version + 1


def test_a_heartbeat_extends_the_lease_and_progress_does_not(store: Store, clock: HandClock) -> None:
    claim = _running(store)
    clock.move(50)
    store.queue.report_progress(claim, Phase.READING, 1, 2)
    clock.move(9)
    store.queue.heartbeat(claim, 60)
    clock.move(59)
    assert store.outbox.reap().requeued == 0
    clock.move(2)
    assert store.outbox.reap().requeued == 1


STALE_WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "heartbeat": lambda store, claim: store.queue.heartbeat(claim, 60),
    "report": lambda store, claim: store.queue.report_progress(claim, Phase.READING, 1, 2),
    "resolved": lambda store, claim: store.queue.record_resolved(claim, **PINS),
    "publishing": lambda store, claim: store.queue.mark_publishing(claim),
    "save_diagnostics": lambda store, claim: store.queue.save_diagnostics(claim, {}, [], None),
    "succeed": lambda store, claim: store.queue.succeed(claim, {}),
    "reject": lambda store, claim: store.queue.reject(claim, ERROR),
    "fail": lambda store, claim: store.queue.fail(claim, ERROR, 1.0),
    "cancelled": lambda store, claim: store.queue.mark_cancelled(claim),
}


@pytest.mark.parametrize("write", STALE_WRITES)
def test_a_worker_that_lost_its_lease_can_write_nothing(store: Store, clock: HandClock, write: str) -> None:
    stale = _running(store)
    clock.move(61)
    store.outbox.reap()
    with pytest.raises(LeaseLost):
        STALE_WRITES[write](store, stale)

    # The same worker process may hold the job again: its older attempt still writes nothing.
    fresh = store.queue.claim(stale.job_id, stale.owner, 60)
    assert fresh is not None
    before = store.jobs.get(TENANT, stale.job_id), store.jobs.list_events(TENANT, stale.job_id)
    with pytest.raises(LeaseLost):
        STALE_WRITES[write](store, stale)
    assert (store.jobs.get(TENANT, stale.job_id), store.jobs.list_events(TENANT, stale.job_id)) == before


def test_an_attempt_of_before_a_persons_retry_is_fenced_off_too(store: Store) -> None:
    stale = _running(store)
    store.queue.fail(stale, ERROR, None)
    store.jobs.retry(TENANT, stale.job_id)
    fresh = store.queue.claim(stale.job_id, stale.owner, 60)

    assert fresh is not None
    assert fresh.attempt > stale.attempt
    with pytest.raises(LeaseLost):
        store.queue.succeed(stale, {})


def test_a_retryable_failure_waits_then_runs_again_and_finally_fails(store: Store, clock: HandClock) -> None:
    job_id = _running(store).job_id
    claim = Claim(job_id, TENANT, "convert", a_request(), 1, "worker-1")
    for attempt in (1, 2):
        assert store.queue.fail(claim, ERROR, 10.0) is JobState.RETRY_WAIT
        waiting = store.jobs.get(TENANT, job_id)
        assert (waiting.is_done, waiting.error, waiting.result) == (False, None, None)
        assert store.queue.claim(job_id, "worker-1", 60) is None
        clock.move(10)
        again = store.queue.claim(job_id, "worker-1", 60)
        assert again is not None
        assert again.attempt == attempt + 1
        claim = again

    assert store.queue.fail(claim, ERROR, 10.0) is JobState.FAILED
    job = store.jobs.get(TENANT, job_id)
    assert job.is_done
    assert job.error == ERROR.model_dump()


def test_diagnostics_of_an_earlier_attempt_are_replaced(store: Store, clock: HandClock) -> None:
    claim = _running(store)
    store.queue.save_diagnostics(claim, {"run": 1}, [{"n": n} for n in range(5)], "uncertain")
    clock.move(61)
    store.outbox.reap()
    again = store.queue.claim(claim.job_id, "worker-2", 60)
    assert again is not None
    store.queue.save_diagnostics(again, {"run": 2}, [{"n": 9}], "compatible")

    diagnostics = store.jobs.get_diagnostics(TENANT, claim.job_id)
    assert (diagnostics.summary, diagnostics.sites, diagnostics.verdict) == (
        {"run": 2},
        ({"n": 9},),
        "compatible",
    )


def test_a_job_that_is_to_be_cancelled_is_not_published(store: Store) -> None:
    claim = _running(store)
    store.jobs.cancel(TENANT, claim.job_id)

    with pytest.raises(Cancelled):
        store.queue.mark_publishing(claim)
    assert store.jobs.get(TENANT, claim.job_id).state is JobState.RUNNING


def test_a_published_job_cannot_be_rejected(store: Store) -> None:
    claim = _running(store)
    store.queue.mark_publishing(claim)

    with pytest.raises(LeaseLost):
        store.queue.reject(claim, ERROR)


def test_a_failure_of_a_job_that_is_to_be_cancelled_ends_it_cancelled(store: Store) -> None:
    claim = _running(store)
    store.jobs.cancel(TENANT, claim.job_id)

    assert store.queue.fail(claim, ERROR, 1.0) is JobState.CANCELLED


@pytest.mark.parametrize(
    ("attempt", "retryable", "cancel", "state"),
    [
        (1, True, False, JobState.RETRY_WAIT),
        (3, True, False, JobState.FAILED),
        (1, False, False, JobState.FAILED),
        (1, True, True, JobState.CANCELLED),
    ],
)
def test_where_a_failed_attempt_leads(attempt: int, retryable: bool, cancel: bool, state: JobState) -> None:
    assert get_state_after_failure(attempt=attempt, limit=3, retryable=retryable, cancel=cancel) is state
