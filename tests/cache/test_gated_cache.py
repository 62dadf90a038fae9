"""What one tenant's job has cached, another tenant's job is refused before a byte of it is read.

A real worker's code, the real Hub client against a Hub over HTTP, a real disk cache and a real Redis. Every
file that this process opens is seen by an audit hook; Redis counts the look-ups that it was asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from rebase.hub.remote import RemoteHub
from rebase.store import api_keys as keys
from rebase.store.hub_tokens import put_tenant_token
from rebase.store.records import JobRecord
from rebase.store.store import Store
from rebase.store.vault import Vault, generate_key
from support.redis_server import own_redis
from support.standin_hub import StandinHub
from support.tiny_pools import make_anchors
from support.tiny_repos import ADAPTER, NEW, OLD, make_hub
from support.worker_harness import MakeWorker, WorkerHarness

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

ACME, RIVAL = "hf_acme_reads_its_own", "hf_rival_reads_the_rest"
KEY = generate_key()
_watching: list[list[str]] = []  # an audit hook cannot be taken out again, so it looks here who listens


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str | bytes):
        path = arguments[0]
        _watching[-1].append(path if isinstance(path, str) else path.decode())


sys.addaudithook(_hook)


@contextmanager
def _opens() -> Iterator[list[str]]:
    """Every path that this process opens meanwhile."""
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


@dataclass
class Deployment:
    """One worker for two tenants."""

    worker: WorkerHarness
    hub: StandinHub
    redis_url: str

    @property
    def root(self) -> Path:
        return self.worker.root

    @property
    def store(self) -> Store:
        return self.worker.store

    def run(self, tenant: str, **changes: Any) -> JobRecord:
        """A conversion from submission to its end."""
        body = {
            "source": {"repo_id": OLD},
            "method": {"name": "cross_lora", "rank": 8},
            "output": {"repo_id": f"{tenant}/out"},
            "precheck": {"on_incompatible": "warn"},
            **changes,
        }
        job_id = self.worker.submit(tenant=tenant, **body)
        self.worker.run(job_id)
        return self.worker.job(job_id, tenant)

    def lookups(self) -> int:
        """How often Redis was asked for a value."""
        with redis.Redis.from_url(self.redis_url) as client:
            info = client.info("stats")
            return int(info["keyspace_hits"]) + int(info["keyspace_misses"])


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def deployment(repos: Path, sqlite_url: str, tmp_path: Path, make_worker: MakeWorker) -> Iterator[Deployment]:
    with StandinHub() as hub, own_redis() as redis_url:
        hub.add_token(ACME, user="acme")
        hub.add_token(RIVAL, user="rival")
        for repo_id in (OLD, NEW, ADAPTER):
            hub.add_repo(repo_id, repos / repo_id)
        worker = make_worker(
            sqlite_url,
            hub=RemoteHub(ACME, hub.url, tmp_path / "hf"),
            redis_url=redis_url,
            secret_keys=SecretStr(KEY),
            hub_token=SecretStr(ACME),  # of the deployment, which no other tenant may use
        )
        for tenant, token in (("acme", ACME), ("rival", RIVAL)):
            keys.create_key(worker.store, tenant, "key")
            put_tenant_token(worker.store, Vault([KEY]), tenant, token, None)
        yield Deployment(worker, hub, redis_url)


def _close(deployment: Deployment, repo_id: str, how: str) -> None:
    repo = deployment.hub.store.repos[repo_id]
    repo.private, repo.gated = how == "private", how == "gated"


@pytest.mark.parametrize("how", ["gated", "private"])
@pytest.mark.parametrize(("repo_id", "pointer"), [(OLD, "/source"), (NEW, "/target"), (ADAPTER, "/adapter")])
def test_what_is_cached_for_one_tenant_is_refused_to_another_before_a_byte_of_it_is_read(
    deployment: Deployment, repo_id: str, pointer: str, how: str
) -> None:
    _close(deployment, repo_id, how)
    first = deployment.run("acme")
    assert first.state == "succeeded", first.error
    cached = list((deployment.root / "cache").rglob("*.safetensors"))
    assert cached, "there is something to be refused"
    repo_folder = "models--" + repo_id.replace("/", "--")
    assert list((deployment.root / "hf" / repo_folder).rglob("*.safetensors"))
    before = deployment.lookups()

    with _opens() as opened:
        second = deployment.run("rival")

    assert second.state == "failed"
    assert second.error is not None
    assert (second.error["code"], second.error["pointer"]) == (
        "repo_gated" if how == "gated" else "repo_not_found",
        pointer,
    )
    assert not [path for path in opened if repo_folder in path]
    assert not [path for path in opened if str(deployment.root / "cache") in path]
    assert deployment.lookups() == before
    assert second.diagnostics is None
    assert deployment.store.jobs.get_diagnostics("rival", second.id).sites == ()

    with _opens() as opened:  # the hook does see what is read
        assert deployment.run("acme").state == "succeeded"
    assert [path for path in opened if repo_folder in path]
    assert [path for path in opened if str(deployment.root / "cache") in path]


def test_a_tenant_without_a_token_does_not_borrow_the_deployments(deployment: Deployment) -> None:
    _close(deployment, OLD, "private")
    assert deployment.run("acme").state == "succeeded"
    keys.create_key(deployment.store, "third", "key")
    job = deployment.run("third")

    assert job.error is not None
    assert job.error["code"] == "repo_not_found"


@pytest.mark.parametrize("field", ["adapter", "source", "target"])
def test_a_private_repo_and_one_that_does_not_exist_are_told_alike(
    deployment: Deployment, field: str
) -> None:
    repo_id = {"adapter": ADAPTER, "source": OLD, "target": NEW}[field]
    assert deployment.run("acme").state == "succeeded"
    _close(deployment, repo_id, "private")
    hidden = deployment.run("rival")
    absent = deployment.run("rival", **{field: {"repo_id": "acme/no-such-thing"}})

    def told(job: JobRecord) -> tuple[Any, ...]:
        error = str(job.error).replace(repo_id, "…").replace("acme/no-such-thing", "…")
        events = [(event.type, event.data) for event in deployment.store.jobs.list_events("rival", job.id)]
        return error, events, job.diagnostics, job.source_sha, job.target_sha, job.adapter_sha

    assert told(hidden) == told(absent)


def test_a_private_output_of_another_tenant_and_an_absent_one_are_told_alike(deployment: Deployment) -> None:
    assert deployment.run("acme", output={"repo_id": "acme/secret-out"}).state == "succeeded"
    hidden = deployment.run("rival", output={"repo_id": "acme/secret-out"})
    absent = deployment.run("rival", output={"repo_id": "acme/no-such-out"})

    assert hidden.error is not None
    assert hidden.error["code"] == "output_forbidden"
    assert str(hidden.error).replace("secret-out", "…") == str(absent.error).replace("no-such-out", "…")


def test_a_pools_cached_products_are_refused_where_one_of_its_anchors_may_not_be_read(
    deployment: Deployment, tmp_path: Path
) -> None:
    folder = tmp_path / "anchors"
    pool = make_anchors(folder, 3)
    for number in range(3):
        for side in ("old", "new"):
            repo_id = f"acme/task-{number}-{side}"
            deployment.hub.add_repo(repo_id, folder / repo_id, private=(number, side) == (1, "new"))

    def registered(tenant: str) -> JobRecord:
        record, _ = deployment.store.pools.submit(tenant, pool)
        deployment.worker.run(record.id)
        return deployment.store.jobs.get(tenant, record.id)

    assert registered("acme").state == "succeeded"
    before = deployment.lookups()
    with _opens() as opened:
        refused = registered("rival")

    assert refused.error is not None
    assert (refused.error["code"], refused.error["pointer"]) == ("repo_not_found", "/anchors/1/target")
    assert not [path for path in opened if "models--acme--task-1-new" in path]
    assert not [path for path in opened if str(deployment.root / "cache") in path]
    assert deployment.lookups() == before


def test_a_private_oracle_of_another_tenant_is_refused_before_a_byte_of_it_is_read(
    deployment: Deployment, repos: Path
) -> None:
    deployment.hub.add_repo("acme/oracle", repos / ADAPTER, private=True)
    examples = [{"prompt": "aa", "answer": "bb"}]
    job = deployment.run("rival", evaluate={"examples": examples, "oracle": {"repo_id": "acme/oracle"}})

    assert job.error is not None
    assert (job.error["code"], job.error["pointer"]) == ("repo_not_found", "/evaluate/oracle")
