"""Jobs of kind `pool`: registered by a worker, used by the conversions of their tenant, never published."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rebase.cache.factor_cache import FactorCache
from rebase.hub.base import Published
from rebase.hub.local import LocalHub
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import JobState, PoolState
from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.database import Database
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from support.tiny_pools import MIXTURE, body, make_anchors, make_mixture
from support.tiny_repos import NEW, make_hub
from workers.runner import WorkerContext, run_job


class NoCommits(LocalHub):
    """A hub on which nobody may look for a commit, nor make one."""

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        raise AssertionError("a registration has no commit")

    def publish(self, *_args: Any, **_options: Any) -> Published:
        raise AssertionError("a registration publishes nothing")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_hub(tmp_path_factory.mktemp("hub"))
    make_anchors(root)
    make_mixture(root)
    return root


class Office:
    """A store, a hub folder and a worker that share them."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.store = Store(Database.open(url), max_attempts=3)
        self.settings = Settings(home=root / "home", heartbeat_s=0.05, lease_s=5, retry_base_s=0)
        self.cache = FactorCache(root / "cache", 2**30)

    def work(self, job_id: str, hub: type[LocalHub] = LocalHub) -> None:
        tools = Runtime(hub(self.root / "hub"), self.cache, torch.device("cpu"))
        run_job(job_id, WorkerContext(self.settings, self.store, tools, "worker-1"))

    def register(self, tenant: str = DEFAULT_TENANT, **changes: Any) -> str:
        request = PoolRequest.model_validate(body() | changes)
        pool_id = self.store.pools.submit(tenant, request)[0].id
        self.work(pool_id, NoCommits)
        return pool_id

    def convert(self, tenant: str = DEFAULT_TENANT, **method: Any) -> str:
        request = {
            "adapter": {"repo_id": MIXTURE},
            "target": {"repo_id": NEW},
            "method": {"name": "anchor_ridge", **method},
            "precheck": {"on_incompatible": "warn"},
            "output": {"repo_id": "acme/out"},
        }
        job_id = self.store.submissions.submit(tenant, "convert", ConversionRequest.model_validate(request))[
            0
        ].id
        self.work(job_id)
        return job_id


@pytest.fixture
def office(prepared: Path, tmp_path: Path, database_url: str) -> Iterator[Office]:
    shutil.copytree(prepared, tmp_path / "hub")
    office = Office(tmp_path, database_url)
    yield office
    office.store.db.close()


def test_a_registered_pool_is_ready_pinned_and_measured(office: Office) -> None:
    pool_id = office.register()

    pool = office.store.pools.get(DEFAULT_TENANT, pool_id)
    assert pool.state is PoolState.READY
    assert pool.job.result is not None
    assert pool.job.result["sites"] == 14
    assert pool.job.result["measurements"]["loo_error"] >= 0
    spec = office.store.pools.get_ready(DEFAULT_TENANT, pool_id).spec
    refs = [ref for anchor in spec.anchors for ref in (anchor.source, anchor.target)]
    assert all(len(ref.revision) == 40 for ref in (spec.source, spec.target, *refs))
    phases = [
        e.data["phase"] for e in office.store.jobs.list_events(DEFAULT_TENANT, pool_id) if e.type == "phase"
    ]
    assert phases[-1] == "factorizing"
    assert not list((office.root / "home").glob("work/*"))


@pytest.mark.parametrize("by_id", [True, False])
def test_a_conversion_finds_the_pool_by_id_or_by_its_bases(office: Office, by_id: bool) -> None:
    pool_id = office.register()

    job_id = office.convert(pool=pool_id if by_id else None)

    assert office.store.jobs.get(DEFAULT_TENANT, job_id).state is JobState.SUCCEEDED
    summary = office.store.jobs.get_diagnostics(DEFAULT_TENANT, job_id).summary
    assert summary is not None
    assert summary["pool"]["id"] == pool_id


def test_a_conversion_uses_nothing_of_another_tenant(office: Office) -> None:
    keys.create_key(office.store, "rival", "a key")
    pool_id = office.register("rival")

    for method in ({"pool": pool_id}, {}):
        job = office.store.jobs.get(DEFAULT_TENANT, office.convert(**method))
        assert job.state in {JobState.FAILED, JobState.REJECTED}
        assert job.error is not None
        assert job.error["code"] == ("not_found" if method else "incompatible_pair")
    assert office.store.jobs.get("rival", office.convert("rival", pool=pool_id)).state is JobState.SUCCEEDED


def test_a_pool_with_a_missing_adapter_fails_with_the_place_and_can_be_retried(office: Office) -> None:
    lost, kept = office.root / "hub" / "acme" / "task-1-new", office.root / "kept"
    lost.rename(kept)
    pool_id = office.register()

    pool = office.store.pools.get(DEFAULT_TENANT, pool_id)
    assert pool.state is PoolState.INVALID
    assert pool.job.error is not None
    assert (pool.job.error["code"], pool.job.error["pointer"]) == ("repo_not_found", "/anchors/1/target")

    kept.rename(lost)
    office.store.jobs.retry(DEFAULT_TENANT, pool_id)
    office.work(pool_id, NoCommits)
    assert office.store.pools.get(DEFAULT_TENANT, pool_id).state is PoolState.READY


def test_a_conversion_whose_pool_was_deleted_meanwhile_fails_with_a_word(office: Office) -> None:
    pool_id = office.register()
    office.store.pools.delete(DEFAULT_TENANT, pool_id)

    job = office.store.jobs.get(DEFAULT_TENANT, office.convert(pool=pool_id))

    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["pointer"]) == ("not_found", "/method/pool")


def test_a_registration_whose_pool_is_deleted_while_it_runs_ends_cancelled(office: Office) -> None:
    pool_id = office.store.pools.submit(DEFAULT_TENANT, PoolRequest.model_validate(body()))[0].id

    class Deleting(NoCommits):
        def check_read(self, repo_id: str) -> None:
            if repo_id == "acme/task-1-old":
                office.store.pools.delete(DEFAULT_TENANT, pool_id)
                time.sleep(0.5)  # ten heartbeats
            super().check_read(repo_id)

    office.work(pool_id, Deleting)

    assert office.store.jobs.get(DEFAULT_TENANT, pool_id).state is JobState.CANCELLED
