"""`GET /jobs/{id}/events`: history from SQL, live progress, resumption."""

from __future__ import annotations

import json
import threading
from typing import Any

import fastapi.routing
import pytest

from rebase.schemas.states import Phase
from support.api import Api


def _messages(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append({**fields, "id": int(fields["id"]), "data": json.loads(fields["data"])})
    return found


def test_the_stream_of_a_done_job_tells_its_history_and_ends(api: Api) -> None:
    claim = api.claim(api.submit())
    api.store.queue.report_progress(claim, Phase.READING, 1, 2)
    api.store.queue.succeed(claim, {"ok": True})

    answer = api.client.get(f"/jobs/{claim.job_id}/events")

    messages = _messages(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [(one["event"], one["data"].get("state")) for one in messages] == [
        ("state", "queued"),
        ("state", "running"),
        ("phase", None),
        ("state", "succeeded"),
    ]
    assert [one["id"] for one in messages] == sorted({one["id"] for one in messages})


def test_a_stream_resumes_after_the_last_event_that_was_seen(api: Api) -> None:
    job_id = api.submit()
    api.client.post(f"/jobs/{job_id}/cancel")
    everything = _messages(api.client.get(f"/jobs/{job_id}/events").text)

    rest = api.client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": str(everything[0]["id"])})

    assert _messages(rest.text) == everything[1:]


def test_a_long_history_comes_whole(api: Api) -> None:
    job_id = api.submit()
    for _ in range(150):
        api.store.jobs.cancel("default", job_id)
        api.store.jobs.retry("default", job_id)
    api.store.jobs.cancel("default", job_id)

    assert len(_messages(api.client.get(f"/jobs/{job_id}/events").text)) == 302


def test_progress_arrives_while_the_job_runs(api: Api) -> None:
    api.poll_events_every(0.02)
    claim = api.claim(api.submit())

    def work() -> None:
        for done in range(1, 6):
            api.store.queue.report_progress(claim, Phase.TRANSFERRING, done, 5, "sites")
            threading.Event().wait(0.06)
        api.store.queue.succeed(claim, {})

    worker = threading.Thread(target=work)
    worker.start()
    messages = _messages(api.client.get(f"/jobs/{claim.job_id}/events").text)
    worker.join()

    live = [one for one in messages if one["event"] == "progress" and one["data"]["progress"]]
    assert [one["data"]["progress"]["done"] for one in live] == sorted(
        one["data"]["progress"]["done"] for one in live
    )
    assert len(live) >= 2
    assert messages[-1]["data"]["state"] == "succeeded"
    ids = [one["id"] for one in messages]
    assert ids == sorted(ids)


def test_a_quiet_stream_is_kept_alive_by_comments(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    api.poll_events_every(0.2)
    claim = api.claim(api.submit())
    threading.Timer(0.4, lambda: api.store.queue.succeed(claim, {})).start()

    assert ": ping" in api.client.get(f"/jobs/{claim.job_id}/events").text


@pytest.mark.parametrize("value", ["-1", "soon", str(2**63)])
def test_an_id_that_is_none_is_refused_before_the_stream_begins(api: Api, value: str) -> None:
    answer = api.client.get(f"/jobs/{api.submit()}/events", headers={"Last-Event-ID": value})

    assert (answer.status_code, answer.json()["errors"][0]["location"]) == (422, "header")
