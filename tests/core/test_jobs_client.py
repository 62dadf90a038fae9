"""What an owner sees and may ask for; what others never see."""

from __future__ import annotations

import pytest

from rebase.errors import NotFound, PublicError, RequestInvalid, StateConflict
from rebase.schemas.states import JobState, Phase
from rebase.store import api_keys as keys
from rebase.store.job_store import JobStore
from support.databases import HandClock, a_request

TENANT = "default"
ERROR = PublicError(code="repo_not_found", message="No such repo.")


def _submit(store: JobStore, **changes: object) -> str:
    return store.submit(TENANT, "convert", a_request(**changes))[0].id


def test_another_tenants_job_does_not_exist(store: JobStore) -> None:
    keys.create_key(store, "other", "a key")
    job_id = _submit(store)

    for ask in (store.get, store.cancel, store.retry, store.get_diagnostics, store.list_events):
        with pytest.raises(NotFound):
            ask("other", job_id)
    assert store.list("other").jobs == ()


@pytest.mark.parametrize("job_id", ["", "nope", "x" * 500, "nul\0", "0" * 32, "../../etc/passwd"])
def test_an_id_that_is_none_finds_nothing(store: JobStore, job_id: str) -> None:
    with pytest.raises(NotFound):
        store.get(TENANT, job_id)


def test_pages_walk_through_all_jobs_newest_first_without_gaps(store: JobStore) -> None:
    ids = [_submit(store) for _ in range(7)]

    seen: list[str] = []
    cursor = None
    while True:
        page = store.list(TENANT, limit=3, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        _submit(store)  # arrivals do not shift the pages that follow
        if cursor is None:
            break

    assert seen == ids[::-1]


def test_pages_filter_by_state_adapter_and_target(store: JobStore) -> None:
    plain = _submit(store)
    other = _submit(store, adapter={"repo_id": "acme/other"}, target={"repo_id": "acme/base-3"})
    store.cancel(TENANT, plain)

    def listed(**filters: object) -> list[str]:
        return [job.id for job in store.list(TENANT, **filters).jobs]  # type: ignore[arg-type]

    assert listed(state=JobState.CANCELLED) == [plain]
    assert listed(adapter="acme/other") == [other]
    assert listed(target="acme/base-2") == [plain]
    assert listed(adapter="acme/other", target="acme/base-2") == []


@pytest.mark.parametrize("cursor", ["", "!", "AAAA", "x" * 64, "é"])
def test_a_foreign_cursor_is_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(RequestInvalid):
        store.list(TENANT, cursor=cursor)


def test_a_job_that_nobody_runs_is_cancelled_at_once(store: JobStore) -> None:
    job_id = _submit(store)

    job = store.cancel(TENANT, job_id)

    assert job.state is JobState.CANCELLED
    assert job.error is not None
    assert job.error["code"] == "cancelled"
    assert store.claim(job_id, "worker", 60) is None
    assert store.cancel(TENANT, job_id) == job


def test_a_running_job_hears_of_its_cancellation_with_the_heartbeat(store: JobStore) -> None:
    job_id = _submit(store)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    assert not store.heartbeat(claim, 60)

    job = store.cancel(TENANT, job_id)

    assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
    assert store.heartbeat(claim, 60)
    store.mark_cancelled(claim)
    assert store.get(TENANT, job_id).state is JobState.CANCELLED


def test_a_job_that_is_being_published_or_has_ended_cannot_be_cancelled(store: JobStore) -> None:
    job_id = _submit(store)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    store.mark_publishing(claim)
    with pytest.raises(StateConflict):
        store.cancel(TENANT, job_id)
    store.succeed(claim, {"ok": True})
    with pytest.raises(StateConflict):
        store.cancel(TENANT, job_id)


def _lost_while_publishing(store: JobStore, clock: HandClock) -> str:
    """A job that is queued again because its worker died between `publishing` and `succeed`."""
    job_id = _submit(store)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    store.mark_publishing(claim)
    clock.move(61)
    store.reap()
    assert store.get(TENANT, job_id).state is JobState.QUEUED
    return job_id


def test_a_job_that_may_have_been_published_is_not_called_cancelled_before_a_worker_has_looked(
    store: JobStore, clock: HandClock
) -> None:
    job_id = _lost_while_publishing(store, clock)

    job = store.cancel(TENANT, job_id)

    assert (job.state, job.cancel_requested) == (JobState.QUEUED, True)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    assert store.heartbeat(claim, 60)
    clock.move(61)
    assert store.reap().cancelled == 0
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    assert store.fail(claim, ERROR, None) is JobState.FAILED


def test_a_worker_that_found_no_commit_cancels_a_job_that_may_have_been_published(
    store: JobStore, clock: HandClock
) -> None:
    job_id = _lost_while_publishing(store, clock)
    store.cancel(TENANT, job_id)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None

    store.mark_cancelled(claim)

    assert store.get(TENANT, job_id).state is JobState.CANCELLED


def test_a_retried_job_starts_afresh_with_a_new_budget_and_a_new_bell(store: JobStore) -> None:
    job_id = _submit(store)
    claim = store.claim(job_id, "worker", 60)
    assert claim is not None
    store.report_progress(claim, Phase.READING, 3, 7)
    store.save_diagnostics(claim, {"old": True}, [{"site": "0.q_proj"}], "incompatible")
    store.reject(claim, ERROR)
    store.publish(lambda _: None)

    job = store.retry(TENANT, job_id)

    assert (job.state, job.error, job.verdict, job.progress_done) == (JobState.QUEUED, None, None, None)
    assert store.get_diagnostics(TENANT, job_id).sites == ()
    assert job.attempt_limit - job.attempt == store.max_attempts
    rung: list[str] = []
    store.publish(rung.append)
    assert rung == [job_id]


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_job_that_has_not_failed_cannot_be_retried(store: JobStore, state: str) -> None:
    job_id = _submit(store)
    if state != "queued":
        claim = store.claim(job_id, "worker", 60)
        assert claim is not None
        if state == "succeeded":
            store.succeed(claim, {})

    with pytest.raises(StateConflict):
        store.retry(TENANT, job_id)


def test_history_resumes_after_any_event(store: JobStore, clock: HandClock) -> None:
    job_id = _submit(store)
    clock.move(1)
    store.cancel(TENANT, job_id)
    clock.move(1)
    store.retry(TENANT, job_id)

    events = store.list_events(TENANT, job_id)

    assert [event.data["state"] for event in events] == ["queued", "cancelled", "queued"]
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert store.list_events(TENANT, job_id, events[0].id) == events[1:]
    assert [event.at for event in events] == sorted(event.at for event in events)
