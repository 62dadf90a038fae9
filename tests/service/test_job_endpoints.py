"""`/jobs`: one, many, cancel, retry, diagnostics."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from starlette.testclient import TestClient

from rebase.errors import PublicError
from rebase.schemas.states import Phase
from rebase.store.records import LayerSimilarityMatrix, MetricRow
from support.api import Api

ERROR = PublicError(code="repo_not_found", message="No such repo.", hint="Check the name.")
PINS = {
    "adapter_sha": "a" * 40,
    "source_repo": "acme/base-1",
    "source_sha": "b" * 40,
    "target_sha": "c" * 40,
    "output_repo": "acme/out",
}


def test_a_running_job_shows_phase_progress_and_commits(api: Api) -> None:
    claim = api.claim(api.submit())
    api.store.queue.record_resolved(claim, **PINS)
    api.store.queue.report_progress(claim, Phase.TRANSFERRING, 3, 14, "sites", 12.4)

    answer = api.client.get(f"/jobs/{claim.job_id}")

    job = answer.json()
    assert (job["status"], job["phase"], job["attempt"]) == ("running", "transferring", 1)
    assert job["progress"] == {"done": 3, "total": 14, "unit": "sites", "eta_s": 12.4}
    assert job["resolved"] == PINS
    assert answer.headers["retry-after"] == "12"
    assert (job["done"], job["result"], job["error"]) == (False, None, None)


def test_a_done_job_has_exactly_one_of_result_and_error(api: Api) -> None:
    ended = []
    for end in (
        lambda claim: api.store.queue.succeed(claim, {"repo_id": "acme/out"}),
        lambda claim: api.store.queue.reject(claim, ERROR),
        lambda claim: api.store.queue.fail(claim, ERROR),
        api.store.queue.mark_cancelled,
    ):
        claim = api.claim(api.submit())
        end(claim)
        answer = api.client.get(f"/jobs/{claim.job_id}")
        job = answer.json()
        ended.append(job["status"])
        assert job["done"]
        assert (job["result"] is None) != (job["error"] is None)
        assert "retry-after" not in answer.headers
        assert job["finished_at"]

    assert ended == ["succeeded", "rejected", "failed", "cancelled"]


def test_a_job_that_has_not_changed_is_304_until_it_does(api: Api) -> None:
    claim = api.claim(api.submit())
    path = f"/jobs/{claim.job_id}"
    tag = api.client.get(path).headers["etag"]

    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = api.client.get(path, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)

    api.store.queue.heartbeat(claim, 60)
    assert api.client.get(path, headers={"If-None-Match": tag}).status_code == 304
    api.store.queue.report_progress(claim, Phase.READING, 1, 2)
    assert api.client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_pages_of_jobs_run_newest_first(api: Api) -> None:
    ids = [api.submit() for _ in range(5)]

    first = api.client.get("/jobs", params={"limit": 3}).json()
    second = api.client.get("/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()

    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next_cursor"] is None


def test_jobs_are_filtered(api: Api) -> None:
    api.submit()
    other = api.submit(adapter={"repo_id": "acme/other"})
    api.client.post(f"/jobs/{other}/cancel")

    for params in (
        {"state": "cancelled"},
        {"adapter": "acme/other"},
        {"adapter": "acme/other", "target": "acme/base-2"},
    ):
        assert [job["id"] for job in api.client.get("/jobs", params=params).json()["jobs"]] == [other]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=running&limit=0", "/limit"),
        ("limit=many", "/limit"),
        ("state=asleep", "/state"),
        ("cursor=nope", "/cursor"),
        ("adapter=a%00b", "/adapter"),
        ("target=../x", "/target"),
        ("status=failed", "/status"),
    ],
)
def test_a_query_that_does_not_fit_is_pointed_at(client: TestClient, query: str, pointer: str) -> None:
    answer = client.get(f"/jobs?{query}")

    assert (answer.status_code, answer.json()["pointers"]) == (422, [pointer])
    assert answer.json()["errors"][0]["location"] == "query"


def test_diagnostics_are_empty_first_and_then_what_the_worker_saved(api: Api) -> None:
    claim = api.claim(api.submit())
    path = f"/jobs/{claim.job_id}/diagnostics"
    assert api.client.get(path).json() == {
        "job_id": claim.job_id,
        "verdict": None,
        "summary": None,
        "sites": [],
        "layer_map": None,
        "evaluation": None,
    }

    api.store.queue.save_diagnostics(
        claim, {"energy": 0.9}, [{"site": "0.q_proj", "norm": 1.5}], "compatible"
    )
    answer = api.client.get(path).json()
    assert (answer["verdict"], answer["summary"]) == ("compatible", {"energy": 0.9})
    assert answer["sites"] == [{"site": "0.q_proj", "norm": 1.5}]


def test_diagnostics_show_how_alike_the_layers_are(api: Api) -> None:
    claim = api.claim(api.submit())
    told = {"coverage": 0.5, "threshold": 0.7, "positions": 900, "corpus": {"name": "some", "documents": 3}}
    layers = LayerSimilarityMatrix([[0.9, 0.25], [0.1, 0.5]], [0, 1])
    api.store.queue.save_diagnostics(claim, {"layer_map": told}, [], "uncertain", layers)

    shown = api.client.get(f"/jobs/{claim.job_id}/diagnostics").json()["layer_map"]

    assert (shown["similarity"], shown["layers"]) == ([[0.9, 0.25], [0.1, 0.5]], [0, 1])
    assert told.items() <= shown.items()
    assert shown["biased"] is None


def test_diagnostics_show_what_was_evaluated(api: Api) -> None:
    claim = api.claim(api.submit())
    told = {"score": "accuracy", "examples": {"generation": 9}, "notes": ["cut"], "settings": {"seed": 3}}
    figures = (
        MetricRow("moved", "score", 0.5, 0.25, 0.75, 9, None),
        MetricRow("moved", "retention", None, None, None, 9, "too small"),
    )
    api.store.queue.save_diagnostics(claim, {"evaluation": told}, [], "uncertain", metrics=figures)

    shown = api.client.get(f"/jobs/{claim.job_id}/diagnostics").json()["evaluation"]

    assert told.items() <= shown.items()
    assert shown["figures"] == [asdict(figure) for figure in figures]


def test_cancel_and_retry_answer_with_the_job(api: Api) -> None:
    job_id = api.submit()

    assert api.client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    retried = api.client.post(f"/jobs/{job_id}/retry")
    assert (retried.status_code, retried.json()["status"]) == (202, "queued")
    conflict = api.client.post(f"/jobs/{job_id}/retry")
    assert (conflict.status_code, conflict.json()["code"]) == (409, "state_conflict")


@pytest.mark.parametrize("path", ["/jobs/{}", "/jobs/{}/diagnostics", "/jobs/{}/events"])
@pytest.mark.parametrize("job_id", ["0" * 32, "nope", "%00", "..%2f..%2fetc"])
def test_a_job_that_is_not_there_is_404(client: TestClient, path: str, job_id: str) -> None:
    answer = client.get(path.format(job_id))

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_waiting_time_between_attempts_is_shown(api: Api) -> None:
    claim = api.claim(api.submit())
    api.store.queue.fail(claim, ERROR, 60.0)

    job = api.client.get(f"/jobs/{claim.job_id}").json()

    assert (job["status"], job["done"], job["error"]) == ("retry_wait", False, None)
    assert job["next_attempt_at"] > job["updated_at"]
