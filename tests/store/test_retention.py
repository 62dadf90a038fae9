"""What goes when its time is over, in bounded sweeps, and how a tenant's data is deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, insert, select, update

from rebase.errors import Cancelled, NotFound, PublicError, QuotaExceeded, StateConflict
from rebase.schemas.states import CampaignDbState
from rebase.store import api_keys as keys
from rebase.store import retention
from rebase.store.audit import AuditContext, list_audit_events, write_audit_event
from rebase.store.hub_tokens import JobTokenEncryptor, put_tenant_token
from rebase.store.job_events import SubmissionContext
from rebase.store.limits import Limits, set_limits
from rebase.store.quota import delete_jobs
from rebase.store.records import Decision
from rebase.store.retention import Retention, RetentionPeriods
from rebase.store.scheduler import Scheduler
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.store import Store
from rebase.store.tables.base import Base
from rebase.store.tables.callbacks import CallbackDelivery, CallbackStop
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Release
from rebase.store.tables.tenants import AuditEvent
from rebase.store.tenants import (
    cancel_all_jobs,
    count_open_jobs,
    delete_tenant,
    erase_tenant_data,
    list_tenants,
)
from rebase.store.vault import Vault, generate_key
from support.campaigns import SHA, a_subscription, bare_campaign, opened, release_claims, seen
from support.databases import a_request
from support.pools import a_pool

VAULT = Vault([generate_key()])
DONE = PublicError(code="x", message="x")
BY_COMMAND = AuditContext("acme")


@pytest.fixture
def now_store(store: Store) -> Store:
    """The store with a real clock, as ids are made of real time."""
    store.clock = lambda: datetime.now(UTC)
    return store


def _later(store: Store, days: float) -> None:
    store.clock = lambda: datetime.now(UTC) + timedelta(days=days)


def _ended_job(store: Store, tenant: str = "default") -> str:
    job, _ = store.submissions.submit(tenant, "convert", a_request(), f"key-{datetime.now(UTC).timestamp()}")
    claim = store.queue.claim(job.id, "w", 60)
    assert claim is not None
    store.queue.save_diagnostics(claim, {"a": 1}, [{"site": 0}], "compatible")
    store.queue.fail(claim, DONE)
    return job.id


def _count(store: Store, tenant: str) -> dict[str, int]:
    """Rows of a tenant per table that names tenants."""
    with store.db.read() as connection:
        return {
            table.name: connection.scalar(
                select(func.count()).select_from(table).where(table.c.tenant_id == tenant)
            )
            or 0
            for table in Base.metadata.sorted_tables
            if "tenant_id" in table.c
        }


def test_without_a_setting_everything_is_kept(now_store: Store) -> None:
    job_id = _ended_job(now_store)
    _later(now_store, 10_000)

    assert Retention(now_store, RetentionPeriods()).purge() == retention.PurgeResult()
    assert now_store.jobs.get("default", job_id).is_done


def test_ended_jobs_go_with_all_that_hangs_on_them_and_open_ones_stay(now_store: Store) -> None:
    ended = _ended_job(now_store)
    waiting, _ = now_store.submissions.submit("default", "convert", a_request())
    sweeper = Retention(now_store, RetentionPeriods(jobs=30))
    assert sweeper.purge().jobs == 0

    _later(now_store, 31)
    assert sweeper.purge().jobs == 1

    with pytest.raises(NotFound):
        now_store.jobs.get("default", ended)
    assert now_store.jobs.get("default", waiting.id).state == "queued"
    assert _count(now_store, "default")["idempotency_keys"] == 0


def test_jobs_that_are_kept_for_less_than_a_day_still_count_for_a_day(now_store: Store) -> None:
    one_a_day = SubmissionContext(Limits(jobs_per_day=1))
    _ended_job(now_store)
    sweeper = Retention(now_store, RetentionPeriods(jobs=0.25))
    _later(now_store, 0.5)
    assert sweeper.purge().jobs == 1

    with pytest.raises(QuotaExceeded) as refused:
        now_store.submissions.submit("default", "convert", a_request(), context=one_a_day)
    assert refused.value.retry_after_s <= 12 * 3600
    assert sweeper.purge().counted_jobs == 0

    _later(now_store, 1.01)
    assert Retention(now_store, RetentionPeriods()).purge().counted_jobs == 1
    now_store.submissions.submit("default", "convert", a_request(), context=one_a_day)
    assert _count(now_store, "default")["spent_jobs"] == 0


def test_jobs_that_are_deleted_by_several_at_once_count_once(now_store: Store) -> None:
    ids = [_ended_job(now_store) for _ in range(20)]
    barrier = threading.Barrier(4)

    def forget(_: int) -> None:
        with now_store.db.write() as connection:
            if connection.dialect.name == "postgresql":  # SQLite has one writer
                barrier.wait()
            delete_jobs(connection, ids, now_store.clock())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(forget, range(4)))

    assert _count(now_store, "default")["spent_jobs"] == 20


def test_a_pool_that_still_stands_keeps_its_job(now_store: Store) -> None:
    pool, _ = now_store.pools.submit("default", a_pool())
    claim = now_store.queue.claim(pool.id, "w", 60)
    assert claim is not None
    now_store.queue.succeed(claim, {"pool": a_pool().model_dump(mode="json")})
    _later(now_store, 31)
    sweeper = Retention(now_store, RetentionPeriods(jobs=30))

    assert sweeper.purge().jobs == 0
    now_store.pools.delete("default", pool.id)
    assert sweeper.purge().jobs == 1


def test_a_callback_that_is_still_to_be_delivered_keeps_its_job(now_store: Store) -> None:
    told, _ = now_store.submissions.submit(
        "default", "convert", a_request(callback={"url": "https://tools.example/hook"})
    )
    now_store.jobs.cancel("default", told.id)
    _later(now_store, 2)
    sweeper = Retention(now_store, RetentionPeriods(jobs=1))

    assert sweeper.purge().jobs == 0
    with now_store.db.write() as connection:
        connection.execute(update(CallbackDelivery).values(state="failed"))
    assert sweeper.purge().jobs == 1


def _campaign_job(store: Store, campaign: str) -> None:
    """End the first of a campaign's jobs that waits."""
    waiting = [
        entry.job.id for entry in store.campaigns.list_entries("default", campaign) if not entry.job.is_done
    ]
    claim = store.queue.claim(waiting[0], "w", 60)
    assert claim is not None
    store.queue.save_diagnostics(claim, {}, [], "compatible")
    store.queue.succeed(claim, {"verdict": "compatible"})


