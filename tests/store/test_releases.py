"""Subscriptions and releases in both databases: who is told, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from rebase.errors import LeaseLost, NotFound, PublicError, QuotaExceeded
from rebase.schemas.states import CampaignDbState, CampaignState, JobState
from rebase.schemas.subscriptions import ReconcileTask, ReleaseTask
from rebase.store import subscriptions as subscriptions_side
from rebase.store.records import Decision
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import Job
from rebase.store.tables.releases import Release
from support.campaigns import FACTS, SHA, a_subscription, add_tenant, opened, release_claims, seen
from support.databases import HandClock, a_request

OTHER_SHA = "b" * 40


def jobs_of_kind(store: Store, kind: str) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(Job).where(Job.kind == kind)) or 0


def test_the_same_subscription_twice_is_one(store: Store) -> None:
    first, created = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    second, again = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    assert (created, again, second) == (True, False, first)
    assert store.subscriptions.create(add_tenant(store, "beta"), a_subscription())[1]


def test_equal_subscriptions_at_the_same_moment_make_one(store: Store) -> None:
    made: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(store.subscriptions.create(DEFAULT_TENANT, a_subscription())[1])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_subscriptions_are_bounded_and_a_deleted_one_makes_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions_side, "MAX_SUBSCRIPTIONS", 3)

    def subscribe(number: int) -> str | None:
        try:
            return store.subscriptions.create(DEFAULT_TENANT, a_subscription(name=f"n{number}"))[0].id
        except QuotaExceeded:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [one for one in pool.map(subscribe, range(8)) if one is not None]
    assert len(made) == 3
    with pytest.raises(QuotaExceeded, match="3 subscriptions") as refused:
        store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    assert refused.value.retry_after_s == 30
    standing = store.subscriptions.get(DEFAULT_TENANT, made[0]).spec
    assert store.subscriptions.create(DEFAULT_TENANT, standing)[1] is False
    assert store.subscriptions.create(add_tenant(store, "beta"), a_subscription())[1]

    store.subscriptions.delete(DEFAULT_TENANT, made[0])
    assert store.subscriptions.create(DEFAULT_TENANT, a_subscription())[1]


def test_subscriptions_are_paged_newest_first_and_belong_to_their_tenant(store: Store) -> None:
    ids = [store.subscriptions.create(DEFAULT_TENANT, a_subscription(name=f"n{n}"))[0].id for n in range(3)]
    page = store.subscriptions.list(DEFAULT_TENANT, limit=2)
    rest = store.subscriptions.list(DEFAULT_TENANT, limit=2, cursor=page.next_cursor)
    assert [one.id for one in (*page.subscriptions, *rest.subscriptions)] == ids[::-1]
    assert rest.next_cursor is None
    beta = add_tenant(store, "beta")
    assert store.subscriptions.list(beta).subscriptions == ()
    for attempt in (store.subscriptions.get, store.subscriptions.delete):
        with pytest.raises(NotFound):
            attempt(beta, ids[0])
    with pytest.raises(NotFound):
        store.subscriptions.get(DEFAULT_TENANT, "no id")


def test_a_push_is_one_job_for_each_subscription_that_means_it(store: Store) -> None:
    beta = add_tenant(store, "beta")
    mine, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    theirs, _ = store.subscriptions.create(beta, a_subscription(bases=None, successors_of="acme/base-1"))
    store.subscriptions.create(DEFAULT_TENANT, a_subscription(bases="acme/other-*"))

    assert store.releases.record(seen()) == "recorded"

    claims = release_claims(store)
    tasks = [(claim.tenant_id, claim.request) for claim in claims]
    assert sorted(tenant for tenant, _ in tasks) == ["beta", DEFAULT_TENANT]
    told = {"repo_id": "acme/base-2", "sha": SHA, "seen_by": "webhook"}
    assert {(t, r) for t, r in tasks} == {
        (DEFAULT_TENANT, ReleaseTask(subscription_id=mine.id, **told)),
        (beta, ReleaseTask(subscription_id=theirs.id, **told)),
    }


def test_a_delivery_that_comes_again_and_a_look_that_finds_the_same_add_nothing(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    assert store.releases.record(seen()) == "recorded"
    assert store.releases.record(seen()) == "duplicate"
    assert store.releases.record(seen(webhook_id="another hook")) == "duplicate"
    poll = {"webhook_id": None, "hub_repo_id": None, "seen_by": "poll"}
    assert store.releases.record(seen(**poll), DEFAULT_TENANT) == "duplicate"
    assert (jobs_of_kind(store, "release"), store.releases.count()) == (1, {"webhook": 1, "poll": 0})
    assert store.releases.record(seen(OTHER_SHA, **poll), DEFAULT_TENANT) == "recorded"
    assert store.releases.record(seen(OTHER_SHA)) == "duplicate"
    assert store.releases.count() == {"webhook": 1, "poll": 1}


def test_a_delivery_that_is_known_under_an_older_name_of_its_repo_adds_nothing(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    assert store.releases.record(seen(repo_id="acme/base-renamed")) == "duplicate"


def test_deliveries_at_the_same_moment_are_one_release(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(store.releases.record(seen()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["duplicate"] * 7 + ["recorded"]
    assert jobs_of_kind(store, "release") == 1


def test_a_push_that_nobody_means_leaves_no_row(store: Store) -> None:
    assert store.releases.record(seen()) == "no_subscription"
    paused, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.subscriptions.set_paused(DEFAULT_TENANT, paused.id, True)
    assert store.releases.record(seen()) == "no_subscription"
    with store.db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(Release)) == 0
    store.subscriptions.set_paused(DEFAULT_TENANT, paused.id, False)
    assert store.releases.record(seen()) == "recorded"


def test_a_repo_that_is_known_to_be_older_than_the_subscription_is_no_release(
    store: Store, clock: HandClock
) -> None:
    before = clock()
    clock.move(10)
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    assert store.releases.record(seen(created_at=before)) == "no_subscription"
    assert store.releases.record(seen(created_at=clock())) == "recorded"


def test_a_push_of_our_own_jobs_is_ignored_before_and_after_the_job_has_settled(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription(bases="acme/*"))
    job, _ = store.submissions.submit(DEFAULT_TENANT, "convert", a_request())
    claim = store.queue.claim(job.id, "worker", 60)
    assert claim is not None
    shas = {"adapter_sha": SHA, "source_sha": SHA, "target_sha": SHA, "source_repo": "acme/base-1"}
    store.queue.record_resolved(claim, **shas, output_repo="acme/moved")
    store.queue.mark_publishing(claim)
    assert store.releases.record(seen(repo_id="acme/moved")) == "own_push"
    store.queue.succeed(claim, {"output": {"repo_id": "acme/moved", "commit": SHA}})
    assert store.releases.record(seen(repo_id="acme/moved")) == "own_push"
    assert store.releases.record(seen("d" * 40, repo_id="acme/moved", new_repo=True)) == "own_push", (
        "its first commit"
    )
    assert store.releases.record(seen(OTHER_SHA, repo_id="acme/moved")) == "recorded", "somebody else's push"


def test_the_services_own_jobs_are_shown_to_nobody(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription(since="2020-01-01"))
    store.releases.record(seen())
    assert (jobs_of_kind(store, "release"), jobs_of_kind(store, "reconcile")) == (1, 1)
    assert store.jobs.list(DEFAULT_TENANT).jobs == ()
    with store.db.read() as connection:
        (job_id, *_) = connection.scalars(select(Job.id)).all()
    for attempt in (
        store.jobs.get,
        store.jobs.cancel,
        store.jobs.retry,
        store.jobs.list_events,
        store.jobs.get_diagnostics,
    ):
        with pytest.raises(NotFound):
            attempt(DEFAULT_TENANT, job_id)


def test_a_release_job_survives_a_hub_that_is_away_for_longer_than_other_jobs_do(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    with store.db.read() as connection:
        assert connection.scalar(select(Job.attempt_limit).where(Job.kind == "release")) == 8


def test_the_keeper_asks_for_a_look_per_tenant_and_owner_when_it_is_due(
    store: Store, clock: HandClock
) -> None:
    beta = add_tenant(store, "beta")
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.subscriptions.create(DEFAULT_TENANT, a_subscription(bases="ACME/else-*"))
    store.subscriptions.create(beta, a_subscription())
    paused, _ = store.subscriptions.create(beta, a_subscription(bases="other/*"))
    store.subscriptions.set_paused(beta, paused.id, True)

    assert store.releases.enqueue_polls(60) == 0
    clock.move(60)
    assert store.releases.enqueue_polls(60) == 2
    assert store.releases.enqueue_polls(60) == 0
    claims = release_claims(store, "reconcile")
    assert [(c.tenant_id, c.request) for c in claims] == [
        ("beta", ReconcileTask(owner="acme")),
        (DEFAULT_TENANT, ReconcileTask(owner="acme")),
    ]


def test_looks_that_have_ended_are_not_kept_and_one_that_runs_is_not_doubled(
    store: Store, clock: HandClock
) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    for _ in range(3):
        clock.move(60)
        assert store.releases.enqueue_polls(60) == 1
        (claim,) = release_claims(store, "reconcile")
        clock.move(60)
        assert store.releases.enqueue_polls(60) == 0, "one is running"
        store.releases.mark_polled(claim, "acme", [subscription.id], clock())
        store.queue.succeed(claim, {})
    assert jobs_of_kind(store, "reconcile") == 1
    assert store.subscriptions.get(DEFAULT_TENANT, subscription.id).looked_at == clock()


def test_a_look_tries_releases_again_whose_job_had_failed(store: Store, clock: HandClock) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    (claim,) = release_claims(store)
    store.queue.fail(claim, PublicError(code="hub_unavailable", message="away"))
    clock.move(3600)
    store.releases.enqueue_polls(3600)
    (look,) = release_claims(store, "reconcile")
    store.releases.mark_polled(look, "acme", [subscription.id], clock())
    (again,) = release_claims(store)
    assert again.job_id == claim.job_id


def test_a_subscription_that_begins_in_the_past_is_looked_after_at_once(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription(since="2020-01-01"))
    assert len(release_claims(store, "reconcile")) == 1


def test_a_base_is_handled_once_however_often_its_release_is_decided(store: Store) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    campaign_id = opened(store, subscription)
    store.releases.record(seen(OTHER_SHA))
    (claim,) = release_claims(store)
    decision = Decision(
        CampaignDbState.OPEN, OTHER_SHA, facts={"content": "weights-2"}, outputs={0: "acme/out"}
    )
    decided = store.decisions.record(claim, subscription, "acme/base-2", decision)
    assert (decided.outcome, decided.campaign_id) == ("handled", campaign_id)
    assert jobs_of_kind(store, "convert") == 2


def test_a_worker_that_is_killed_after_its_decision_decides_the_same_again(
    store: Store, clock: HandClock
) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    (first,) = release_claims(store)
    decision = Decision(CampaignDbState.OPEN, SHA, facts=FACTS, outputs={0: "acme/x", 1: "acme/y"})
    begun = store.decisions.record(first, subscription, "acme/base-2", decision)
    clock.move(61)
    store.outbox.reap()
    (second,) = [claim for claim in release_claims(store) if claim.attempt == 2]
    again = store.decisions.record(second, subscription, "acme/base-2", decision)
    assert (begun.outcome, again.outcome, again.campaign_id) == ("open", "handled", begun.campaign_id)
    assert jobs_of_kind(store, "convert") == 2


def test_on_update_converts_again_only_when_what_the_model_computes_with_has_changed(store: Store) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription(on_update=True))
    opened(store, subscription)
    outcomes = []
    for sha, content in ((OTHER_SHA, "weights-1"), ("c" * 40, "weights-2"), ("c" * 40, "weights-2")):
        store.releases.record(seen(sha))
        claim = (release_claims(store) or [claim])[0]  # noqa: F821  (the last one decides twice)
        decision = Decision(CampaignDbState.OPEN, sha, facts={"content": content}, outputs={0: "acme/out"})
        outcomes.append(store.decisions.record(claim, subscription, "acme/base-2", decision).outcome)
    assert outcomes == ["handled", "open", "handled"]
    page = store.campaigns.list(DEFAULT_TENANT)
    assert [(campaign.number, campaign.sha[0]) for campaign in page.campaigns] == [(2, "c"), (1, "a")]


def test_a_release_that_waits_or_was_refused_is_decided_anew_under_the_same_id(store: Store) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    seen_states = []
    ids = set()
    for sha, state in (
        ("1" * 40, CampaignDbState.WAITING),
        ("2" * 40, CampaignDbState.REFUSED),
        ("3" * 40, CampaignDbState.OPEN),
    ):
        store.releases.record(seen(sha))
        (claim,) = release_claims(store)
        reasons = [] if state is CampaignDbState.OPEN else [{"code": "why", "message": "Because."}]
        outputs = {0: "acme/out"} if state is CampaignDbState.OPEN else {}
        decision = Decision(state, sha, reasons, FACTS, outputs)
        ids.add(store.decisions.record(claim, subscription, "acme/base-2", decision).campaign_id)
        (campaign,) = store.campaigns.list(DEFAULT_TENANT).campaigns
        seen_states.append((campaign.state, campaign.sha[0], len(campaign.decision["reasons"])))
    assert len(ids) == 1
    assert seen_states == [
        (CampaignState.WAITING, "1", 1),
        (CampaignState.REFUSED, "2", 1),
        (CampaignState.CONVERTING, "3", 0),
    ]


def test_a_subscription_that_was_deleted_meanwhile_begins_nothing_and_its_campaigns_stay(
    store: Store,
) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    campaign_id = opened(store, subscription)
    store.releases.record(seen(OTHER_SHA))
    (claim,) = release_claims(store)
    store.subscriptions.delete(DEFAULT_TENANT, subscription.id)
    decision = Decision(CampaignDbState.OPEN, OTHER_SHA, facts=FACTS, outputs={0: "acme/out"})
    assert store.decisions.record(claim, subscription, "acme/base-2", decision).outcome == "unsubscribed"
    assert store.decisions.find_subscription(claim, subscription.id) is None
    kept = store.campaigns.get(DEFAULT_TENANT, campaign_id)
    assert (kept.subscription_id, kept.state) == (None, CampaignState.CONVERTING)


def test_a_release_that_comes_during_a_pause_is_found_by_a_later_look(store: Store) -> None:
    store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    (claim,) = release_claims(store)
    assert isinstance(claim.request, ReleaseTask)
    store.decisions.unmark_release(claim, claim.request)
    store.queue.succeed(claim, {"outcome": "paused"})
    assert store.releases.record(seen(), DEFAULT_TENANT) == "recorded"


def test_only_whoever_holds_the_job_decides(store: Store, clock: HandClock) -> None:
    subscription, _ = store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    store.releases.record(seen())
    (claim,) = release_claims(store)
    clock.move(61)
    store.outbox.reap()
    with pytest.raises(LeaseLost):
        store.decisions.record(
            claim, subscription, "acme/base-2", Decision(CampaignDbState.OPEN, SHA, outputs={0: "acme/x"})
        )
    assert store.campaigns.list(DEFAULT_TENANT).campaigns == ()
    assert store.jobs.list(DEFAULT_TENANT, state=JobState.QUEUED).jobs == ()
