"""`POST /convert` and `POST /precheck`."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rebase.errors import Busy
from rebase.settings import Settings
from rebase.store import job_submission
from rebase.store.database import Database
from rebase.store.store import Store
from service.app import create_app
from service.group_commit import GroupCommitter
from support.api import BODY, Api
from support.databases import a_request


def test_a_conversion_is_accepted_with_where_and_when_to_look(api: Api) -> None:
    answer = api.client.post("/convert", json=BODY)

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["kind"], job["status"], job["done"], job["attempt"]) == ("convert", "queued", False, 0)
    shared = {"layer_scale": True, "fold": False, "refine": None, "dare": None}
    defaults = {**shared, "train": False, "candidates": None}
    assert job["request"]["method"] == {"name": "auto", **defaults}
    assert api.client.get(answer.headers["location"]).json() == job


def test_the_bell_rings_soon_and_outside_the_request(api: Api) -> None:
    job_id = api.submit()

    until = time.monotonic() + 5
    while not api.rung and time.monotonic() < until:
        time.sleep(0.01)
    assert api.rung == [job_id]


def test_a_precheck_is_a_job_of_its_own_kind(client: TestClient) -> None:
    assert client.post("/precheck", json=BODY).json()["kind"] == "precheck"


@pytest.mark.parametrize("path", ["/convert", "/precheck"])
def test_a_key_is_good_for_one_request(client: TestClient, path: str) -> None:
    headers = {"Idempotency-Key": "a-key"}
    first = client.post(path, json=BODY, headers=headers)
    again = client.post(path, json={**BODY, "method": "auto", "source": None}, headers=headers)
    other = client.post(path, json={**BODY, "method": "copy"}, headers=headers)

    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_a_key_in_flight_is_a_conflict_that_may_be_tried_again(api: Api) -> None:
    with job_submission._reserve_key("default", "a-key"):
        answer = api.client.post("/convert", json=BODY, headers={"Idempotency-Key": "a-key"})

    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_flight")
    assert "retry-after" in answer.headers
    assert api.client.post("/convert", json=BODY, headers={"Idempotency-Key": "a-key"}).status_code == 202


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"adapter": {}}, ["/adapter/repo_id"]),
        ({"adapter": {"repo_id": "../../etc/passwd"}}, ["/adapter/repo_id"]),
        ({"target": None}, ["/target"]),
        ({"target": {"repo_id": "a/b", "revision": ""}}, ["/target/revision"]),
        ({"method": "magic"}, ["/method"]),
        ({"method": {"rank": 3}}, ["/method"]),
        ({"method": {"name": "cross_lora", "rank": 0}}, ["/method/rank"]),
        ({"method": {"name": "cross_lora", "rank": 1e400}}, ["/method/rank"]),
        ({"method": {"name": "cross_lora", "rnak": 3, "norm": 7}}, ["/method/norm", "/method/rnak"]),
        ({"method": {"name": "copy", "dare": {"p": "sweep"}}}, ["/method/dare/p"]),
        ({"method": {"name": "auto", "candidates": ["copy"]}}, ["/method/candidates"]),
        ({"method": {"name": "auto", "candidates": []}}, ["/method/candidates"]),
        ({"method": {"name": "auto", "candidates": ["copy", "auto"]}}, ["/method/candidates/1"]),
        (
            {"method": {"name": "auto", "candidates": [{"name": "copy", "pad": 3}]}},
            ["/method/candidates/0/pad"],
        ),
        ({"output": {"repo_id": "no-owner"}}, ["/output/repo_id"]),
        ({"output": {"dtype": "int8", "max_rank": -1}}, ["/output/dtype", "/output/max_rank"]),
        ({"a/b~c": 1}, ["/a~1b~0c"]),
        ({"evaluate": {}}, ["/evaluate"]),
        ({"evaluate": {"examples": [{"prompt": "a"}]}}, ["/evaluate/examples/0/answer"]),
        ({"evaluate": {"examples": [{"text": "ab"}], "seed": -1}}, ["/evaluate/seed"]),
        ({"callback": {"url": "http://a.example"}}, ["/callback/url"]),
        ({"source": {"repo_id": "acme/base-2"}}, [""]),
    ],
)
def test_a_field_that_does_not_fit_is_pointed_at(
    api: Api, changes: dict[str, object], pointers: list[str]
) -> None:
    body = json.dumps({**BODY, **changes})
    answer = api.client.post("/convert", content=body, headers={"Content-Type": "application/json"})

    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert sorted(problem["pointers"]) == sorted(pointers)
    assert [error["pointer"] for error in problem["errors"]] == problem["pointers"]
    assert problem["detail"]
    assert api.store.jobs.list("default").jobs == ()


def test_a_locked_database_is_a_503_that_says_when_to_come_back(sqlite_url: str, tmp_path: Path) -> None:
    with Api.start(sqlite_url, tmp_path) as api:
        api.store.db.close()
        api.store.db = Database.open(sqlite_url, timeout_s=0.05)
        holder = Database.open(sqlite_url)
        with holder.write():
            for headers in ({}, {"Idempotency-Key": "k"}):
                answer = api.client.post("/convert", json=BODY, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (503, "busy")
                assert int(answer.headers["retry-after"]) > 0
        holder.close()
        assert api.client.post("/convert", json=BODY).status_code == 202


def test_a_database_that_is_not_there_is_a_503(tmp_path: Path) -> None:
    with Api.start("postgresql://postgres@127.0.0.1:1/none", tmp_path) as api:
        assert api.client.post("/convert", json=BODY).status_code == 503
        assert api.client.get("/jobs").status_code == 503
        assert api.client.get("/readyz").status_code == 503
        assert api.client.get("/livez").status_code == 200
        assert api.client.get("/metrics").status_code == 200


def test_a_broker_that_is_down_keeps_no_job_out(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(
        _env_file=None,
        database_url=sqlite_url,
        home=tmp_path,
        broker_url="redis://127.0.0.1:1/0",
        sweep_s=0.1,
    )
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post("/convert", json=BODY).status_code == 202
        until = time.monotonic() + 5
        while client.get("/readyz").json()["broker"] != "unreachable" and time.monotonic() < until:
            time.sleep(0.05)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["broker"]) == (200, "unreachable")
        assert app.state.service.store.outbox.count_pending() == 1


def test_submissions_that_arrive_together_share_transactions(database_url: str) -> None:
    db = Database.open(database_url)
    store = Store(db)
    sizes: list[int] = []
    write_many = store.submissions.submit_batch

    def counting(requests):  # type: ignore[no-untyped-def]
        sizes.append(len(requests))
        time.sleep(0.02)
        return write_many(requests)

    store.submissions.submit_batch = counting  # type: ignore[method-assign]
    intake = GroupCommitter(store)
    intake.start()

    async def burst() -> list[str]:
        submit = intake.submit
        jobs = await asyncio.gather(*(submit("default", "convert", a_request()) for _ in range(50)))
        return [job.id for job in jobs]

    ids = asyncio.run(burst())
    intake.stop()

    assert len(set(ids)) == 50
    assert sum(sizes) == 50
    assert len(sizes) < 10
    assert {job.id for job in store.jobs.list("default", limit=200).jobs} == set(ids)
    assert store.outbox.count_pending() == 50
    db.close()


def test_a_transaction_that_fails_is_told_to_everybody_in_it(sqlite_url: str) -> None:
    holder, db = Database.open(sqlite_url), Database.open(sqlite_url, timeout_s=0.05)
    intake = GroupCommitter(Store(db))
    intake.start()

    async def burst() -> list[object]:
        submit = intake.submit
        waiting = [submit("default", "convert", a_request()) for _ in range(5)]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    with holder.write():
        answers = asyncio.run(burst())
    intake.stop()
    holder.close()
    db.close()

    assert [type(answer) for answer in answers] == [Busy] * 5


def test_a_pasted_address_is_recorded_as_repo_revision_and_subfolder(client: TestClient) -> None:
    address = "https://huggingface.co/acme/library/tree/refs%2Fpr%2F3/sql/checkpoint-500"
    job = client.post("/convert", json={**BODY, "adapter": {"repo_id": address}}).json()

    fields = {"repo_id": "acme/library", "revision": "refs/pr/3", "subfolder": "sql/checkpoint-500"}
    assert job["request"]["adapter"] == fields
    assert client.get("/jobs", params={"adapter": "acme/library"}).json()["jobs"][0]["id"] == job["id"]


def test_another_subfolder_is_another_request(client: TestClient) -> None:
    headers = {"Idempotency-Key": "a-key"}
    adapters = [{"repo_id": "acme/library", "subfolder": name} for name in ("sql", "sql/", "poems")]
    first, again, other = (
        client.post("/convert", json={**BODY, "adapter": adapter}, headers=headers) for adapter in adapters
    )

    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("adapter", "pointer", "cause"),
    [
        ({"repo_id": "acme/x", "subfolder": "../y"}, "/adapter/subfolder", "without '..'"),
        ({"repo_id": "acme/x", "subfolder": "/etc"}, "/adapter/subfolder", "relative folder"),
        ({"repo_id": "acme/x", "subfolder": "a\\b"}, "/adapter/subfolder", "backslash"),
        ({"repo_id": "acme/x", "subfolder": 7}, "/adapter/subfolder", "string"),
        ({"repo_id": "https://github.com/acme/x"}, "/adapter", "'github.com', which is not the Hub"),
        (
            {"repo_id": "https://huggingface.co/acme/x/tree/v1", "revision": "v2"},
            "/adapter",
            "names the revision 'v1', but revision is 'v2'",
        ),
    ],
)
def test_a_reference_that_is_wrong_is_refused_with_its_cause(
    client: TestClient, adapter: dict[str, object], pointer: str, cause: str
) -> None:
    answer = client.post("/convert", json={**BODY, "adapter": adapter})

    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["pointer"]) == (422, pointer)
    assert cause in error["detail"]
