"""Keys, Hub tokens, limits, the audit log and deletion, over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from rebase.schemas.api_keys import Scope
from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.audit import list_audit_events
from rebase.store.hub_tokens import resolve_hub_token
from rebase.store.tables.jobs import JobToken
from rebase.store.tables.tenants import ApiKey, HubToken
from rebase.store.tenants import change_limits
from rebase.store.vault import generate_key
from support.api import BODY, Api
from support.tenants import Household, bearer

TOKEN = "hf_" + "q7" * 17
KEY = generate_key()


@pytest.fixture
def guarded(database_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app with keys and a key to seal with."""
    with Api.start(
        database_url, tmp_path, auth="keys", host="0.0.0.0", secret_keys=SecretStr(KEY)
    ) as running:
        yield running


@pytest.fixture
def acme(guarded: Api) -> Household:
    return Household.make(guarded.store, "acme")


@pytest.fixture
def at_once(guarded: Api) -> None:
    """Changes of keys and limits are seen at once."""
    guarded.remember_nothing()


def _settings() -> Settings:
    return Settings(_env_file=None, secret_keys=SecretStr(KEY))


@pytest.mark.usefixtures("at_once")
def test_a_key_is_made_used_rotated_and_revoked(guarded: Api, acme: Household) -> None:
    admin, client = acme.headers(Scope.ADMIN), guarded.client
    made = client.post("/keys", json={"name": "ci", "scope": "convert", "expires_in_s": 3600}, headers=admin)
    assert made.status_code == 201
    first = made.json()
    assert client.post("/convert", json=BODY, headers=bearer(first["key"])).status_code == 202

    second = client.post(f"/keys/{first['id']}/rotate", json={"overlap_s": 0}, headers=admin).json()
    assert client.get("/jobs", headers=bearer(first["key"])).json()["detail"] == "This API key has expired."
    assert client.get("/jobs", headers=bearer(second["key"])).status_code == 200

    third = client.post(f"/keys/{second['id']}/rotate", headers=admin).json()
    again = client.post(f"/keys/{second['id']}/rotate", headers=admin)
    assert (again.status_code, again.json()["code"]) == (409, "state_conflict")
    assert third["expires_at"] > second["expires_at"]

    assert client.delete(f"/keys/{second['id']}", headers=admin).status_code == 204
    assert client.get("/jobs", headers=bearer(second["key"])).json()["detail"] == "This API key was revoked."
    assert client.delete(f"/keys/{second['id']}", headers=admin).status_code == 404
    listed = {key["id"]: key for key in client.get("/keys", headers=admin).json()["keys"]}
    assert listed[second["id"]]["revoked_at"] is not None
    assert first["key"] not in client.get("/keys", headers=admin).text


def test_a_key_that_expires_stops_in_that_second_though_it_is_remembered(
    guarded: Api, acme: Household
) -> None:
    soon = guarded.store.clock() + timedelta(seconds=1)
    with guarded.store.db.write() as connection:
        connection.execute(update(ApiKey).values(expires_at=soon))
    client, headers = guarded.client, acme.headers(Scope.READ)
    assert client.get("/jobs", headers=headers).status_code == 200
    time.sleep(1.1)

    assert client.get("/jobs", headers=headers).status_code == 401


def test_an_open_event_stream_ends_with_its_key(guarded: Api, acme: Household) -> None:
    guarded.poll_events_every(0.05, key_check_s=0.1)
    threading.Timer(0.5, lambda: keys.revoke_key(guarded.store, acme.ids["key_id"])).start()
    path = f"/jobs/{acme.ids['job_id']}/events"
    with guarded.client.stream("GET", path, headers=acme.headers(Scope.READ)) as stream:
        said = stream.read().decode()

    assert "queued" in said
    assert guarded.store.jobs.get("acme", acme.ids["job_id"]).state == "queued", "the job goes on waiting"