def test_the_jobs_of_a_campaign_stay_until_the_last_one_is_old(now_store: Store) -> None:
    campaign = opened(now_store, now_store.subscriptions.create("default", a_subscription())[0])
    sweeper = Retention(now_store, RetentionPeriods(jobs=30))
    _campaign_job(now_store, campaign)
    _later(now_store, 31)
    sweeper.purge()
    assert len(now_store.campaigns.list_entries("default", campaign)) == 2, "one of them still waits"
    _campaign_job(now_store, campaign)
    _later(now_store, 40)
    sweeper.purge()
    assert len(now_store.campaigns.list_entries("default", campaign)) == 2, "one of them ended nine days ago"

    _later(now_store, 62)
    sweeper.purge()

    assert now_store.campaigns.list_entries("default", campaign) == []


def test_a_dry_run_can_still_be_approved_and_a_paused_campaign_go_on_after_long(now_store: Store) -> None:
    subscription, _ = now_store.subscriptions.create("default", a_subscription(dry_run=True))
    campaign = opened(now_store, subscription)
    _campaign_job(now_store, campaign)
    _campaign_job(now_store, campaign)
    sweeper = Retention(now_store, RetentionPeriods(jobs=30))
    _later(now_store, 31)
    sweeper.purge()

    assert now_store.campaign_control.approve("default", campaign).tallies["convert"].total == 2
    _campaign_job(now_store, campaign)
    _campaign_job(now_store, campaign)
    now_store.campaign_control.pause("default", campaign)
    _later(now_store, 62)
    sweeper.purge()
    assert now_store.campaign_control.resume("default", campaign).tallies["convert"].done == 2


def test_an_old_history_shrinks_to_its_state_moves(now_store: Store) -> None:
    job_id = _ended_job(now_store)
    _later(now_store, 8)
    Retention(now_store, RetentionPeriods(events=7)).purge()

    events = now_store.jobs.list_events("default", job_id)
    assert [event.type for event in events] == ["state"] * 3
    assert now_store.jobs.get_diagnostics("default", job_id).sites


