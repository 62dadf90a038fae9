"""`rebase subscribe`, `subscriptions` and `campaigns`, against a real service. The test plays the worker."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from rebase.client.errors import ServiceError
from rebase.client.http import RebaseClient
from rebase.schemas.states import CampaignDbState
from rebase.store.records import Decision
from rebase.store.tables.base import DEFAULT_TENANT
from support.campaigns import FACTS, SHA, release_claims, seen
from support.command import Command
from support.running_service import RunningService


def subscribe(rebase: Command, *more: str, owner: str | None = None) -> dict[str, Any]:
    """A subscription to an owner that no other test uses."""
    owner = owner or f"o{uuid4().hex[:8]}"
    done = rebase("subscribe", f"{owner}/base-*", "--adapter", f"{owner}/lora-a", *more, "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


def begin(service: RunningService, subscription: dict[str, Any]) -> str:
    """The campaign of a release, as a worker begins it."""
    store, base = service.store, subscription["bases"].replace("*", "2")
    record = store.subscriptions.get(DEFAULT_TENANT, subscription["id"])
    assert store.releases.record(seen(repo_id=base, hub_repo_id=base)) == "recorded"
    (claim,) = release_claims(store)
    outputs = {n: f"{record.owner}/out-{n}" for n in range(len(record.spec.adapters))}
    decided = store.decisions.record(
        claim, record, base, Decision(CampaignDbState.OPEN, SHA, facts=FACTS, outputs=outputs)
    )
    store.queue.succeed(claim, {})
    assert decided.campaign_id is not None
    return decided.campaign_id


def finish(service: RunningService, campaign_id: str) -> None:
    """Convert everything."""
    for entry in service.store.campaigns.list_entries(DEFAULT_TENANT, campaign_id):
        claim = service.store.queue.claim(entry.job.id, "worker", 60)
        assert claim is not None
        service.store.queue.save_diagnostics(claim, {}, [], "compatible")
        service.store.queue.mark_publishing(claim)
        output = {"repo_id": "acme/out", "commit": "c" * 40, "url": "https://hub.example/acme/out"}
        result = {"output": {**output, "pull_request": None}, "method": {"name": "copy"}}
        service.store.queue.succeed(claim, result)


def test_a_subscription_is_what_was_typed(at_service: RunningService, rebase: Command) -> None:
    made = subscribe(
        rebase,
        "--adapter=acme/lora-b@v1",
        "--source=acme/base-1",
        "--method=cross_lora",
        "--set=rank=16",
        "--set=output.max_rank=8",
        "--set=guards.max_parameters=8e9",
        "--output={owner}/{adapter}-on-{target}",
        "--kind=instruct",
        "--licence=mit",
        "--licence=apache-2.0",
        "--max-jobs=7",
        "--dry-run",
        "--on-update",
        "--since=2026-01-01",
        "--name=tasks",
    )
    request = at_service.store.subscriptions.get(DEFAULT_TENANT, made["id"]).request
    assert request["adapters"][1] == {"repo_id": "acme/lora-b", "revision": "v1"}
    assert (request["method"]["name"], request["method"]["rank"]) == ("cross_lora", 16)
    assert (request["output"]["repo_id"], request["output"]["max_rank"]) == (
        "{owner}/{adapter}-on-{target}",
        8,
    )
    guards = request["guards"]
    assert (guards["kind"], guards["licences"]) == ("instruct", ["mit", "apache-2.0"])
    assert (guards["max_jobs"], guards["max_parameters"]) == (7, 8_000_000_000)
    assert (request["dry_run"], request["on_update"], request["name"]) == (True, True, "tasks")
    assert request["since"].startswith("2026-01-01T00:00:00")


def test_successors_of_a_base_are_another_way_to_say_what_is_meant(
    at_service: RunningService, rebase: Command
) -> None:
    done = rebase("subscribe", "--successors-of", "acme/base-1", "--adapter", "acme/lora", "--json")
    assert json.loads(done.out)["successors_of"] == "acme/base-1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["acme/base-*"], "--adapter"),
        (["--adapter", "a/b"], "exactly one of"),
        (["acme/base-*", "--successors-of", "acme/x", "--adapter", "a/b"], "exactly one of"),
        (["*/x", "--adapter", "a/b"], "bases: must be 'owner/name'"),
        (["acme/base-*", "--adapter", "a/b", "--output", "{owner}/{x}"], "no field '{x}'"),
        (["acme/base-*", "--adapter", "a/b", "--kind", "chatty"], "guards.kind"),
        (["acme/base-*", "--adapter", "a/b", "--method", "magic"], "there is no method 'magic'"),
        (["acme/base-*", "--adapter", "a/b", "--set", "target.repo_id=x"], "has no object 'target'"),
        (["acme/base-*", "--adapter", "a/b", "--max-jobs", "2", "--set", "guards.max_jobs=3"], "given twice"),
    ],
)
def test_a_subscription_that_cannot_be_is_a_usage_error(
    rebase: Command, arguments: list[str], says: str
) -> None:
    done = rebase("subscribe", *arguments)
    assert done.code == 2
    assert says in done.err


def test_subscriptions_are_listed_shown_paused_resumed_and_removed(
    at_service: RunningService, rebase: Command
) -> None:
    made = subscribe(rebase, "--name", "listed")
    assert made["id"] in rebase("subscriptions", "ls").out
    assert "listed" in rebase("subscriptions", "show", made["id"]).out
    assert json.loads(rebase("subscriptions", "pause", made["id"], "--json").out)["paused"] is True
    assert "paused" in rebase("subscriptions", "show", made["id"]).out
    assert json.loads(rebase("subscriptions", "resume", made["id"], "--json").out)["paused"] is False
    assert rebase("subscriptions", "rm", made["id"]).out == f"Deleted {made['id']}.\n"
    assert rebase("subscriptions", "show", made["id"]).code == 1
    assert rebase("subscriptions", "show", "no/id").code == 2


def test_a_campaign_is_watched_to_its_end_and_its_report_read(
    at_service: RunningService, rebase: Command, tmp_path: Path
) -> None:
    made = subscribe(rebase)
    campaign_id = begin(at_service, made)
    listed = json.loads(rebase("campaigns", "ls", "--subscription", made["id"], "--json").out)["campaigns"]
    assert [(one["id"], one["state"]) for one in listed] == [(campaign_id, "converting")]
    later = threading.Thread(target=lambda: (time.sleep(0.5), finish(at_service, campaign_id)))
    later.start()
    watched = rebase("campaigns", "show", "--watch")  # the newest one
    later.join()
    assert watched.code == 0
    assert "converting  0/1" in watched.err
    assert "finished" in watched.out

    page = tmp_path / "report.html"
    told = rebase("campaigns", "report", campaign_id, "--html", str(page))
    assert "moved" in told.out
    assert f"acme/out@{'c' * 12}" in told.out
    assert "<h2>Moved (1)</h2>" in page.read_text()
    document = json.loads(rebase("campaigns", "report", campaign_id, "--json").out)
    assert document["counts"] == {"moved": 1}
    assert rebase("campaigns", "report", campaign_id, "--html", str(tmp_path / "no" / "x.html")).code == 1


def test_a_campaign_is_paused_resumed_cancelled_and_retried(
    at_service: RunningService, rebase: Command
) -> None:
    campaign_id = begin(at_service, subscribe(rebase))
    states = [
        json.loads(rebase("campaigns", move, campaign_id, "--json").out)["state"]
        for move in ("pause", "resume", "cancel", "retry")
    ]
    assert states == ["paused", "converting", "cancelled", "converting"]
    refused = rebase("campaigns", "approve", campaign_id)
    assert (refused.code, "awaiting_approval" in refused.err) == (1, True)


def test_listing_can_wait_for_the_first_campaign(at_service: RunningService, rebase: Command) -> None:
    made = subscribe(rebase)
    assert rebase("campaigns", "ls", "--subscription", made["id"]).out == "No campaigns.\n"
    later = threading.Thread(target=lambda: (time.sleep(0.5), begin(at_service, made)))
    later.start()
    done = rebase("campaigns", "ls", "--subscription", made["id"], "--wait")
    later.join()
    assert "converting" in done.out


def test_the_client_pages_and_its_errors_are_typed(at_service: RunningService, rebase: Command) -> None:
    made = [subscribe(rebase)["id"] for _ in range(2)]
    with RebaseClient(at_service.url) as client:
        assert {one.id for one in client.list_subscriptions()} >= set(made)
        assert list(client.list_campaigns(state="refused")) == []
        with pytest.raises(ServiceError) as caught:
            client.get_campaign("0" * 32)
        assert (caught.value.status, caught.value.error.code) == (404, "not_found")
        assert client.subscribe(client.get_subscription(made[0]).request).id == made[0]