def test_a_tenants_token_is_stored_sealed_and_never_comes_back(guarded: Api, acme: Household) -> None:
    admin, client = acme.headers(Scope.ADMIN), guarded.client
    assert client.get("/hub-token", headers=admin).json() == {"stored": False, "updated_at": None}
    put = client.put("/hub-token", json={"token": TOKEN}, headers=admin)
    assert put.json()["stored"]
    with guarded.store.db.read() as connection:
        sealed = connection.scalars(select(HubToken.sealed)).one()
    assert TOKEN not in sealed
    answers = [put, client.get("/hub-token", headers=admin), client.get("/audit", headers=admin)]
    assert not [answer for answer in answers if TOKEN in answer.text]

    assert client.delete("/hub-token", headers=admin).status_code == 204
    assert client.delete("/hub-token", headers=admin).status_code == 404


@pytest.mark.parametrize("path", ["/convert", "/precheck", "/anchor-pools"])
@pytest.mark.parametrize("key", [None, "once"])
def test_a_token_in_a_header_is_kept_for_that_job_alone(
    guarded: Api, acme: Household, path: str, key: str | None
) -> None:
    pool = guarded.store.jobs.get("acme", acme.ids["pool_id"]).request
    headers = {**acme.headers(Scope.CONVERT), "X-Hub-Token": TOKEN}
    headers |= {"Idempotency-Key": key} if key else {}
    answer = guarded.client.post(path, json=pool if path == "/anchor-pools" else BODY, headers=headers)
    assert answer.status_code == 202, answer.text

    claim = guarded.claim(answer.json()["id"])
    assert resolve_hub_token(guarded.store, _settings(), claim) == TOKEN
    assert TOKEN not in guarded.client.get(f"/jobs/{claim.job_id}", headers=headers).text
    with guarded.store.db.read() as connection:
        assert TOKEN not in connection.scalars(select(JobToken.sealed)).one()


def test_a_retry_takes_a_token_too(guarded: Api, acme: Household) -> None:
    job_id, headers = acme.ids["job_id"], acme.headers(Scope.CONVERT)
    guarded.client.post(f"/jobs/{job_id}/cancel", headers=headers)
    answer = guarded.client.post(f"/jobs/{job_id}/retry", headers={**headers, "X-Hub-Token": TOKEN})

    assert answer.status_code == 202
    assert resolve_hub_token(guarded.store, _settings(), guarded.claim(job_id)) == TOKEN


