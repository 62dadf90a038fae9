"""`POST /webhooks/hub`: what the Hub sends, what it could send, and what somebody else sends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rebase.store.records import ReleaseEvent
from rebase.store.tables.base import DEFAULT_TENANT
from service.routes.hub_webhook import IgnoredEvent, extract_release
from support.api import Api
from support.campaigns import SHA, a_subscription, payload, release_claims, subscription_body
from support.databases import a_request

SECRET = "correct horse"
HEADERS = {"X-Webhook-Secret": SECRET}
PR = {"ref": "refs/pr/1", "oldSha": None, "newSha": SHA}


@pytest.fixture
def hooked(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app with a webhook, and one subscription."""
    with Api.start(sqlite_url, tmp_path, webhook_secret=f"old secret, {SECRET}") as api:
        api.store.subscriptions.create(DEFAULT_TENANT, a_subscription())
        yield api


def deliver(api: Api, body: Any = None, headers: dict[str, str] = HEADERS) -> Any:
    return api.client.post("/webhooks/hub", json=payload() if body is None else body, headers=headers)


def answer(api: Api, body: Any) -> tuple[int, str, str | None]:
    response = deliver(api, body)
    return response.status_code, response.json()["status"], response.json()["reason"]


def test_a_push_to_main_is_recorded_and_its_job_is_rung(hooked: Api) -> None:
    assert answer(hooked, payload()) == (202, "recorded", None)
    (claim,) = release_claims(hooked.store)
    assert claim.request.model_dump()["repo_id"] == "acme/base-2"  # type: ignore[union-attr]
    deadline = time.monotonic() + 5
    while claim.job_id not in hooked.rung and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hooked.rung == [claim.job_id]


def test_a_new_repo_is_recorded_with_and_without_a_first_commit(hooked: Api) -> None:
    new = payload(event={"action": "create", "scope": "repo"}, updatedRefs=...)
    assert answer(hooked, new) == (202, "recorded", None)
    empty = payload(event={"action": "create", "scope": "repo"}, updatedRefs=..., repo__headSha=...)
    assert answer(hooked, {**empty, "repo": {**empty["repo"], "name": "acme/base-3"}})[1] == "recorded"


def test_a_delivery_that_comes_three_times_is_one_release(hooked: Api) -> None:
    answers = [answer(hooked, payload())[1:] for _ in range(3)]
    assert answers == [("recorded", None), ("ignored", "duplicate"), ("ignored", "duplicate")]
    assert len(release_claims(hooked.store)) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event": {"action": "delete", "scope": "repo"}}, "action"),
        ({"event": {"action": "move", "scope": "repo"}, "movedTo": {"name": "acme/base-9"}}, "action"),
        ({"event": {"action": "explode", "scope": "repo.content"}}, "action"),
        ({"event": {"action": "create", "scope": "discussion"}, "discussion": {"num": 1}}, "scope"),
        ({"event": {"action": "create", "scope": "discussion.comment"}}, "scope"),
        ({"event": {"action": "update", "scope": "discussion.reaction.new"}}, "scope"),
        (
            {"event": {"action": "update", "scope": "repo.config"}, "updatedConfig": {"private": False}},
            "scope",
        ),
        ({"event": {"action": "update", "scope": "repo.config.visibility"}}, "scope"),
        ({"event": {"action": "update", "scope": "galaxy"}}, "scope"),
        ({"event": ...}, "scope"),
        ({"repo__type": "dataset"}, "not_a_model"),
        ({"repo__type": "space"}, "not_a_model"),
        ({"repo": ...}, "not_a_model"),
        ({"repo": "acme/base-2"}, "not_a_model"),
        ({"repo__name": "../../etc"}, "repo_name"),
        ({"repo__name": ["acme"]}, "repo_name"),
        ({"repo__name": "acme/base-\u0000"}, "repo_name"),
        ({"updatedRefs": [PR]}, "not_main"),
        ({"updatedRefs": [{"ref": "refs/heads/dev", "oldSha": None, "newSha": SHA}]}, "not_main"),
        ({"updatedRefs": [{"ref": "refs/tags/v1", "oldSha": None, "newSha": SHA}]}, "not_main"),
        ({"updatedRefs": [{"ref": "refs/heads/main", "oldSha": SHA, "newSha": None}]}, "not_main"),
        ({"updatedRefs": []}, "not_main"),
        ({"updatedRefs": None}, "not_main"),
        ({"updatedRefs": {"refs/heads/main": SHA}}, "not_main"),
        ({"updatedRefs": ...}, "not_main"),
        ({"repo__name": "acme/unrelated"}, "no_subscription"),
        ({"repo__name": "other/base-2"}, "no_subscription"),
    ],
)
def test_what_is_no_release_is_accepted_and_ignored_with_a_reason(
    hooked: Api, change: dict[str, Any], reason: str
) -> None:
    assert answer(hooked, payload(**change)) == (202, "ignored", reason)
    assert release_claims(hooked.store) == []


@pytest.mark.parametrize(
    "change",
    [
        {"event": {"action": "update", "scope": "repo"}},
        {"event": {"action": "update", "scope": "repo.content.lfs"}},  # counts as repo.content
        {"event": {"action": "update", "scope": "repo.stars"}},  # counts as repo
        {"updatedRefs": [PR, {"ref": "refs/heads/main", "oldSha": None, "newSha": SHA}]},
        {"future": {"field": [1, 2]}, "repo__colour": "red", "webhook__version": 4},
        {"webhook": ...},
        {"repo__id": 12345, "repo__owner": None, "repo__tags": 7},
    ],
)
def test_what_is_new_in_a_payload_is_let_through(hooked: Api, change: dict[str, Any]) -> None:
    assert answer(hooked, payload(**change)) == (202, "recorded", None)


