"""Campaigns in both databases: what they show, and pause, resume, cancel, retry, approve."""

from __future__ import annotations

from typing import Any

import pytest

from rebase.errors import NotFound, PublicError, RequestInvalid, StateConflict
from rebase.schemas.states import CampaignDbState, CampaignState, JobState
from rebase.store.audit import AuditContext, list_audit_events
from rebase.store.records import Claim, Decision, SubscriptionRecord
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from support.campaigns import FACTS, SHA, a_subscription, add_tenant, opened, release_claims, seen
from support.databases import HandClock, a_request

FAILURE = PublicError(code="internal", message="It broke.")


def begun(store: Store, **changes: Any) -> str:
    """An open campaign with two adapters."""
    return opened(store, store.subscriptions.create(DEFAULT_TENANT, a_subscription(**changes))[0])


def jobs(store: Store, campaign_id: str) -> list[str]:
    return [entry.job.id for entry in store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)]


def states(store: Store, campaign_id: str) -> list[str]:
    return [entry.job.state.value for entry in store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)]


def claim(store: Store, job_id: str) -> Claim:
    found = store.queue.claim(job_id, "worker", 60)
    assert found is not None
    return found


def end(store: Store, job_id: str, verdict: str = "compatible", *, how: str = "succeed") -> None:
    held = claim(store, job_id)
    store.queue.save_diagnostics(held, {}, [], verdict)
    if how == "fail":
        store.queue.fail(held, FAILURE)
    elif how == "reject":
        store.queue.reject(held, FAILURE)
    else:
        store.queue.succeed(held, {"verdict": verdict})


def ring_all(store: Store) -> list[str]:
    rung: list[str] = []
    while store.outbox.publish(rung.append):
        pass
    return rung


def test_a_campaign_counts_its_jobs_by_state_and_verdict(store: Store) -> None:
    campaign_id = begun(store)
    first, second = jobs(store, campaign_id)
    end(store, first)
    campaign = store.campaigns.get(DEFAULT_TENANT, campaign_id)
    assert campaign.state is CampaignState.CONVERTING
    tally = campaign.tallies["convert"]
    assert (tally.done, tally.total, tally.verdicts) == (1, 2, {"compatible": 1})
    assert tally.states == {JobState.SUCCEEDED: 1, JobState.QUEUED: 1}
    end(store, second, "incompatible", how="reject")
    campaign = store.campaigns.get(DEFAULT_TENANT, campaign_id)
    assert campaign.state is CampaignState.FINISHED
    assert campaign.tallies["convert"].verdicts == {"compatible": 1, "incompatible": 1}


def test_its_jobs_are_pinned_to_the_release_and_go_where_the_decision_said(store: Store) -> None:
    campaign_id = begun(store)
    requests = [entry.job.request for entry in store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)]
    assert [request["adapter"]["repo_id"] for request in requests] == ["acme/sql-lora", "acme/chat-lora"]
    assert {request["target"]["revision"] for request in requests} == {SHA}
    assert [request["output"]["repo_id"] for request in requests] == ["acme/out-0", "acme/out-1"]


def test_campaigns_are_listed_by_state_and_subscription_and_belong_to_their_tenant(store: Store) -> None:
    campaign_id = begun(store)
    campaign = store.campaigns.get(DEFAULT_TENANT, campaign_id)
    listed = store.campaigns.list(DEFAULT_TENANT, state=CampaignState.CONVERTING)
    assert [one.id for one in listed.campaigns] == [campaign_id]
    assert store.campaigns.list(DEFAULT_TENANT, state=CampaignState.FINISHED).campaigns == ()
    found = store.campaigns.list(DEFAULT_TENANT, subscription=campaign.subscription_id)
    assert len(found.campaigns) == 1
    assert store.campaigns.list(DEFAULT_TENANT, subscription="0" * 32).campaigns == ()
    with pytest.raises(RequestInvalid):
        store.campaigns.list(DEFAULT_TENANT, cursor="no cursor")
    beta = add_tenant(store, "beta")
    assert store.campaigns.list(beta).campaigns == ()
    control = store.campaign_control
    moves = (
        store.campaigns.get, control.pause, control.resume, control.cancel, control.retry, control.approve
    )  # fmt: skip
    for move in moves:
        for tenant, wanted in ((beta, campaign_id), (DEFAULT_TENANT, "f" * 32), (DEFAULT_TENANT, "x")):
            with pytest.raises(NotFound):
                move(tenant, wanted)
    with pytest.raises(NotFound):
        store.campaigns.list_entries(beta, campaign_id)