@pytest.mark.parametrize("token", ["two words", "x" * 600, ""])
def test_a_header_that_is_no_token_is_refused_without_being_quoted(
    guarded: Api, acme: Household, token: str
) -> None:
    headers = {**acme.headers(Scope.CONVERT), "X-Hub-Token": token}
    answer = guarded.client.post("/convert", json=BODY, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert "X-Hub-Token" in answer.json()["detail"]
    assert not token or token not in answer.text


def test_a_token_in_a_body_is_refused_without_being_quoted(guarded: Api, acme: Household) -> None:
    admin = acme.headers(Scope.ADMIN)
    for body in ({**BODY, "hub_token": TOKEN}, {**BODY, "adapter": {"repo_id": "a/b", "token": TOKEN}}):
        answer = guarded.client.post("/convert", json=body, headers=admin)
        assert answer.status_code == 422
        assert TOKEN not in answer.text
    wrong = guarded.client.put("/hub-token", json={"token": TOKEN, "more": TOKEN}, headers=admin)
    assert wrong.status_code == 422
    assert TOKEN not in wrong.text


def test_without_a_key_to_seal_with_a_token_is_refused_and_the_operator_told(
    empty_postgres_url: str, tmp_path: Path
) -> None:
    with Api.start(empty_postgres_url, tmp_path) as api:
        answer = api.client.post("/convert", json=BODY, headers={"X-Hub-Token": TOKEN})

    assert (answer.status_code, answer.json()["code"]) == (503, "settings_invalid")
    assert "REBASE_SECRET_KEYS" in answer.json()["detail"]
    assert TOKEN not in answer.text


@pytest.mark.usefixtures("at_once")
def test_beyond_its_rate_a_tenant_is_told_when_to_come_back_and_others_are_not(
    guarded: Api, acme: Household
) -> None:
    other = Household.make(guarded.store, "rival")
    change_limits(guarded.store, "acme", {"requests_per_minute": 3}, None)
    answers = [guarded.client.get("/jobs", headers=acme.headers(scope)) for scope in (*Scope, Scope.READ)]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    refused = answers[-1]
    assert refused.json()["code"] == "rate_limited"
    assert refused.json()["retryable"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert answers[0].headers["ratelimit-policy"] == '"tenant";q=3;w=60'
    assert answers[0].headers["ratelimit"].startswith('"tenant";r=2;t=')
    assert refused.headers["ratelimit"].startswith('"tenant";r=0;t=')
    untouched = guarded.client.get("/jobs", headers=other.headers(Scope.READ))
    assert untouched.status_code == 200
    assert "ratelimit" not in untouched.headers


@pytest.mark.usefixtures("at_once")
def test_beyond_its_jobs_a_tenant_is_told_when_there_is_room(guarded: Api, acme: Household) -> None:
    change_limits(guarded.store, "acme", {"jobs_per_day": 4}, None)
    headers = acme.headers(Scope.CONVERT)
    answers = [guarded.client.post("/convert", json=BODY, headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 429], "two jobs and a pool were there before"
    assert answers[1].json()["code"] == "quota_exceeded"
    assert int(answers[1].headers["retry-after"]) > 80_000
    limits = guarded.client.get("/limits", headers=headers).json()
    assert limits["jobs_per_day"] == 4
    with_key = {**headers, "Idempotency-Key": "k"}
    assert guarded.client.post("/convert", json=BODY, headers=with_key).status_code == 429


def test_what_is_done_with_a_key_stands_in_the_log(guarded: Api, acme: Household) -> None:
    client, convert, admin = guarded.client, acme.headers(Scope.CONVERT), acme.headers(Scope.ADMIN)
    sent = {**convert, "X-Request-Id": "mine"}
    job_id = client.post("/convert", json=BODY, headers=sent).json()["id"]
    client.post(f"/jobs/{job_id}/cancel", headers=convert)
    client.post(f"/jobs/{job_id}/retry", headers=convert)
    pool_id = acme.ids["pool_id"]
    client.delete(f"/anchor-pools/{pool_id}", headers=convert)
    key_id = client.post("/keys", json={}, headers=admin).json()["id"]
    client.put("/hub-token", json={"token": TOKEN}, headers=admin)
    for _ in range(3):
        client.get("/audit", headers=convert)

    lines = client.get("/audit", headers=admin).json()["lines"]

    assert [(line["action"], line["object"], line["outcome"]) for line in reversed(lines)] == [
        ("job.submitted", job_id, "done"),
        ("job.cancelled", job_id, "done"),
        ("job.retried", job_id, "done"),
        ("pool.deleted", pool_id, "done"),
        ("key.created", key_id, "done"),
        ("hub_token.set", "acme", "done"),
        ("request.denied", "GET /audit", "denied"),
    ], "a denied attempt leaves one line a minute"
    assert lines[-1]["request_id"] == "mine"
    assert {line["key_id"] for line in lines} <= {key.id for key in keys.list_keys(guarded.store, "acme")}
    assert list_audit_events(guarded.store.db, "rival") == []


def test_the_log_is_read_page_by_page(guarded: Api, acme: Household) -> None:
    admin = acme.headers(Scope.ADMIN)
    for _ in range(3):
        guarded.client.post("/keys", json={}, headers=admin)
    first = guarded.client.get("/audit?limit=2", headers=admin).json()
    second = guarded.client.get(f"/audit?limit=2&before={first['next_before']}", headers=admin).json()

    assert [len(page["lines"]) for page in (first, second)] == [2, 1]
    assert second["next_before"] is None


def test_a_tenants_data_is_deleted_once_its_jobs_have_stopped(guarded: Api, acme: Household) -> None:
    admin = acme.headers(Scope.ADMIN)
    claim = guarded.claim(acme.ids["job_id"])
    waiting = guarded.client.delete("/tenant-data", headers=admin)
    assert (waiting.status_code, waiting.json()["code"]) == (409, "state_conflict")
    guarded.store.queue.mark_cancelled(claim)

    assert guarded.client.delete("/tenant-data", headers=admin).status_code == 204
    assert guarded.client.get("/jobs", headers=admin).json()["jobs"] == []
    assert guarded.client.get("/anchor-pools", headers=admin).json()["pools"] == []
    assert list_audit_events(guarded.store.db, "default")[0].object == "acme"
