"""What an owner sees and may ask for; what others never see."""

from __future__ import annotations

import pytest

from rebase.errors import NotFound, PublicError, RequestInvalid, StateConflict
from rebase.schemas.states import JobState, Phase
from rebase.store import api_keys as keys
from rebase.store.store import Store
from support.databases import HandClock, a_request

TENANT = "default"
ERROR = PublicError(code="repo_not_found", message="No such repo.")


def _submit(store: Store, **changes: object) -> str:
    return store.submissions.submit(TENANT, "convert", a_request(**changes))[0].id


def test_another_tenants_job_does_not_exist(store: Store) -> None:
    keys.create_key(store, "other", "a key")
    job_id = _submit(store)

    for ask in (
        store.jobs.get,
        store.jobs.cancel,
        store.jobs.retry,
        store.jobs.get_diagnostics,
        store.jobs.list_events,
    ):
        with pytest.raises(NotFound):
            ask("other", job_id)
    assert store.jobs.list("other").jobs == ()


@pytest.mark.parametrize("job_id", ["", "nope", "x" * 500, "nul\0", "0" * 32, "../../etc/passwd"])
def test_an_id_that_is_none_finds_nothing(store: Store, job_id: str) -> None:
    with pytest.raises(NotFound):
        store.jobs.get(TENANT, job_id)


def test_pages_walk_through_all_jobs_newest_first_without_gaps(store: Store) -> None:
    ids = [_submit(store) for _ in range(7)]

    seen: list[str] = []
    cursor = None
    while True:
        page = store.jobs.list(TENANT, limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        _submit(store)  # arrivals do not shift the pages that follow
        if cursor is None:
            break

    assert seen == ids[::-1]


def test_pages_filter_by_state_adapter_and_target(store: Store) -> None:
    plain = _submit(store)
    other = _submit(store, adapter={"repo_id": "acme/other"}, target={"repo_id": "acme/base-3"})
    store.jobs.cancel(TENANT, plain)

    def listed(**filters: object) -> list[str]:
        return [job.id for job in store.jobs.list(TENANT, **filters).jobs]  # type: ignore[arg-type]

    assert listed(state=JobState.CANCELLED) == [plain]
    assert listed(adapter="acme/other") == [other]
    assert listed(target="acme/base-2") == [plain]
    assert listed(adapter="acme/other", target="acme/base-2") == []


@pytest.mark.parametrize("cursor", ["", "!", "AAAA", "x" * 64, "é"])
def test_a_foreign_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(RequestInvalid):
        store.jobs.list(TENANT, cursor=cursor)


def test_a_job_that_nobody_runs_is_cancelled_at_once(store: Store) -> None:
    job_id = _submit(store)

    job = store.jobs.cancel(TENANT, job_id)

    assert job.state is JobState.CANCELLED
    assert job.error is not None
    assert job.error["code"] == "cancelled"
    assert store.queue.claim(job_id, "worker", 60) is None
    assert store.jobs.cancel(TENANT, job_id) == job


def test_a_running_job_hears_of_its_cancellation_with_the_heartbeat(store: Store) -> None:
    job_id = _submit(store)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    assert not store.queue.heartbeat(claim, 60)

    job = store.jobs.cancel(TENANT, job_id)

    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    assert store.queue.heartbeat(claim, 60)
    store.queue.mark_cancelled(claim)
    assert store.jobs.get(TENANT, job_id).state is JobState.CANCELLED


def test_a_job_that_is_being_published_or_has_ended_cannot_be_cancelled(store: Store) -> None:
    job_id = _submit(store)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    store.queue.mark_publishing(claim)
    with pytest.raises(StateConflict):
        store.jobs.cancel(TENANT, job_id)
    store.queue.succeed(claim, {"ok": True})
    with pytest.raises(StateConflict):
        store.jobs.cancel(TENANT, job_id)


def _lost_while_publishing(store: Store, clock: HandClock) -> str:
    """A job that is queued again because its worker died between `publishing` and `succeed`."""
    job_id = _submit(store)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    store.queue.mark_publishing(claim)
    clock.move(61)
    store.outbox.reap()
    assert store.jobs.get(TENANT, job_id).state is JobState.QUEUED
    return job_id


def test_a_job_that_may_have_been_published_is_not_called_cancelled_before_a_worker_has_looked(
    store: Store, clock: HandClock
) -> None:
    job_id = _lost_while_publishing(store, clock)

    job = store.jobs.cancel(TENANT, job_id)

    assert (job.state, job.cancel_requested) == (JobState.QUEUED, True)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    assert store.queue.heartbeat(claim, 60)
    clock.move(61)
    assert store.outbox.reap().cancelled == 0
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    assert store.queue.fail(claim, ERROR, None) is JobState.FAILED


def test_a_worker_that_found_no_commit_cancels_a_job_that_may_have_been_published(
    store: Store, clock: HandClock
) -> None:
    job_id = _lost_while_publishing(store, clock)
    store.jobs.cancel(TENANT, job_id)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None

    store.queue.mark_cancelled(claim)

    assert store.jobs.get(TENANT, job_id).state is JobState.CANCELLED


def test_a_retried_job_starts_afresh_with_a_new_budget_and_a_new_bell(store: Store) -> None:
    job_id = _submit(store)
    claim = store.queue.claim(job_id, "worker", 60)
    assert claim is not None
    store.queue.report_progress(claim, Phase.READING, 3, 7)
    store.queue.save_diagnostics(claim, {"old": True}, [{"site": "0.q_proj"}], "incompatible")
    store.queue.reject(claim, ERROR)
    store.outbox.publish(lambda _: None)

    job = store.jobs.retry(TENANT, job_id)

    assert (job.state, job.error, job.verdict, job.progress_done) == (JobState.QUEUED, None, None, None)
    assert store.jobs.get_diagnostics(TENANT, job_id).sites == ()
    assert job.attempt_limit - job.attempt == store.max_attempts
    rung: list[str] = []
    store.outbox.publish(rung.append)
    assert rung == [job_id]


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_job_that_has_not_failed_cannot_be_retried(store: Store, state: str) -> None:
    job_id = _submit(store)
    if state != "queued":
        claim = store.queue.claim(job_id, "worker", 60)
        assert claim is not None
        if state == "succeeded":
            store.queue.succeed(claim, {})

    with pytest.raises(StateConflict):
        store.jobs.retry(TENANT, job_id)


def test_history_resumes_after_any_event(store: Store, clock: HandClock) -> None:
    job_id = _submit(store)
    clock.move(1)
    store.jobs.cancel(TENANT, job_id)
    clock.move(1)
    store.jobs.retry(TENANT, job_id)

    events = store.jobs.list_events(TENANT, job_id)

    assert [event.data["state"] for event in events] == ["queued", "cancelled", "queued"]
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert store.jobs.list_events(TENANT, job_id, events[0].id) == events[1:]
    assert [event.at for event in events] == sorted(event.at for event in events)