def test_a_sweep_is_bounded_and_the_next_one_goes_on(
    now_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        _ended_job(now_store)
        with now_store.db.write() as connection:
            write_audit_event(connection, now_store.clock(), AuditContext("default"), "noun.verb", "x")
    _later(now_store, 31)
    sweeper = Retention(now_store, RetentionPeriods(jobs=30, events=20, audit=30))
    swept = [sweeper.purge() for _ in range(4)]

    assert [one.jobs for one in swept] == [2, 2, 1, 0]
    assert [one.audit for one in swept] == [2, 2, 1, 0]
    assert [one.has_more for one in swept] == [True, True, False, False]


def test_the_keeper_sweeps(now_store: Store) -> None:
    _ended_job(now_store)
    _later(now_store, 31)
    keeper = Scheduler(
        now_store, lambda _: None, 0.05, retention=Retention(now_store, RetentionPeriods(jobs=30))
    )
    keeper.start()
    gone = threading.Event()
    for _ in range(100):
        if now_store.jobs.list("default").jobs:
            gone.wait(0.05)
    keeper.stop()

    assert now_store.jobs.list("default").jobs == ()


def _furnished(store: Store, tenant: str) -> None:
    """A tenant with a row in every table that there is."""
    keys.issue_key(store, tenant, "key", audit=AuditContext(tenant))
    gone = _ended_job(store, tenant)
    with store.db.write() as connection:
        delete_jobs(connection, [gone], store.clock())
    _ended_job(store, tenant)
    store.submissions.submit(
        tenant,
        "convert",
        a_request(),
        context=SubmissionContext(encrypt_token=JobTokenEncryptor(VAULT, "hf_x" * 9).encrypt),
    )
    store.pools.submit(tenant, a_pool())
    put_tenant_token(store, VAULT, tenant, "hf_y" * 9, AuditContext(tenant))
    with store.db.write() as connection:
        set_limits(connection, tenant, {"max_running": 1}, store.clock())
    SigningSecretRepository(store.db, store.clock).rotate(VAULT, tenant, 0)
    told, _ = store.submissions.submit(
        tenant, "convert", a_request(callback={"url": "https://tools.example/hook"})
    )
    store.jobs.cancel(tenant, told.id)
    subscription, _ = store.subscriptions.create(tenant, a_subscription())
    bare_campaign(store, subscription)
    stop = insert(CallbackStop).values(tenant_id=tenant, url_sha256="0" * 64, at=store.clock())
    with store.db.write() as connection:
        connection.execute(stop)


def test_a_deleted_tenant_leaves_one_line_and_nothing_else(now_store: Store) -> None:
    for tenant in ("acme", "rival"):
        _furnished(now_store, tenant)
    before = _count(now_store, "rival")
    assert all(_count(now_store, "acme").values())

    assert cancel_all_jobs(now_store, "acme") == 0
    delete_tenant(now_store, "acme", BY_COMMAND)

    assert set(_count(now_store, "acme").values()) == {0}
    assert list_tenants(now_store) == ["default", "rival"]
    assert _count(now_store, "rival") == before
    with now_store.db.read() as connection:
        hanging = ("outbox", "job_events", "site_diagnostics", "job_tokens")
        left = {
            name: connection.scalar(
                select(func.count())
                .select_from(Base.metadata.tables[name])
                .where(Base.metadata.tables[name].c.job_id.not_in(select(Job.id)))
            )
            for name in hanging
        }
    assert left == dict.fromkeys(hanging, 0)
    (line,) = list_audit_events(now_store.db, "default")
    assert (line.action, line.object) == ("tenant.deleted", "acme")


def test_deleting_the_data_alone_keeps_keys_limits_and_the_log(now_store: Store) -> None:
    _furnished(now_store, "acme")
    cancel_all_jobs(now_store, "acme")

    erase_tenant_data(now_store, "acme", BY_COMMAND)

    left = {name for name, count in _count(now_store, "acme").items() if count}
    assert left == {"api_keys", "tenant_limits", "spent_jobs", "audit_log"}
    assert list_audit_events(now_store.db, "acme")[0].action == "tenant.data_deleted"


def test_no_campaign_begins_for_a_tenant_whose_jobs_were_stopped(now_store: Store) -> None:
    subscription, _ = now_store.subscriptions.create("default", a_subscription())
    assert now_store.releases.record(seen()) == "recorded"
    (claim,) = release_claims(now_store)

    assert cancel_all_jobs(now_store, "default") == 1

    with pytest.raises(Cancelled):
        now_store.decisions.record(
            claim, subscription, "acme/base-2", Decision(CampaignDbState.OPEN, SHA, outputs={0: "acme/x"})
        )
    now_store.queue.mark_cancelled(claim)
    assert now_store.jobs.list("default").jobs == ()
    assert now_store.releases.record(seen("b" * 40)) == "no_subscription"
    assert count_open_jobs(now_store, "default") == 0


@pytest.mark.parametrize("delete", [erase_tenant_data, delete_tenant])
def test_what_was_seen_for_a_deleted_tenant_alone_is_forgotten(
    now_store: Store, delete: Callable[[Store, str, AuditContext], None]
) -> None:
    for tenant in ("acme", "rival"):
        _furnished(now_store, tenant)
    assert (
        now_store.releases.record(seen("a" * 40, "acme/base-private", webhook_id=None), "acme") == "recorded"
    )
    assert now_store.releases.record(seen("b" * 40, "acme/base-public")) == "recorded"
    cancel_all_jobs(now_store, "acme")

    delete(now_store, "acme", BY_COMMAND)

    with now_store.db.read() as connection:
        assert connection.scalars(select(Release.repo_id)).all() == ["acme/base-public"]


def test_a_running_job_is_asked_to_stop_and_nothing_is_deleted_under_it(now_store: Store) -> None:
    keys.create_key(now_store, "acme", "key")
    job, _ = now_store.submissions.submit("acme", "convert", a_request())
    claim = now_store.queue.claim(job.id, "w", 60)
    assert claim is not None

    assert cancel_all_jobs(now_store, "acme") == 1
    with pytest.raises(StateConflict, match="1 job"):
        delete_tenant(now_store, "acme", BY_COMMAND)
    assert now_store.queue.heartbeat(claim, 60), "its worker hears of it"

    now_store.queue.mark_cancelled(claim)
    assert count_open_jobs(now_store, "acme") == 0
    delete_tenant(now_store, "acme", BY_COMMAND)


def test_the_deployments_own_tenant_cannot_be_deleted(now_store: Store) -> None:
    with pytest.raises(StateConflict):
        delete_tenant(now_store, "default", AuditContext("default"))
    with pytest.raises(NotFound):
        delete_tenant(now_store, "nobody", AuditContext("nobody"))


def test_old_lines_of_the_log_go_and_newer_ones_stay(now_store: Store) -> None:
    with now_store.db.write() as connection:
        old = now_store.clock() - timedelta(days=40)
        write_audit_event(connection, old, AuditContext("acme"), "noun.verb", "old")
        write_audit_event(connection, now_store.clock(), AuditContext("acme"), "noun.verb", "new")
    Retention(now_store, RetentionPeriods(audit=30)).purge()

    with now_store.db.read() as connection:
        assert connection.scalars(select(AuditEvent.object)).all() == ["new"]


def test_a_job_that_ended_just_now_is_not_old_because_it_was_made_long_ago(now_store: Store) -> None:
    job_id = _ended_job(now_store)
    _later(now_store, 31)
    with now_store.db.write() as connection:
        connection.execute(update(Job).where(Job.id == job_id).values(finished_at=now_store.clock()))

    assert Retention(now_store, RetentionPeriods(jobs=30)).purge().jobs == 0


def test_releases_and_callbacks_go_with_the_histories(now_store: Store) -> None:
    now_store.subscriptions.create("default", a_subscription())
    assert now_store.releases.record(seen()) == "recorded"
    told, _ = now_store.submissions.submit(
        "default", "convert", a_request(callback={"url": "https://tools.example/hook"})
    )
    now_store.jobs.cancel("default", told.id)
    with now_store.db.write() as connection:
        connection.execute(update(CallbackDelivery).values(state="delivered"))
    sweeper = Retention(now_store, RetentionPeriods(events=30))

    _later(now_store, 29)
    assert (sweeper.purge().releases, sweeper.purge().deliveries) == (0, 0)
    _later(now_store, 31)
    purged = sweeper.purge()
    assert (purged.releases, purged.deliveries) == (1, 1)
    with now_store.db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(Release)) == 0
        assert connection.scalar(select(func.count()).select_from(CallbackDelivery)) == 0
