"""Callbacks over HTTP: what is accepted, the log, replay, secrets, and that tenants see only their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rebase.schemas.callbacks import DeliveryState
from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.deliveries import DeliveryRepository
from service.app import create_app
from support.api import BODY, Api
from support.callbacks import queue_of, settle, sql_text

URL = "https://hooks.acme.example/rebase?team=1"


@pytest.fixture
def ready(api: Api) -> Api:
    """A tenant that has a signing secret."""
    assert api.client.post("/callback-secrets").status_code == 201
    return api


def ended(api: Api, **callback: Any) -> str:
    """A job with a callback that has succeeded."""
    job_id = api.submit(callback={"url": URL, **callback})
    api.store.queue.succeed(api.claim(job_id), {})
    return job_id


def test_a_request_with_a_callback_is_accepted_and_its_job_leads_to_the_deliveries(ready: Api) -> None:
    job_id = ended(ready)
    job = ready.client.get(f"/jobs/{job_id}").json()
    assert job["request"]["callback"]["url"] == URL
    answer = ready.client.get(job["links"]["deliveries"])

    (delivery,) = answer.json()["deliveries"]
    assert delivery["job_id"] == job_id
    assert (delivery["event"], delivery["state"], delivery["log"]) == ("job.succeeded", "pending", [])
    assert delivery["payload"]["data"]["state"] == "succeeded"
    assert ready.client.get(delivery["links"]["self"]).json() == delivery
    assert ready.client.get("/deliveries").json()["deliveries"] == [delivery]
    assert "deliveries" not in ready.client.get(f"/jobs/{ready.submit()}").json()["links"]


def test_a_precheck_may_call_back_too(ready: Api) -> None:
    answer = ready.client.post("/precheck", json={**BODY, "callback": {"url": URL}})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("callback", "pointer"),
    [
        ({"url": "http://hooks.acme.example/"}, "/callback/url"),
        ({"url": "https://user:pass@hooks.acme.example/"}, "/callback/url"),
        ({"url": "https://169.254.169.254/latest"}, "/callback/url"),
        ({"url": "https://2130706433/"}, "/callback/url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/callback/url"),
        ({"url": "https://localhost/"}, "/callback/url"),
        ({"url": "https://hooks.acme.example:25/"}, "/callback/url"),
        ({"url": "https://a.example/" + "x" * 3000}, "/callback/url"),
        ({"url": 7}, "/callback/url"),
        ({}, "/callback/url"),
        ({"url": URL, "events": ["job.exploded"]}, "/callback/events/0"),
        ({"url": URL, "events": []}, "/callback/events"),
        ({"url": URL, "secret": "mine"}, "/callback/secret"),
    ],
)
def test_what_cannot_be_called_back_is_refused_at_once_with_its_field(
    ready: Api, callback: dict[str, Any], pointer: str
) -> None:
    answer = ready.client.post("/convert", json={**BODY, "callback": callback})

    assert answer.status_code == 422
    assert answer.json()["pointers"] == [pointer]
    assert ready.store.jobs.list("default").jobs == ()


def test_no_signing_secret_no_callback(api: Api) -> None:
    answer = api.client.post("/convert", json={**BODY, "callback": {"url": URL}})

    assert (answer.status_code, answer.json()["code"]) == (409, "state_conflict")
    assert answer.json()["pointers"] == ["/callback"]
    assert "POST /callback-secrets" in answer.json()["hint"]


def test_what_the_operator_allows_is_accepted(sqlite_url: str, tmp_path: Path) -> None:
    with Api.start(sqlite_url, tmp_path, callback_allow="127.0.0.1") as api:
        api.client.post("/callback-secrets")
        answers = [
            api.client.post("/convert", json={**BODY, "callback": {"url": url}}).status_code
            for url in ("http://127.0.0.1:9/x", "http://127.0.0.2:9/x")
        ]
    assert answers == [202, 422]


def test_a_secret_is_shown_once_and_never_again(api: Api) -> None:
    first = api.client.post("/callback-secrets")
    assert first.headers["cache-control"] == "no-store"
    second = api.client.post("/callback-secrets", json={"overlap_s": 60}).json()
    assert first.json()["secret"].startswith("whsec_")

    listed = api.client.get("/callback-secrets").json()["secrets"]
    assert [secret["id"] for secret in listed] == [second["id"], first.json()["id"]]
    assert all(set(secret) == {"id", "created_at", "retires_at"} for secret in listed)
    assert listed[0]["retires_at"] is None
    everything = sql_text(api.store.db)
    assert first.json()["secret"].removeprefix("whsec_") not in everything
    for wrong in (-1, False, "soon"):
        answer = api.client.post("/callback-secrets", json={"overlap_s": wrong})
        assert answer.json()["pointers"] == ["/overlap_s"]


def test_a_delivery_is_replayed_under_its_own_id(ready: Api) -> None:
    ended(ready)
    queue = queue_of(ready.store)
    (taken,) = queue.lease("courier", 60)
    conflict = ready.client.post(f"/deliveries/{taken.id}/replay")
    assert (conflict.status_code, conflict.json()["code"]) == (409, "state_conflict")
    settle(queue, taken, DeliveryState.FAILED)

    answer = ready.client.post(f"/deliveries/{taken.id}/replay")
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (202, taken.id, "pending")
    assert answer.json()["log"][0]["status"] == 500


def test_lists_are_paged_and_filtered_and_a_misspelt_filter_is_refused(ready: Api) -> None:
    jobs = [ended(ready) for _ in range(3)]
    page = ready.client.get("/deliveries?limit=2&state=pending").json()
    rest = ready.client.get(f"/deliveries?limit=2&cursor={page['next_cursor']}").json()

    assert [one["job_id"] for one in page["deliveries"] + rest["deliveries"]] == jobs[::-1]
    assert ready.client.get("/deliveries?state=failed").json()["deliveries"] == []
    for wrong in ("stat=failed", "state=lost", "cursor=x", "limit=0"):
        assert ready.client.get(f"/deliveries?{wrong}").status_code == 422


def test_metrics_tell_how_many_wait_and_for_how_long(ready: Api) -> None:
    ended(ready)
    text = ready.client.get("/metrics").text

    assert 'rebase_callback_deliveries{state="pending"} 1.0' in text
    assert 'rebase_callback_deliveries{state="failed"} 0.0' in text
    assert "rebase_callback_oldest_pending_seconds" in text


def test_without_keys_for_secrets_the_deployment_says_so(postgres_url: str, tmp_path: Path) -> None:
    with Api.start(postgres_url, tmp_path) as api:
        answer = api.client.post("/callback-secrets")
    assert (answer.status_code, answer.json()["code"]) == (503, "settings_invalid")
    assert "REBASE_SECRET_KEYS" in answer.json()["detail"]


@pytest.fixture
def two(sqlite_url: str, tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, str], dict[str, str]]]:
    """A service with keys, and the headers of two tenants."""
    app = create_app(
        Settings(_env_file=None, database_url=sqlite_url, home=tmp_path, auth="keys"), notify=lambda _: None
    )
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        store = app.state.service.store
        headers = [
            {"Authorization": f"Bearer {keys.create_key(store, tenant, 'k')}"} for tenant in ("acme", "rival")
        ]
        yield client, headers[0], headers[1]


def test_another_tenant_sees_nothing_and_moves_nothing(
    two: tuple[TestClient, dict[str, str], dict[str, str]],
) -> None:
    client, mine, theirs = two
    client.post("/callback-secrets", headers=mine)
    job_id = client.post("/convert", json={**BODY, "callback": {"url": URL}}, headers=mine).json()["id"]
    client.post(f"/jobs/{job_id}/cancel", headers=mine)
    (delivery,) = client.get(f"/jobs/{job_id}/deliveries", headers=mine).json()["deliveries"]

    for method, path in (
        ("GET", f"/jobs/{job_id}/deliveries"),
        ("GET", f"/deliveries/{delivery['id']}"),
        ("POST", f"/deliveries/{delivery['id']}/replay"),
    ):
        unknown = path.replace(job_id, "0" * 32).replace(delivery["id"], "0" * 32)
        foreign, missing = (client.request(method, one, headers=theirs) for one in (path, unknown))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["detail"] == missing.json()["detail"]
        assert client.request(method, path).status_code == 401
    assert client.get("/deliveries", headers=theirs).json()["deliveries"] == []
    assert client.get("/callback-secrets", headers=theirs).json()["secrets"] == []
    for path in ("/deliveries", "/callback-secrets"):
        assert client.get(path).status_code == 401


def test_a_log_line_never_holds_a_receivers_path(ready: Api, capfd: pytest.CaptureFixture[str]) -> None:
    job_id = ready.submit(callback={"url": "https://hooks.acme.example/T0P-S3CRET"})
    ready.client.post(f"/jobs/{job_id}/cancel")
    ready.client.get(f"/jobs/{job_id}/deliveries")

    assert DeliveryRepository(ready.store.db).list_for_job("default", job_id)
    captured = capfd.readouterr()
    assert "T0P-S3CRET" not in captured.out + captured.err
