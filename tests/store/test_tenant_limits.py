"""How many jobs a tenant may submit: counted in the transaction that records them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rebase.errors import NotFound, QuotaExceeded, RequestInvalid
from rebase.store import api_keys as keys
from rebase.store.audit import AuditContext, list_audit_events
from rebase.store.job_events import SubmissionContext
from rebase.store.job_submission import Submission
from rebase.store.limits import NO_LIMITS, Limits, load_limits, set_limits
from rebase.store.records import JobRecord
from rebase.store.store import Store
from rebase.store.tenants import cancel_all_jobs, erase_tenant_data
from support.campaigns import a_subscription
from support.databases import HandClock, a_request
from support.pools import a_pool

THREE_OPEN = SubmissionContext(Limits(max_queued=3))
TWO_A_DAY = SubmissionContext(Limits(jobs_per_day=2))


def _submit(store: Store, extras: SubmissionContext, tenant: str = "default") -> str:
    return store.submissions.submit(tenant, "convert", a_request(), context=extras)[0].id


def test_open_jobs_are_bounded_and_an_ended_one_makes_room(store: Store) -> None:
    ids = [_submit(store, THREE_OPEN) for _ in range(3)]
    with pytest.raises(QuotaExceeded, match="3 unfinished jobs"):
        _submit(store, THREE_OPEN)
    store.jobs.cancel("default", ids[0])

    _submit(store, THREE_OPEN)
    with pytest.raises(QuotaExceeded):
        store.jobs.retry("default", ids[0], context=THREE_OPEN)


def test_jobs_a_day_are_bounded_and_the_refusal_says_when_there_is_room_again(
    store: Store, clock: HandClock
) -> None:
    _submit(store, TWO_A_DAY)
    clock.move(3600)
    store.pools.submit("default", a_pool(), context=TWO_A_DAY)
    _one_fits_when_the_first_is_a_day_old(store, clock)


def _one_fits_when_the_first_is_a_day_old(store: Store, clock: HandClock) -> None:
    """Two were submitted, an hour apart."""
    with pytest.raises(QuotaExceeded, match="24 hours") as refused:
        _submit(store, TWO_A_DAY)
    assert refused.value.retry_after_s == 23 * 3600

    clock.move(refused.value.retry_after_s)
    _submit(store, TWO_A_DAY)
    with pytest.raises(QuotaExceeded):
        _submit(store, TWO_A_DAY)


def test_jobs_of_the_day_count_though_the_tenant_deletes_its_data(store: Store, clock: HandClock) -> None:
    store.subscriptions.create(
        "default", a_subscription(since="2025-12-01T00:00:00Z")
    )  # a look, which is no job of it
    _submit(store, TWO_A_DAY)
    clock.move(3600)
    for _ in range(2):
        cancel_all_jobs(store, "default")
        erase_tenant_data(store, "default", AuditContext("default"))
    assert store.jobs.list("default").jobs == ()

    _submit(store, TWO_A_DAY)
    _one_fits_when_the_first_is_a_day_old(store, clock)


def test_an_idempotency_key_that_was_used_is_no_new_job_and_costs_no_quota(store: Store) -> None:
    once = SubmissionContext(Limits(jobs_per_day=1))
    first, _ = store.submissions.submit("default", "convert", a_request(), "key", once)

    again, created = store.submissions.submit("default", "convert", a_request(), "key", once)

    assert (again.id, created) == (first.id, False)


def test_in_one_batch_a_tenant_without_room_is_refused_and_the_others_are_not(store: Store) -> None:
    keys.create_key(store, "acme", "key")
    orders = [
        *(Submission("acme", "convert", a_request(), TWO_A_DAY) for _ in range(3)),
        *(Submission("default", "convert", a_request()) for _ in range(2)),
    ]

    answers = store.submissions.submit_batch(orders)

    assert [type(answer) for answer in answers] == [
        JobRecord,
        JobRecord,
        QuotaExceeded,
        JobRecord,
        JobRecord,
    ]
    assert len(store.jobs.list("acme").jobs) == 2
    assert len(store.jobs.list("default").jobs) == 2


def test_submissions_that_meet_do_not_get_past_the_bound_together(store: Store) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> bool:
        barrier.wait()
        try:
            _submit(store, THREE_OPEN)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(8))) == 3


def test_a_named_caller_leaves_a_line_for_each_job_and_an_unnamed_one_none(store: Store) -> None:
    trail = AuditContext("default", "0" * 32, "request-1", "192.0.2.0/24")
    named, unnamed = store.submissions.submit_batch(
        [
            Submission("default", "convert", a_request(), SubmissionContext(audit=trail)),
            Submission("default", "precheck", a_request()),
        ]
    )
    assert isinstance(named, JobRecord)
    assert isinstance(unnamed, JobRecord)
    store.jobs.cancel("default", named.id, audit=trail)

    lines = list_audit_events(store.db, "default")

    assert [(line.action, line.object) for line in lines] == [
        ("job.cancelled", named.id),
        ("job.submitted", named.id),
    ]
    assert (lines[0].key_id, lines[0].request_id, lines[0].client) == ("0" * 32, "request-1", "192.0.2.0/24")


def test_limits_are_set_one_by_one_and_go_back_to_the_settings(store: Store) -> None:
    defaults = Limits(max_running=4)
    with store.db.write() as connection:
        set_limits(connection, "default", {"jobs_per_day": 7}, store.clock())
        set_limits(connection, "default", {"max_running": -1}, store.clock())
        assert load_limits(connection, "default", defaults) == Limits(jobs_per_day=7)
        set_limits(connection, "default", {"jobs_per_day": None, "max_running": None}, store.clock())
        assert load_limits(connection, "default", defaults) == defaults
        assert load_limits(connection, "default", NO_LIMITS) == NO_LIMITS
        with pytest.raises(RequestInvalid, match="from 1"):
            set_limits(connection, "default", {"max_running": 0}, store.clock())
        with pytest.raises(NotFound):
            set_limits(connection, "nobody", {"max_running": 1}, store.clock())
