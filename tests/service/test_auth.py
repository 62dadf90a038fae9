"""Keys, tenants, and who may call a service without keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from rebase.errors import NotFound, RequestInvalid, SettingsInvalid
from rebase.logging import redact_event
from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.store import Store
from rebase.store.tables.tenants import ApiKey
from service.app import create_app
from support.api import BODY, Api


@pytest.fixture
def guarded(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app with keys."""
    with Api.start(sqlite_url, tmp_path, auth="keys", host="0.0.0.0") as running:
        yield running


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_valid_key_every_job_endpoint_is_401(guarded: Api) -> None:
    key = keys.create_key(guarded.store, "acme", "laptop")
    for headers in (
        {},
        _bearer("rb_wrong"),
        _bearer(""),
        {"Authorization": f"Basic {key}"},
        _bearer(key[:-1]),
    ):
        for method, path in (
            ("POST", "/convert"),
            ("POST", "/precheck"),
            ("GET", "/jobs"),
            ("GET", "/jobs/x"),
        ):
            answer = guarded.client.request(
                method, path, headers=headers, json=BODY if method == "POST" else None
            )
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.client.get("/livez").status_code == 200
    assert guarded.client.post("/convert", json=BODY, headers=_bearer(key)).status_code == 202


def test_one_tenant_sees_nothing_of_another(guarded: Api) -> None:
    ours, theirs = (_bearer(keys.create_key(guarded.store, name, "key")) for name in ("acme", "rival"))
    job_id = guarded.client.post("/convert", json=BODY, headers={**ours, "Idempotency-Key": "k"}).json()["id"]

    for method, path in (
        ("GET", ""),
        ("GET", "/diagnostics"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
    ):
        answer = guarded.client.request(method, f"/jobs/{job_id}{path}", headers=theirs)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert guarded.client.get("/jobs", headers=theirs).json()["jobs"] == []
    assert guarded.client.get(f"/jobs/{job_id}", headers=ours).status_code == 200
    again = guarded.client.post("/convert", json=BODY, headers={**theirs, "Idempotency-Key": "k"})
    assert again.json()["id"] != job_id


def test_a_revoked_key_stops_working(guarded: Api) -> None:
    guarded.remember_nothing()
    key = keys.create_key(guarded.store, "acme", "laptop")
    assert guarded.client.get("/jobs", headers=_bearer(key)).status_code == 200

    (record,) = keys.list_keys(guarded.store, "acme")
    keys.revoke_key(guarded.store, record.id)

    assert guarded.client.get("/jobs", headers=_bearer(key)).status_code == 401
    with pytest.raises(NotFound):
        keys.revoke_key(guarded.store, record.id)


def test_only_the_hash_of_a_key_is_stored(store: Store) -> None:
    key = keys.create_key(store, "acme", "laptop")
    with store.db.read() as connection:
        row = connection.execute(select(ApiKey.__table__)).one()

    assert key.startswith("rb_")
    assert len(key) > 40
    assert key not in json.dumps([str(value) for value in row])
    assert key.startswith(row.prefix)
    known = keys.identify_key(store, key)
    assert known is not None
    assert known.tenant_id == "acme"


@pytest.mark.parametrize(("tenant", "name"), [("", "n"), ("Acme Inc", "n"), ("acme", ""), ("a" * 65, "n")])
def test_a_key_for_a_tenant_or_name_that_is_none_is_refused(store: Store, tenant: str, name: str) -> None:
    with pytest.raises(RequestInvalid):
        keys.create_key(store, tenant, name)


def test_neither_logs_nor_answers_repeat_a_key(guarded: Api) -> None:
    key = keys.create_key(guarded.store, "acme", "laptop")
    with capture_logs() as lines:
        answers = [
            guarded.client.get("/jobs", headers=_bearer(key)),
            guarded.client.get("/jobs", headers=_bearer(f"{key}x")),
            guarded.client.get(f"/jobs?cursor={key}", headers=_bearer(key)),
        ]

    assert len(lines) >= 3
    assert key not in str(lines)
    assert all(key not in answer.text for answer in answers)


def test_secrets_are_blanked_by_name_and_by_shape() -> None:
    event = {
        "event": "with hf_abcdefghijklmnop inside",
        "authorization": "Bearer x",
        "url": "redis://user:pass@host/0",
        "key_shape": "rb_0123456789abcdef",
        "job_id": "0123",
    }

    assert redact_event(None, "info", event) == {
        "event": "with [redacted] inside",
        "authorization": "[redacted]",
        "url": "redis://[redacted]@host/0",
        "key_shape": "[redacted]",
        "job_id": "0123",
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "rebase.example"])
def test_without_keys_the_service_refuses_to_listen_beyond_this_machine(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="loopback"):
        create_app(Settings(_env_file=None, host=host, home=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_keys_loopback_is_fine(host: str, tmp_path: Path) -> None:
    create_app(Settings(_env_file=None, host=host, home=tmp_path)).state.service.store.db.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", "127.0.0.1.evil.example"])
def test_without_keys_a_page_that_calls_under_its_own_name_is_refused(api: Api, host: str) -> None:
    answer = api.client.get("/jobs", headers={"Host": host})

    assert (answer.status_code, answer.json()["code"]) == (403, "loopback_only")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://evil.example:8000", "null", "evil.example"]
)
def test_without_keys_a_page_from_elsewhere_that_calls_by_our_name_is_refused(api: Api, origin: str) -> None:
    answer = api.client.post("/callback-secrets", headers={"Host": "127.0.0.1:8000", "Origin": origin})

    assert (answer.status_code, answer.json()["code"]) == (403, "loopback_only")
    assert api.client.get("/callback-secrets").json() == {"secrets": []}


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]:8000"])
def test_without_keys_a_page_from_this_machine_is_served(api: Api, origin: str) -> None:
    assert api.client.post("/callback-secrets", headers={"Origin": origin}).status_code == 201


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "app.localhost"]
)
def test_without_keys_local_names_are_served(api: Api, host: str) -> None:
    assert api.client.get("/jobs", headers={"Host": host}).status_code == 200


def test_without_keys_a_peer_from_elsewhere_is_refused_even_when_the_server_listens_everywhere(
    api: Api,
) -> None:
    far = TestClient(api.client.app, base_url="http://127.0.0.1", client=("192.0.2.7", 1234))

    assert far.get("/jobs").status_code == 403