def test_a_push_that_one_of_our_jobs_made_is_ignored(hooked: Api) -> None:
    store = hooked.store
    job, _ = store.submissions.submit(DEFAULT_TENANT, "convert", a_request())
    claim = store.queue.claim(job.id, "worker", 60)
    assert claim is not None
    shas = {"adapter_sha": SHA, "source_sha": SHA, "target_sha": SHA, "source_repo": "acme/base-1"}
    store.queue.record_resolved(claim, **shas, output_repo="acme/base-2")
    store.queue.mark_publishing(claim)
    store.queue.succeed(claim, {"output": {"repo_id": "acme/base-2", "commit": SHA}})
    assert answer(hooked, payload()) == (202, "ignored", "own_push")


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Webhook-Secret": ""}, {"X-Webhook-Secret": "correct hors"}, {"X-Webhook-Secret": f"{SECRET}!"}],
)
def test_a_missing_or_wrong_secret_is_refused_before_the_body_is_looked_at(
    hooked: Api, headers: dict[str, str]
) -> None:
    response = hooked.client.post("/webhooks/hub", content=b"{", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, "webhook_unauthorised")
    assert SECRET not in response.text


def test_a_secret_with_other_bytes_than_ascii_is_compared_and_not_a_crash(hooked: Api) -> None:
    response = hooked.client.post(
        "/webhooks/hub", json=payload(), headers={"X-Webhook-Secret": "gr\u00fcn".encode()}
    )
    assert response.status_code == 401


def test_while_a_secret_is_replaced_both_are_accepted(hooked: Api) -> None:
    assert deliver(hooked, headers={"X-Webhook-Secret": "old secret"}).status_code == 202
    assert deliver(hooked).status_code == 202


@pytest.mark.parametrize("secret", [None, "", " , "])
def test_without_a_secret_there_is_no_webhook(sqlite_url: str, tmp_path: Path, secret: str | None) -> None:
    with Api.start(sqlite_url, tmp_path, webhook_secret=secret) as api:
        response = deliver(api)
    assert (response.status_code, response.json()["code"]) == (404, "webhook_not_set_up")
    assert "REBASE_WEBHOOK_SECRET" in response.json()["hint"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000, b'{"a": NaN'])
def test_a_body_that_is_no_json_object_is_a_typed_error(hooked: Api, body: bytes) -> None:
    response = hooked.client.post("/webhooks/hub", content=body, headers=HEADERS)
    assert (response.status_code, response.json()["code"]) == (422, "request_invalid")


def test_a_body_that_is_too_large_is_refused(hooked: Api) -> None:
    body = json.dumps(payload(filler="x" * 300_000)).encode()
    assert hooked.client.post("/webhooks/hub", content=body, headers=HEADERS).status_code == 413


def test_it_asks_for_no_api_key_where_keys_are_asked_for(sqlite_url: str, tmp_path: Path) -> None:
    with Api.start(sqlite_url, tmp_path, webhook_secret=SECRET, auth="keys") as api:
        assert deliver(api).json()["reason"] == "no_subscription"
        assert api.client.get("/campaigns").status_code == 401
        assert api.client.post("/subscriptions", json=subscription_body()).status_code == 401


def test_deliveries_and_releases_are_counted(hooked: Api) -> None:
    for _ in range(2):
        deliver(hooked)
    deliver(hooked, headers={})
    text = hooked.client.get("/metrics").text
    assert 'rebase_webhook_deliveries_total{outcome="recorded"} 1.0' in text
    assert 'rebase_webhook_deliveries_total{outcome="duplicate"} 1.0' in text
    assert 'rebase_webhook_deliveries_total{outcome="refused"} 1.0' in text
    assert 'rebase_releases_seen{by="webhook"} 1.0' in text
    assert 'rebase_campaigns{state="finished"} 0.0' in text


def test_it_answers_in_milliseconds(hooked: Api) -> None:
    took = []
    for number in range(20):
        body = payload(updatedRefs=[{"ref": "refs/heads/main", "newSha": f"{number:040x}"}])
        started = time.perf_counter()
        assert answer(hooked, body)[1] == "recorded"
        took.append(time.perf_counter() - started)
    assert sorted(took)[len(took) // 2] < 0.1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("event", "repo", "updatedRefs", "webhook", "repo__name", "repo__type", "repo__id", "repo__headSha")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS[4:]), anything, max_size=3), st.data())
def test_whatever_a_field_holds_a_payload_is_a_release_or_ignored(
    changes: dict[str, Any], data: st.DataObject
) -> None:
    body = payload(**changes)
    for key in data.draw(st.sets(st.sampled_from(KEYS[:4]), max_size=2)):
        body[key] = data.draw(anything)
    assert isinstance(extract_release(body), ReleaseEvent | IgnoredEvent)


def test_the_schema_names_the_secret_and_asks_for_no_key(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/webhooks/hub"]["post"]
    assert operation["security"] == []
    assert [parameter["name"] for parameter in operation["parameters"]] == ["X-Webhook-Secret"]
