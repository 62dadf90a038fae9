"""`/subscriptions` and `/campaigns` over HTTP: what is answered, to whom, and what a report says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete
from starlette.testclient import TestClient

from rebase.errors import PublicError
from rebase.schemas.states import CampaignDbState
from rebase.store import api_keys as keys
from rebase.store import subscriptions as subscriptions_side
from rebase.store.records import Decision, MetricRow
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import Job
from support.api import Api
from support.campaigns import FACTS, a_subscription, opened, release_claims, seen, subscription_body

NASTY = "<script>alert(1)</script>"
REASONS = {"precheck": {"reasons": [{"code": "far", "message": f"Bases are unrelated. {NASTY}"}]}}


def subscribed(client: TestClient, **changes: Any) -> dict[str, Any]:
    response = client.post("/subscriptions", json=subscription_body(**changes))
    assert response.status_code == 201, response.text
    body: dict[str, Any] = response.json()
    return body


def test_a_subscription_is_made_shown_listed_paused_and_deleted(client: TestClient) -> None:
    made = subscribed(client, name="tasks")
    here = f"/subscriptions/{made['id']}"
    assert made["links"]["self"] == here
    assert client.get(here).json() == made
    assert client.get("/subscriptions").json() == {"subscriptions": [made], "next_cursor": None}
    assert client.patch(here, json={"paused": True}).json()["paused"] is True
    assert client.patch(here, json={"paused": False}).json() == made
    assert client.delete(here).status_code == 204
    assert client.get(here).json()["code"] == "not_found"


def test_the_same_subscription_again_is_answered_with_the_one_that_stands(client: TestClient) -> None:
    made = subscribed(client)
    again = client.post("/subscriptions", json=subscription_body())
    assert (again.status_code, again.json(), again.headers["Location"]) == (200, made, made["links"]["self"])


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"bases": "*/everything"}, "/bases"),
        ({"adapters": []}, "/adapters"),
        ({"output": {"repo_id": "{owner}/{nothing}"}}, "/output/repo_id"),
        ({"guards": {"kind": "chatty"}}, "/guards/kind"),
        ({"guards": {"max_jobs": 1000}}, "/guards/max_jobs"),
        ({"method": {"name": "cross_lora", "rank": -1}}, "/method/rank"),
        ({"method": {"name": "auto", "candidates": [{"name": "copy"}]}}, "/method/candidates"),
        ({"since": "yesterday"}, "/since"),
        ({"callback": {"url": "http://tools.example/hook"}}, "/callback/url"),
    ],
)
def test_a_wrong_field_is_pointed_at(client: TestClient, change: dict[str, Any], pointer: str) -> None:
    response = client.post("/subscriptions", json=subscription_body(**change))
    assert response.status_code == 422
    assert response.json()["pointers"] == [pointer]


def test_one_subscription_too_many_is_answered_with_what_to_do(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions_side, "MAX_SUBSCRIPTIONS", 1)
    made = client.post("/subscriptions", json=subscription_body())
    answer = client.post("/subscriptions", json=subscription_body(bases="acme/other-*"))

    assert (made.status_code, answer.status_code, answer.json()["code"]) == (201, 429, "quota_exceeded")
    assert answer.json()["hint"].startswith("Delete some")
    assert int(answer.headers["retry-after"]) == 30


def test_a_subscription_without_or_with_two_rules_says_what_to_give(client: TestClient) -> None:
    for body in (subscription_body(bases=None), subscription_body(successors_of="acme/base-1")):
        response = client.post("/subscriptions", json=body)
        assert response.status_code == 422
        assert "exactly one of 'bases'" in response.json()["detail"]


def test_a_campaign_is_shown_with_its_progress_and_steered(api: Api) -> None:
    subscription, _ = api.store.subscriptions.create(DEFAULT_TENANT, a_subscription())
    campaign_id = opened(api.store, subscription)
    here = f"/campaigns/{campaign_id}"
    shown = api.client.get(here)
    body = shown.json()
    assert (body["state"], body["base"], body["stages"]["convert"]["total"]) == (
        "converting",
        "acme/base-2",
        2,
    )
    assert "Retry-After" in shown.headers
    assert api.client.get("/campaigns?state=converting").json()["campaigns"] == [body]
    assert api.client.get("/campaigns?state=finished").json()["campaigns"] == []
    assert api.client.get(f"/campaigns?subscription={subscription.id}").json()["campaigns"] == [body]
    assert api.client.get("/campaigns?sate=finished").status_code == 422
    paused = api.client.post(f"{here}/pause")
    assert paused.json()["state"] == "paused"
    assert "Retry-After" not in paused.headers
    assert api.client.post(f"{here}/resume").json()["state"] == "converting"
    assert api.client.post(f"{here}/approve").json()["code"] == "state_conflict"
    assert api.client.post(f"{here}/retry").status_code == 409
    assert api.client.post(f"{here}/cancel").json()["state"] == "cancelled"
    assert api.client.post(f"{here}/retry").status_code == 202


@pytest.fixture
def reported(api: Api) -> Iterator[tuple[Api, str]]:
    """A campaign of five adapters: one moved, one rejected, one failed, one waiting, one over the budget."""
    adapters = [{"repo_id": f"acme/lora-{n}"} for n in range(5)]
    subscription, _ = api.store.subscriptions.create(DEFAULT_TENANT, a_subscription(adapters=adapters))
    left_out = [{"position": 4, "code": "max_jobs", "message": "The limit is 4 jobs per release."}]
    store = api.store
    assert store.releases.record(seen()) == "recorded"
    (held,) = release_claims(store)
    outputs = {n: f"acme/lora-{n}-base-2" for n in range(4)}
    decision = Decision(CampaignDbState.OPEN, "a" * 40, facts=FACTS, outputs=outputs, left_out=left_out)
    campaign_id = store.decisions.record(held, subscription, "acme/base-2", decision).campaign_id
    assert campaign_id is not None
    moved, rejected, failed, _ = [e.job.id for e in store.campaigns.list_entries(DEFAULT_TENANT, campaign_id)]
    claim = api.claim(moved)
    figure = MetricRow("moved", "score", 0.75, 0.7, 0.8, 40, None)
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=[figure])
    store.queue.mark_publishing(claim)
    output = {"repo_id": "acme/lora-0-base-2", "commit": "c" * 40, "url": "https://hub.example/x"}
    reasons = [{"code": "close", "message": "The bases are close relatives."}]
    result = {"output": {**output, "pull_request": None}, "verdict": "compatible", "reasons": reasons}
    store.queue.succeed(claim, {**result, "method": {"name": "copy"}, "measurements": {"delta": 0.1}})
    claim = api.claim(rejected)
    store.queue.save_diagnostics(claim, REASONS, [], "incompatible")
    store.queue.reject(claim, PublicError(code="incompatible", message="The pair is incompatible."))
    store.queue.fail(api.claim(failed), PublicError(code="repo_not_found", message="It is not on the Hub."))
    yield api, campaign_id


def test_a_report_says_what_moved_what_needs_retraining_and_why(reported: tuple[Api, str]) -> None:
    api, campaign_id = reported
    report = api.client.get(f"/campaigns/{campaign_id}/report").json()
    assert report["counts"] == {"failed": 1, "left_out": 1, "moved": 1, "open": 1, "retrain": 1}
    rows = {row["adapter"]: row for row in report["adapters"]}
    moved, retrain = rows["acme/lora-0"], rows["acme/lora-1"]
    assert (moved["output"]["repo_id"], moved["output"]["commit"]) == ("acme/lora-0-base-2", "c" * 40)
    assert (moved["why"], moved["method"]) == (["The bases are close relatives."], {"name": "copy"})
    assert (moved["figures"][0]["value"], moved["measurements"]) == (0.75, {"delta": 0.1})
    assert (retrain["outcome"], retrain["verdict"]) == ("retrain", "incompatible")
    assert retrain["why"] == ["The pair is incompatible.", f"Bases are unrelated. {NASTY}"]
    assert rows["acme/lora-2"]["error"]["code"] == "repo_not_found"
    assert rows["acme/lora-3"]["planned_output"] == "acme/lora-3-base-2"
    assert rows["acme/lora-4"]["why"] == ["The limit is 4 jobs per release."]


def test_an_adapter_whose_job_was_deleted_after_its_time_was_not_left_out(reported: tuple[Api, str]) -> None:
    api, campaign_id = reported
    with api.store.db.write() as connection:
        connection.execute(delete(Job).where(Job.adapter_repo == "acme/lora-0"))
    report = api.client.get(f"/campaigns/{campaign_id}/report").json()
    assert report["counts"] == {"failed": 1, "forgotten": 1, "left_out": 1, "open": 1, "retrain": 1}
    page = api.client.get(f"/campaigns/{campaign_id}/report", params={"format": "html"}).text
    assert "Not known any more (1)" in page


def test_a_report_tells_the_subfolders_of_a_library_apart(api: Api) -> None:
    adapters = [{"repo_id": "acme/library", "subfolder": name} for name in ("sql", "poems")]
    subscription, _ = api.store.subscriptions.create(DEFAULT_TENANT, a_subscription(adapters=adapters))
    where = f"/campaigns/{opened(api.store, subscription)}/report"
    rows = api.client.get(where).json()["adapters"]
    assert [(row["adapter"], row["subfolder"]) for row in rows] == [
        ("acme/library", "sql"),
        ("acme/library", "poems"),
    ]
    assert "<code>acme/library:sql</code>" in api.client.get(where, params={"format": "html"}).text


def test_a_browser_gets_a_page_that_runs_and_loads_nothing(reported: tuple[Api, str]) -> None:
    api, campaign_id = reported
    where = f"/campaigns/{campaign_id}/report"
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = api.client.get(where, headers={"Accept": browser})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert NASTY not in page.text
    assert "&lt;script&gt;" in page.text
    for sentence in ("Moved (1)", "Need retraining (1)", "Failed (1)", "Left out (1)", "moved, score: 0.75"):
        assert sentence in page.text
    assert '<a href="https://hub.example/x">acme/lora-0-base-2</a>' in page.text
    assert api.client.get(where, params={"format": "html"}).text == page.text
    for accept in ("application/json", "*/*", "application/json, text/html"):
        answer = api.client.get(where, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["vary"] == "Accept"
    assert api.client.get(where, params={"format": "pdf"}).status_code == 422


def test_another_tenants_subscription_and_campaign_do_not_exist(sqlite_url: str, tmp_path: Path) -> None:
    with Api.start(sqlite_url, tmp_path, auth="keys") as api:
        ours, theirs = (
            {"Authorization": f"Bearer {keys.create_key(api.store, tenant, 'key')}"}
            for tenant in ("ours", "theirs")
        )
        made = api.client.post("/subscriptions", json=subscription_body(), headers=ours).json()
        subscription = api.store.subscriptions.get("ours", made["id"])
        campaign_id = opened(api.store, subscription)
        calls = [
            ("GET", f"/subscriptions/{made['id']}"),
            ("PATCH", f"/subscriptions/{made['id']}"),
            ("DELETE", f"/subscriptions/{made['id']}"),
            ("GET", f"/campaigns/{campaign_id}"),
            ("GET", f"/campaigns/{campaign_id}/report"),
            *(
                ("POST", f"/campaigns/{campaign_id}/{move}")
                for move in ("pause", "resume", "cancel", "retry", "approve")
            ),
        ]
        for method, path in calls:
            body = {"paused": True} if method == "PATCH" else None
            response = api.client.request(method, path, json=body, headers=theirs)
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
        assert api.client.get("/campaigns", headers=theirs).json()["campaigns"] == []
        assert api.client.get(f"/campaigns/{campaign_id}", headers=ours).json()["state"] == "converting"
