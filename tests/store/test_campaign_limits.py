"""Campaigns keep to what their tenant may use, and stand in nobody's way."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select

from rebase.errors import QuotaExceeded
from rebase.schemas.states import CampaignDbState, CampaignState
from rebase.store.limits import set_limits
from rebase.store.records import Decision
from rebase.store.store import Store
from rebase.store.tables.jobs import Outbox
from rebase.store.tables.releases import Campaign
from support.campaigns import FACTS, SHA, a_subscription, opened, release_claims, seen
from support.databases import a_request

TENANT = "default"


def limit(store: Store, **numbers: int) -> None:
    with store.db.write() as connection:
        set_limits(connection, TENANT, numbers, store.clock())


def left_out(store: Store, campaign_id: str) -> list[tuple[int, str]]:
    with store.db.read() as connection:
        decision = connection.scalar(select(Campaign.decision).where(Campaign.id == campaign_id))
    return [(one["position"], one["code"]) for one in decision["left_out"]] if decision else []


def jobs_of(store: Store, campaign_id: str) -> list[str]:
    entries = store.campaigns.list_entries(TENANT, campaign_id)
    return [entry.job.id for entry in entries]


def test_a_campaign_begins_with_as_many_adapters_as_the_tenant_may_queue(store: Store) -> None:
    limit(store, max_queued=2)
    store.submissions.submit(TENANT, "convert", a_request())
    subscription, _ = store.subscriptions.create(TENANT, a_subscription())

    campaign = opened(store, subscription)

    assert len(jobs_of(store, campaign)) == 1
    assert left_out(store, campaign) == [(1, "quota_exceeded")]


def test_a_release_that_comes_while_there_is_no_room_at_all_is_refused_and_can_be_retried(
    store: Store,
) -> None:
    limit(store, max_queued=1)
    job, _ = store.submissions.submit(TENANT, "convert", a_request())
    subscription, _ = store.subscriptions.create(TENANT, a_subscription())

    campaign = opened(store, subscription)

    refused = store.campaigns.get(TENANT, campaign)
    assert refused.state is CampaignState.REFUSED
    assert [reason["code"] for reason in refused.decision["reasons"]] == ["quota_exceeded"]
    store.jobs.cancel(TENANT, job.id)
    store.campaign_control.retry(TENANT, campaign)
    (claim,) = release_claims(store)
    outputs = {n: f"acme/out-{n}" for n in range(2)}
    store.decisions.record(
        claim, subscription, "acme/base-2", Decision(CampaignDbState.OPEN, SHA, facts=FACTS, outputs=outputs)
    )
    assert len(jobs_of(store, campaign)) == 1
    assert left_out(store, campaign) == [(1, "quota_exceeded")]


def test_approving_more_than_the_tenant_may_queue_is_refused_and_can_be_done_later(store: Store) -> None:
    subscription, _ = store.subscriptions.create(TENANT, a_subscription(dry_run=True))
    campaign = opened(store, subscription)
    for job_id in jobs_of(store, campaign):
        claim = store.queue.claim(job_id, "w", 60)
        assert claim is not None
        store.queue.save_diagnostics(claim, {}, [], "compatible")
        store.queue.succeed(claim, {"verdict": "compatible"})
    limit(store, max_queued=1)

    with pytest.raises(QuotaExceeded):
        store.campaign_control.approve(TENANT, campaign)
    limit(store, max_queued=10)
    store.campaign_control.approve(TENANT, campaign)
    assert len(jobs_of(store, campaign)) == 4


def test_the_service_s_own_work_takes_no_place_of_the_tenant(store: Store) -> None:
    limit(store, max_running=1, max_queued=1)
    store.subscriptions.create(TENANT, a_subscription())
    job, _ = store.submissions.submit(TENANT, "convert", a_request())
    assert store.queue.claim(job.id, "w", 60) is not None

    assert store.releases.record(seen()) == "recorded"
    assert len(release_claims(store)) == 1


def test_the_service_s_own_work_for_a_tenant_keeps_to_the_same_limit_by_itself(store: Store) -> None:
    limit(store, max_running=1)
    store.subscriptions.create(TENANT, a_subscription())
    for name in ("acme/base-2", "acme/base-3", "acme/base-4"):
        assert store.releases.record(seen(repo_id=name, hub_repo_id=name)) == "recorded"

    (first,) = release_claims(store)
    while store.outbox.publish(lambda _: None):
        pass
    store.queue.succeed(first, {"outcome": "unreadable"})

    rung: list[str] = []
    store.outbox.publish(rung.append)
    assert len(rung) == 1, "the next one need not wait for the sweeper"
    (second,) = release_claims(store)
    assert second.job_id in rung
    job, _ = store.submissions.submit(TENANT, "convert", a_request())
    assert store.queue.claim(job.id, "w", 60) is not None


def test_a_paused_campaign_does_not_keep_its_tenants_other_jobs_from_being_rung(store: Store) -> None:
    limit(store, max_running=1)
    running, _ = store.submissions.submit(TENANT, "convert", a_request())
    claim = store.queue.claim(running.id, "w", 60)
    assert claim is not None
    subscription, _ = store.subscriptions.create(TENANT, a_subscription())
    campaign = opened(store, subscription)
    store.campaign_control.pause(TENANT, campaign)
    waiting, _ = store.submissions.submit(TENANT, "convert", a_request())
    with store.db.write() as connection:
        connection.execute(delete(Outbox))

    store.queue.succeed(claim, {})

    with store.db.read() as connection:
        assert connection.scalars(select(Outbox.job_id)).all() == [waiting.id]
