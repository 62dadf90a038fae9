"""A full run with real processes, then a search of everything that was written for every secret of it.

API and worker, a Redis broker, the stand-in Hub over HTTP, two tenants with tokens of each kind, a job that
succeeds, one that fails and one that is refused.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

import migrations
from benchmarks.processes import api, environment, free_port, wait_ready, worker
from rebase.store import api_keys as keys
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.vault import generate_key
from support.redis_server import own_redis
from support.standin_hub import StandinHub
from support.tenants import bearer
from support.tiny_repos import ADAPTER, NEW, OLD, make_hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]

DEPLOYMENTS, TENANTS, REQUESTS, UNKNOWN = (f"hf_{letter * 34}" for letter in "DTRU")


@dataclass(frozen=True)
class Run:
    """Where everything lies, and what was answered."""

    home: Path
    redis_url: str
    hub: StandinHub
    answers: list[str]
    secrets: dict[str, str]
    jobs: dict[str, dict[str, Any]]


def _finished(client: httpx2.Client, job_id: str, answers: list[str]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answer = client.get(f"/jobs/{job_id}")
        job: dict[str, Any] = answer.json()
        if job["done"]:
            answers += [answer.text, client.get(f"/jobs/{job_id}/diagnostics").text]
            answers.append(client.get(f"/jobs/{job_id}/events").text)
            return job
        time.sleep(0.1)
    raise TimeoutError(str(job))


def _everything(client: httpx2.Client, answers: list[str]) -> dict[str, dict[str, Any]]:
    """Three jobs, and every way in which a token could be sent wrongly."""
    body = {"adapter": {"repo_id": ADAPTER}, "target": {"repo_id": NEW}, "method": "copy"}
    sent = {
        "by request": ({**body, "output": {"repo_id": "rita/out"}}, {"X-Hub-Token": REQUESTS}),
        "by tenant": ({**body, "output": {"repo_id": "tom/out"}}, {}),
        "refused by the Hub": ({**body, "output": {"repo_id": "tom/nope"}}, {"X-Hub-Token": UNKNOWN}),
        "absent": ({**body, "adapter": {"repo_id": "acme/nothing"}}, {"X-Hub-Token": REQUESTS}),
    }
    answers.append(client.put("/hub-token", json={"token": TENANTS}).text)
    jobs = {}
    for name, (request, headers) in sent.items():
        answer = client.post("/convert", json=request, headers=headers)
        answers.append(answer.text)
        jobs[name] = _finished(client, answer.json()["id"], answers)
    wrong: list[tuple[str, Any, dict[str, str]]] = [
        ("/convert", {**body, "hub_token": REQUESTS}, {}),
        ("/convert", body, {"X-Hub-Token": f"{REQUESTS} {REQUESTS}"}),
        (f"/jobs?cursor={REQUESTS}", None, {}),
        (f"/{REQUESTS}", None, {}),
        ("/jobs", None, {"Authorization": f"Bearer {REQUESTS}"}),
    ]
    for path, request, headers in wrong:
        verb = "POST" if request is not None else "GET"
        answer = client.request(verb, path, json=request, headers=headers)
        assert answer.status_code >= 400
        answers.append(answer.text)
    answers += [client.get(path).text for path in ("/audit", "/keys", "/hub-token", "/jobs", "/metrics")]
    return jobs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("home")
    repos = make_hub(home / "repos")
    url = f"sqlite:///{home / 'rebase.db'}"
    migrations.upgrade(url)
    store = Store(Database.open(url))
    key = keys.create_key(store, "tom", "laptop")
    store.db.close()
    vault_key = generate_key()
    with ExitStack() as stack:
        hub, redis_url = stack.enter_context(StandinHub()), stack.enter_context(own_redis())
        for token, user in ((DEPLOYMENTS, "deployment"), (TENANTS, "tom"), (REQUESTS, "rita")):
            hub.add_token(token, user=user)
        for repo_id in (OLD, NEW, ADAPTER):
            hub.add_repo(repo_id, repos / repo_id)
        env = environment(
            home,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(home / "hf"),
            HF_HUB_DISABLE_XET="1",
            REBASE_AUTH="keys",
            REBASE_REDIS_URL=redis_url,
            REBASE_HUB_TOKEN=DEPLOYMENTS,
            REBASE_SECRET_KEYS=vault_key,
            REBASE_SWEEP_S="0.5",
            REBASE_RETRY_BASE_S="0.2",
            REBASE_LOG_LEVEL="debug",
            REBASE_LOG_FORMAT="json",
        )
        port = free_port()
        processes = [api(home, env, port), worker(home, env)]
        for process in processes:
            process.start()
            stack.callback(process.stop)
        wait_ready(f"http://127.0.0.1:{port}")
        answers: list[str] = []
        base = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=base, headers=bearer(key), timeout=30) as client:
            jobs = _everything(client, answers)
        secrets = {
            "key": key,
            "deployment": DEPLOYMENTS,
            "tenant": TENANTS,
            "request": REQUESTS,
            "unknown": UNKNOWN,
            "vault": vault_key,
        }
        yield Run(home, redis_url, hub, answers, secrets, jobs)


def test_the_run_was_a_full_one(run: Run) -> None:
    states = {name: job["status"] for name, job in run.jobs.items()}

    assert states == {
        "by request": "succeeded",
        "by tenant": "succeeded",
        "refused by the Hub": "failed",
        "absent": "failed",
    }, {name: job["error"] for name, job in run.jobs.items()}
    assert run.jobs["refused by the Hub"]["error"]["code"] == "hub_unauthorised"
    assert {"rita/out", "tom/out"} <= set(run.hub.store.repos), "each with its own token"


def test_no_log_holds_a_secret(run: Run) -> None:
    logs = {path.name: path.read_text() for path in run.home.glob("*.log")}

    assert set(logs) == {"api.log", "worker.log"}
    assert all(len(text) > 1000 for text in logs.values())
    for name, secret in run.secrets.items():
        assert not [log for log, text in logs.items() if secret in text], name


def test_the_database_holds_no_secret_in_plain_text(run: Run) -> None:
    with sqlite3.connect(run.home / "rebase.db") as connection:
        dump = "\n".join(connection.iterdump())
        assert connection.execute("SELECT count(*) FROM job_tokens").fetchone() == (0,), "all jobs have ended"
    assert "hub_tokens" in dump
    files = [path.read_bytes() for path in run.home.glob("rebase.db*")]
    for name, secret in run.secrets.items():
        assert secret not in dump, name
        assert not [content for content in files if secret.encode() in content], name


def test_neither_broker_nor_cache_holds_a_secret(run: Run) -> None:
    with redis.Redis.from_url(run.redis_url) as client:
        found = [key + (client.dump(key) or b"") for key in client.scan_iter()]
    assert found
    folders = [run.home / name for name in ("cache", "hf", "work")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    for name, secret in run.secrets.items():
        assert not [content for content in found if secret.encode() in content], name
        assert not [path for path in files if secret.encode() in path.read_bytes()], name


def test_neither_card_nor_report_nor_commit_holds_a_secret(run: Run) -> None:
    published = [run.hub.store.repos[repo_id] for repo_id in ("rita/out", "tom/out")]
    written = [path.read_bytes() for path in (run.hub.store.root / "repos").rglob("*.json")]
    for repo in published:
        commit = repo.commits[repo.refs["main"]]
        for path, file in commit.files.items():
            if path.endswith((".md", ".json")):
                written.append(run.hub.store.blob(file.sha256).read_bytes())
    assert len(written) > 6
    for name, secret in run.secrets.items():
        assert not [content for content in written if secret.encode() in content], name


def test_no_answer_holds_a_secret(run: Run) -> None:
    assert len(run.answers) > 15
    for name, secret in run.secrets.items():
        assert not [answer for answer in run.answers if secret in answer], name
    assert json.loads(run.answers[0])["stored"]