def test_no_job_of_a_paused_campaign_is_claimed_and_those_that_run_finish(store: Store) -> None:
    campaign_id = begun(store)
    running, waiting = jobs(store, campaign_id)
    held = claim(store, running)
    assert store.campaign_control.pause(DEFAULT_TENANT, campaign_id).state is CampaignState.PAUSED
    assert store.campaign_control.pause(DEFAULT_TENANT, campaign_id).state is CampaignState.PAUSED
    assert store.queue.claim(waiting, "worker", 60) is None
    store.queue.succeed(held, {})
    assert states(store, campaign_id) == ["succeeded", "queued"]
    other, _ = store.submissions.submit(DEFAULT_TENANT, "convert", a_request())
    assert store.queue.claim(other.id, "worker", 60) is not None, "jobs outside of the campaign go on"


def test_a_failed_attempt_of_a_paused_campaign_waits_for_the_campaign(store: Store, clock: HandClock) -> None:
    campaign_id = begun(store)
    job_id, _ = jobs(store, campaign_id)
    held = claim(store, job_id)
    store.campaign_control.pause(DEFAULT_TENANT, campaign_id)
    store.queue.fail(held, FAILURE, 1.0)
    clock.move(2)
    assert store.queue.claim(job_id, "worker", 60) is None
    store.outbox.reap()
    assert store.queue.claim(job_id, "worker", 60) is None


def test_the_sweeper_does_not_ring_for_a_paused_campaign_and_resuming_rings_for_what_waits(
    store: Store, clock: HandClock
) -> None:
    campaign_id = begun(store)
    ring_all(store)
    store.campaign_control.pause(DEFAULT_TENANT, campaign_id)
    clock.move(4000)
    assert store.outbox.reap().renotified == 0
    assert store.campaign_control.resume(DEFAULT_TENANT, campaign_id).state is CampaignState.CONVERTING
    assert sorted(ring_all(store)) == sorted(jobs(store, campaign_id))
    store.campaign_control.resume(DEFAULT_TENANT, campaign_id)
    assert ring_all(store) == []
    assert store.queue.claim(jobs(store, campaign_id)[0], "worker", 60) is not None


def test_cancelling_ends_what_waits_and_asks_what_runs(store: Store) -> None:
    campaign_id = begun(store)
    running, _ = jobs(store, campaign_id)
    held = claim(store, running)
    assert store.campaign_control.cancel(DEFAULT_TENANT, campaign_id).state is CampaignState.CANCELLED
    assert states(store, campaign_id) == ["running", "cancelled"]
    assert store.queue.heartbeat(held, 60) is True
    store.queue.mark_cancelled(held)
    store.campaign_control.cancel(DEFAULT_TENANT, campaign_id)
    assert states(store, campaign_id) == ["cancelled", "cancelled"]


def test_what_is_being_published_is_left_to_end_when_its_campaign_is_cancelled(store: Store) -> None:
    campaign_id = begun(store)
    held = claim(store, jobs(store, campaign_id)[0])
    store.queue.mark_publishing(held)
    store.campaign_control.cancel(DEFAULT_TENANT, campaign_id)
    store.queue.succeed(held, {})
    assert states(store, campaign_id) == ["succeeded", "cancelled"]


def test_a_paused_campaign_can_be_cancelled_and_a_finished_one_cannot(store: Store) -> None:
    campaign_id = begun(store)
    store.campaign_control.pause(DEFAULT_TENANT, campaign_id)
    store.campaign_control.cancel(DEFAULT_TENANT, campaign_id)
    done = begun(store, bases="acme/*")
    for job_id in jobs(store, done):
        end(store, job_id)
    with pytest.raises(StateConflict, match="finished"):
        store.campaign_control.cancel(DEFAULT_TENANT, done)
    with pytest.raises(StateConflict, match="paused"):
        store.campaign_control.pause(DEFAULT_TENANT, campaign_id)
    with pytest.raises(StateConflict, match="resumed"):
        store.campaign_control.resume(DEFAULT_TENANT, campaign_id)


def test_retrying_queues_what_failed_and_leaves_what_was_rejected(store: Store) -> None:
    campaign_id = begun(store)
    first, second = jobs(store, campaign_id)
    end(store, first, how="fail")
    end(store, second, "incompatible", how="reject")
    assert store.campaign_control.retry(DEFAULT_TENANT, campaign_id).state is CampaignState.CONVERTING
    assert states(store, campaign_id) == ["queued", "rejected"]
    end(store, first)
    with pytest.raises(StateConflict, match="no failed or cancelled"):
        store.campaign_control.retry(DEFAULT_TENANT, campaign_id)


def test_a_cancelled_campaign_goes_on_when_it_is_retried(store: Store) -> None:
    campaign_id = begun(store)
    store.campaign_control.cancel(DEFAULT_TENANT, campaign_id)
    ring_all(store)
    assert store.campaign_control.retry(DEFAULT_TENANT, campaign_id).state is CampaignState.CONVERTING
    assert sorted(ring_all(store)) == sorted(jobs(store, campaign_id))


