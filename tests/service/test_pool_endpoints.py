"""`/anchor-pools`, and conversions that name a pool."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from rebase.errors import PublicError
from rebase.store import api_keys as keys
from rebase.store import job_submission
from support.api import BODY, Api
from support.pools import COMMIT, NEW, OLD, finish_pool, pool_body

METHOD = "anchor_ridge"


def _register(api: Api, **changes: Any) -> str:
    answer = api.client.post("/anchor-pools", json=pool_body(**changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _ready(api: Api, **changes: Any) -> str:
    pool_id = _register(api, **changes)
    finish_pool(api.store, pool_id)
    return pool_id


def _convert(api: Api, pool_id: str, path: str = "/convert", key: str | None = None, **changes: Any) -> Any:
    body = {**BODY, "method": {"name": METHOD, "pool": pool_id}, **changes}
    return api.client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})


def test_a_pool_is_accepted_with_where_and_when_to_look(api: Api) -> None:
    answer = api.client.post("/anchor-pools", json=pool_body(name="tiny tasks"))

    pool = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/anchor-pools/{pool['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (pool["state"], pool["name"], pool["anchor_count"]) == ("validating", "tiny tasks", 3)
    assert pool["source"] == {"repo_id": OLD, "revision": "main"}
    assert pool["anchors"][1] == {
        "source": {"repo_id": "acme/task-1-old", "revision": "main"},
        "target": {"repo_id": "acme/task-1-new", "revision": "main"},
        "domain": "chat",
    }
    assert (pool["sites"], pool["warnings"], pool["measurements"], pool["error"]) == (None, [], {}, None)
    again = api.client.get(answer.headers["location"])
    assert (again.status_code, again.json()) == (200, pool)
    assert "retry-after" in again.headers
    assert pool["links"]["self"] == answer.headers["location"]
    assert api.client.get(pool["links"]["job"]).json()["kind"] == "pool"


def test_its_bell_rings_soon_and_its_job_is_listed(api: Api) -> None:
    pool_id = _register(api)

    until = time.monotonic() + 5
    while not api.rung and time.monotonic() < until:
        time.sleep(0.01)
    assert api.rung == [pool_id]
    (job,) = api.client.get("/jobs", params={"adapter": OLD, "target": NEW}).json()["jobs"]
    assert (job["id"], job["kind"], job["status"]) == (pool_id, "pool", "queued")
    assert job["links"]["pool"] == f"/anchor-pools/{pool_id}"
    assert job["request"] == {**pool_body(), "name": None} | {
        side: api.client.get(job["links"]["pool"]).json()[side] for side in ("source", "target", "anchors")
    }


def test_a_ready_pool_shows_commits_and_what_was_measured(api: Api) -> None:
    pool_id = _ready(api)

    answer = api.client.get(f"/anchor-pools/{pool_id}")

    pool = answer.json()
    assert "retry-after" not in answer.headers
    assert (pool["state"], pool["sites"], pool["measurements"]) == ("ready", 14, {"loo_error": 0.25})
    assert pool["warnings"] == ["acme/task-0-old names another base."]
    assert {pool["source"]["revision"], pool["anchors"][2]["target"]["revision"]} == {COMMIT}
    assert '"state":"succeeded"' in api.client.get(pool["links"]["events"]).text.replace(" ", "")


def test_an_invalid_pool_says_why_and_can_be_tried_again(api: Api) -> None:
    pool_id = _register(api)
    error = PublicError(code="repo_not_found", message="No such repo.", pointer="/anchors/1/target")
    api.store.queue.fail(api.claim(pool_id), error)

    pool = api.client.get(f"/anchor-pools/{pool_id}").json()
    assert (pool["state"], pool["error"]) == ("invalid", error.model_dump())
    assert pool["anchors"][1]["target"]["revision"] == "main"

    assert api.client.post(f"/jobs/{pool_id}/retry").status_code == 202
    again = api.client.get(f"/anchor-pools/{pool_id}").json()
    assert (again["state"], again["error"]) == ("validating", None)


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"source": {}}, ["/source/repo_id"]),
        ({"source": None}, ["/source"]),
        ({"target": {"repo_id": "../etc"}}, ["/target/repo_id"]),
        ({"target": {"repo_id": OLD}}, [""]),
        ({"anchors": []}, ["/anchors"]),
        ({"anchors": pool_body(1)["anchors"]}, ["/anchors"]),
        ({"anchors": pool_body(1)["anchors"] * 2}, [""]),
        ({"anchors": pool_body(257)["anchors"]}, ["/anchors"]),
        ({"name": ""}, ["/name"]),
        ({"nmae": "x"}, ["/nmae"]),
        ({"anchors": [*pool_body(2)["anchors"], {"source": {"repo_id": "a/b"}}]}, ["/anchors/2/target"]),
        (
            {"anchors": [*pool_body(2)["anchors"], {**pool_body(1)["anchors"][0], "domain": "<b>"}]},
            ["/anchors/2/domain"],
        ),
    ],
)
def test_a_field_that_does_not_fit_is_pointed_at(
    api: Api, changes: dict[str, Any], pointers: list[str]
) -> None:
    answer = api.client.post("/anchor-pools", json=pool_body(**changes))

    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["pointers"] == pointers
    assert problem["detail"]
    assert api.client.get("/anchor-pools").json()["pools"] == []
    assert api.client.get("/jobs").json()["jobs"] == []


def test_the_largest_pool_with_commits_fits_into_a_body(client: TestClient) -> None:
    body = pool_body(256)
    for anchor in body["anchors"]:
        for side in ("source", "target"):
            anchor[side] = {"repo_id": f"acme/qwen2.5-{anchor[side]['repo_id'][5:]}", "revision": COMMIT}
    compact = json.dumps(body, separators=(",", ":"))

    answer = client.post("/anchor-pools", content=compact, headers={"Content-Type": "application/json"})

    assert answer.status_code == 202, answer.text
    assert len(answer.json()["anchors"]) == 256


def test_a_key_is_good_for_one_pool(client: TestClient) -> None:
    headers = {"Idempotency-Key": "a-key"}
    first = client.post("/anchor-pools", json=pool_body(), headers=headers)
    again = client.post("/anchor-pools", json=pool_body(name=None), headers=headers)
    other = client.post("/anchor-pools", json=pool_body(4), headers=headers)
    convert = client.post("/convert", json=BODY, headers=headers)

    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    for answer in (other, convert):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    client.delete(first.headers["location"])
    gone = client.post("/anchor-pools", json=pool_body(), headers=headers)
    assert (gone.status_code, gone.json()["code"]) == (409, "state_conflict")


def test_a_key_in_flight_is_a_conflict_that_may_be_tried_again(api: Api) -> None:
    headers = {"Idempotency-Key": "a-key"}
    with job_submission._reserve_key("default", "a-key"):
        answer = api.client.post("/anchor-pools", json=pool_body(), headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_flight")
    assert api.client.post("/anchor-pools", json=pool_body(), headers=headers).status_code == 202


def test_pools_are_listed_newest_first_in_pages_and_by_base(api: Api) -> None:
    ids = [_register(api) for _ in range(3)]
    other = _register(api, target={"repo_id": "acme/base-3"})

    def listed(**params: Any) -> Any:
        answer = api.client.get("/anchor-pools", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [pool["id"] for pool in listed(source=OLD, target=NEW)["pools"]] == ids[::-1]
    assert [pool["id"] for pool in listed(target="acme/base-3")["pools"]] == [other]
    page = listed(limit=3)
    assert [pool["id"] for pool in page["pools"]] == [other, *ids[:0:-1]]
    rest = listed(limit=3, cursor=page["next_cursor"])
    assert ([pool["id"] for pool in rest["pools"]], rest["next_cursor"]) == ([ids[0]], None)
    assert listed()["pools"][0] == api.client.get(f"/anchor-pools/{other}").json()


@pytest.mark.parametrize(
    "query", ["sorce=a/b", "source=../etc", "limit=0", "limit=201", "cursor=!", "state=x"]
)
def test_a_query_that_means_nothing_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/anchor-pools?{query}")

    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert answer.json()["pointers"] == [f"/{query.partition('=')[0]}"]
    assert answer.json()["errors"][0]["location"] == "query"


def test_a_deleted_pool_is_gone_and_its_job_stays(api: Api) -> None:
    pool_id = _ready(api)

    answer = api.client.delete(f"/anchor-pools/{pool_id}")

    assert (answer.status_code, answer.content) == (204, b"")
    for method in ("GET", "DELETE"):
        again = api.client.request(method, f"/anchor-pools/{pool_id}")
        assert (again.status_code, again.json()["code"]) == (404, "not_found")
    assert api.client.get("/anchor-pools").json()["pools"] == []
    assert api.client.get(f"/jobs/{pool_id}").json()["status"] == "succeeded"


def test_deleting_a_pool_that_is_being_validated_cancels_its_job(api: Api) -> None:
    waiting, running = _register(api), _register(api)
    claim = api.claim(running)

    for pool_id in (waiting, running):
        assert api.client.delete(f"/anchor-pools/{pool_id}").status_code == 204

    assert api.client.get(f"/jobs/{waiting}").json()["status"] == "cancelled"
    assert api.client.get(f"/jobs/{running}").json()["cancel_requested"] is True
    assert api.store.queue.heartbeat(claim, 60)
    refused = api.client.post(f"/jobs/{waiting}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "state_conflict")


@pytest.mark.parametrize("pool_id", ["nope", "0" * 32, "%00", "..%2Fjobs"])
def test_a_pool_that_is_not_there_is_404(client: TestClient, pool_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert client.request(method, f"/anchor-pools/{pool_id}").status_code == 404


@pytest.mark.parametrize("path", ["/convert", "/precheck"])
def test_a_conversion_may_name_a_ready_pool(api: Api, path: str) -> None:
    pool_id = _ready(api)

    answer = _convert(api, pool_id, path, source={"repo_id": OLD})

    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["method"]["pool"] == pool_id


@pytest.mark.parametrize("path", ["/convert", "/precheck"])
def test_a_conversion_that_names_a_pool_it_cannot_use_is_refused_before_it_is_a_job(
    api: Api, path: str
) -> None:
    ready, validating, invalid, deleted = _ready(api), _register(api), _register(api), _ready(api)
    api.store.queue.fail(api.claim(invalid), PublicError(code="unsafe_file", message="A pickle."))
    api.client.delete(f"/anchor-pools/{deleted}")
    job = api.submit()

    def refused(pool_id: str, **changes: Any) -> tuple[int, str, list[str]]:
        for key in (None, f"key-{pool_id}"):
            answer = _convert(api, pool_id, path, key, **changes)
            problem = answer.json()
            assert problem["detail"]
            assert problem["errors"][0]["location"] == "body"
        return answer.status_code, problem["code"], problem["pointers"]

    where = ["/method/pool"]
    assert refused(validating) == refused(invalid) == (409, "state_conflict", where)
    for nothing in ("0" * 32, deleted, job):
        assert refused(nothing) == (404, "not_found", where)
    assert refused(ready, target={"repo_id": "acme/base-3"}) == (422, "request_invalid", where)
    assert refused(ready, source={"repo_id": "acme/base-0"}) == (422, "request_invalid", where)
    assert [job["kind"] for job in api.client.get("/jobs").json()["jobs"]].count("precheck") == 0


def test_a_pool_that_a_candidate_names_is_looked_at_in_the_same_way(api: Api) -> None:
    ready, validating = _ready(api), _register(api)
    examples = {"examples": [{"text": "Some text."}]}

    def answer(*pools: str) -> Any:
        candidates = ["copy", *({"name": METHOD, "pool": pool} for pool in pools)]
        method = {"name": "auto", "candidates": candidates}
        return api.client.post("/convert", json={**BODY, "method": method, "evaluate": examples})

    assert answer(ready).status_code == 202
    refused = answer(ready, validating)
    assert (refused.status_code, refused.json()["pointers"]) == (409, ["/method/candidates/2/pool"])


def test_what_a_key_has_made_is_not_refused_when_its_pool_has_gone_since(api: Api) -> None:
    pool_id = _ready(api)
    first = _convert(api, pool_id, key="k")
    api.client.delete(f"/anchor-pools/{pool_id}")

    again = _convert(api, pool_id, key="k")

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert _convert(api, pool_id).status_code == 404


@pytest.mark.parametrize("method", ["auto", METHOD, "copy"])
def test_a_conversion_that_names_no_pool_asks_the_database_nothing_about_pools(api: Api, method: str) -> None:
    statements: list[str] = []
    event.listen(api.store.db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    assert api.client.post("/convert", json={**BODY, "method": method}).status_code == 202

    assert statements
    assert not [statement for statement in statements if "anchor_pools" in statement]


@pytest.fixture
def guarded(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    """The app with keys."""
    with Api.start(sqlite_url, tmp_path, auth="keys", host="0.0.0.0") as running:
        yield running


def test_without_a_valid_key_every_pool_endpoint_is_401(guarded: Api) -> None:
    for headers in ({}, {"Authorization": "Bearer rb_wrong"}):
        for method, path in (("POST", ""), ("GET", ""), ("GET", "/x"), ("DELETE", "/x")):
            body = pool_body() if method == "POST" else None
            answer = guarded.client.request(method, f"/anchor-pools{path}", headers=headers, json=body)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")


def test_one_tenant_sees_and_uses_nothing_of_another(guarded: Api) -> None:
    ours, theirs = (
        {"Authorization": f"Bearer {keys.create_key(guarded.store, name, 'key')}"}
        for name in ("acme", "rival")
    )
    client = guarded.client
    made = client.post("/anchor-pools", json=pool_body(), headers={**ours, "Idempotency-Key": "k"})
    pool_id = made.json()["id"]
    finish_pool(guarded.store, pool_id)

    for method, path in (
        ("GET", f"/anchor-pools/{pool_id}"),
        ("DELETE", f"/anchor-pools/{pool_id}"),
        ("GET", f"/jobs/{pool_id}"),
        ("GET", f"/jobs/{pool_id}/events"),
        ("POST", f"/jobs/{pool_id}/cancel"),
        ("POST", f"/jobs/{pool_id}/retry"),
    ):
        answer = client.request(method, path, headers=theirs)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert client.get("/anchor-pools", headers=theirs).json()["pools"] == []
    body = {**BODY, "method": {"name": METHOD, "pool": pool_id}}
    assert client.post("/convert", json=body, headers=theirs).status_code == 404
    assert client.post("/convert", json=body, headers=ours).status_code == 202
    again = client.post("/anchor-pools", json=pool_body(), headers={**theirs, "Idempotency-Key": "k"})
    assert again.json()["id"] != pool_id
    assert [pool["id"] for pool in client.get("/anchor-pools", headers=ours).json()["pools"]] == [pool_id]


def test_the_schema_describes_the_endpoints(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()

    assert set(schema["paths"]["/anchor-pools"]) == {"get", "post"}
    assert set(schema["paths"]["/anchor-pools/{pool_id}"]) == {"get", "delete"}
    assert {"202", "4XX"} <= set(schema["paths"]["/anchor-pools"]["post"]["responses"])
    assert set(schema["paths"]["/anchor-pools/{pool_id}"]["delete"]["responses"]) >= {"204"}
    assert {"PoolOut", "PoolListOut", "PoolRequest", "AnchorSpec"} <= set(schema["components"]["schemas"])