def refused_campaign(store: Store) -> tuple[SubscriptionRecord, str]:
    """A release that a guard spoke against."""
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    (held,) = release_claims(store)
    refused = Decision(CampaignDbState.REFUSED, SHA, [{"code": "licence", "message": "No."}], FACTS)
    campaign_id = store.decisions.record(held, subscription, "acme/base-2", refused).campaign_id
    store.queue.succeed(held, {})
    assert campaign_id is not None
    return subscription, campaign_id


def test_retrying_a_refused_release_looks_at_it_again(store: Store) -> None:
    subscription, campaign_id = refused_campaign(store)
    with pytest.raises(StateConflict):
        store.campaign_control.pause(DEFAULT_TENANT, campaign_id)
    store.campaign_control.retry(DEFAULT_TENANT, campaign_id)
    (again,) = release_claims(store)
    opened_now = Decision(CampaignDbState.OPEN, SHA, facts=FACTS, outputs={0: "acme/x"})
    assert store.decisions.record(again, subscription, "acme/base-2", opened_now).campaign_id == campaign_id
    store.subscriptions.delete(DEFAULT_TENANT, subscription.id)
    assert store.campaigns.get(DEFAULT_TENANT, campaign_id).state is CampaignState.CONVERTING


def test_retrying_a_refused_release_over_and_over_queues_one_look_and_each_time_is_in_the_audit_log(
    store: Store,
) -> None:
    _, campaign_id = refused_campaign(store)

    for _ in range(3):
        store.campaign_control.retry(DEFAULT_TENANT, campaign_id, AuditContext(DEFAULT_TENANT))

    assert len(release_claims(store)) == 1
    assert [line.action for line in list_audit_events(store.db, DEFAULT_TENANT)] == ["campaign.retried"] * 3
    store.campaign_control.retry(DEFAULT_TENANT, campaign_id)
    assert len(release_claims(store)) == 1, "one that runs may have looked already"


def test_a_dry_run_checks_waits_for_approval_and_converts_what_passed(store: Store) -> None:
    campaign_id = begun(store, dry_run=True)
    first, second = jobs(store, campaign_id)
    entries = store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)
    assert [(entry.stage, entry.job.kind) for entry in entries] == [("precheck", "precheck")] * 2
    assert store.campaigns.get(DEFAULT_TENANT, campaign_id).state is CampaignState.CHECKING
    end(store, first)
    with pytest.raises(StateConflict, match="'checking'"):
        store.campaign_control.approve(DEFAULT_TENANT, campaign_id)
    end(store, second, "incompatible")
    assert store.campaigns.get(DEFAULT_TENANT, campaign_id).state is CampaignState.AWAITING_APPROVAL

    approved = store.campaign_control.approve(DEFAULT_TENANT, campaign_id)
    store.campaign_control.approve(DEFAULT_TENANT, campaign_id)

    assert approved.state is CampaignState.CONVERTING
    entries = store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)
    converts = [entry for entry in entries if entry.stage == "convert"]
    assert [entry.job.request["output"]["repo_id"] for entry in converts] == ["acme/out-0"]
    end(store, converts[0].job.id)
    assert store.campaigns.get(DEFAULT_TENANT, campaign_id).state is CampaignState.FINISHED


def test_what_passes_its_pre_check_after_the_approval_is_converted_by_approving_again(
    store: Store,
) -> None:
    campaign_id = begun(store, dry_run=True)
    first, second = jobs(store, campaign_id)
    end(store, first)
    end(store, second, how="fail")
    store.campaign_control.approve(DEFAULT_TENANT, campaign_id)
    (converted,) = set(jobs(store, campaign_id)) - {first, second}
    end(store, converted)
    store.campaign_control.retry(DEFAULT_TENANT, campaign_id)
    assert store.campaign_control.approve(DEFAULT_TENANT, campaign_id).tallies["convert"].total == 1, (
        "not yet"
    )
    end(store, second)

    again = store.campaign_control.approve(DEFAULT_TENANT, campaign_id)

    assert again.state is CampaignState.CONVERTING
    assert (again.tallies["convert"].total, again.tallies["convert"].done) == (2, 1)
    store.campaign_control.cancel(DEFAULT_TENANT, campaign_id)
    assert store.campaign_control.approve(DEFAULT_TENANT, campaign_id).state is CampaignState.CANCELLED


def test_a_dry_run_of_which_nothing_passed_is_finished_by_approving_it(store: Store) -> None:
    campaign_id = begun(store, dry_run=True)
    for job_id in jobs(store, campaign_id):
        end(store, job_id, "incompatible")
    assert store.campaign_control.approve(DEFAULT_TENANT, campaign_id).state is CampaignState.FINISHED


def test_campaigns_are_counted_by_state_over_all_tenants(store: Store) -> None:
    begun(store)
    store.campaign_control.pause(DEFAULT_TENANT, begun(store, bases="acme/*"))
    counts = store.campaigns.count()
    assert {state: count for state, count in counts.items() if count} == {
        CampaignState.CONVERTING: 1,
        CampaignState.PAUSED: 1,
    }
    assert set(counts) == set(CampaignState)
