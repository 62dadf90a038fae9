"""Jobs of kind `pool`: registered by a worker, used by the conversions of their tenant, never published."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rebase.hub.base import Published
from rebase.hub.local import LocalHub
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.states import JobState, PoolState
from rebase.store import api_keys as keys
from rebase.store.tables.base import DEFAULT_TENANT
from support.tiny_pools import MIXTURE, body, make_anchors, make_mixture
from support.tiny_repos import make_hub
from support.worker_harness import WorkerHarness


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


class PoolHarness(WorkerHarness):
    """A worker that registers pools on a hub where nobody may commit, and converts with them."""

    def register(self, tenant: str = DEFAULT_TENANT, **changes: Any) -> str:
        request = PoolRequest.model_validate(body() | changes)
        pool_id = self.store.pools.submit(tenant, request)[0].id
        self.run(pool_id, self.without_commits)
        return pool_id

    @property
    def without_commits(self) -> NoCommits:
        return NoCommits(self.root / "hub")

    def convert(self, tenant: str = DEFAULT_TENANT, **method: Any) -> str:
        job_id = self.submit(
            tenant=tenant,
            adapter={"repo_id": MIXTURE},
            method={"name": "anchor_ridge", **method},
            precheck={"on_incompatible": "warn"},
        )
        self.run(job_id)
        return job_id


@pytest.fixture
def harness(prepared: Path, tmp_path: Path, database_url: str) -> Iterator[PoolHarness]:
    shutil.copytree(prepared, tmp_path / "hub")
    harness = PoolHarness(tmp_path, database_url)
    yield harness
    harness.close()


def test_a_registered_pool_is_ready_pinned_and_measured(harness: PoolHarness) -> None:
    pool_id = harness.register()

    pool = harness.store.pools.get(DEFAULT_TENANT, pool_id)
    assert pool.state is PoolState.READY
    assert pool.job.result is not None
    assert pool.job.result["sites"] == 14
    assert pool.job.result["measurements"]["loo_error"] >= 0
    spec = harness.store.pools.get_ready(DEFAULT_TENANT, pool_id).spec
    refs = [ref for anchor in spec.anchors for ref in (anchor.source, anchor.target)]
    assert all(len(ref.revision) == 40 for ref in (spec.source, spec.target, *refs))
    phases = [
        e.data["phase"] for e in harness.store.jobs.list_events(DEFAULT_TENANT, pool_id) if e.type == "phase"
    ]
    assert phases[-1] == "factorizing"
    assert not list((harness.root / "home").glob("work/*"))


@pytest.mark.parametrize("by_id", [True, False])
def test_a_conversion_finds_the_pool_by_id_or_by_its_bases(harness: PoolHarness, by_id: bool) -> None:
    pool_id = harness.register()

    job_id = harness.convert(pool=pool_id if by_id else None)

    assert harness.store.jobs.get(DEFAULT_TENANT, job_id).state is JobState.SUCCEEDED
    summary = harness.store.jobs.get_diagnostics(DEFAULT_TENANT, job_id).summary
    assert summary is not None
    assert summary["pool"]["id"] == pool_id


def test_a_conversion_uses_nothing_of_another_tenant(harness: PoolHarness) -> None:
    keys.create_key(harness.store, "rival", "a key")
    pool_id = harness.register("rival")

    for method in ({"pool": pool_id}, {}):
        job = harness.store.jobs.get(DEFAULT_TENANT, harness.convert(**method))
        assert job.state in {JobState.FAILED, JobState.REJECTED}
        assert job.error is not None
        assert job.error["code"] == ("not_found" if method else "incompatible_pair")
    assert harness.store.jobs.get("rival", harness.convert("rival", pool=pool_id)).state is JobState.SUCCEEDED


def test_a_pool_with_a_missing_adapter_fails_with_the_place_and_can_be_retried(harness: PoolHarness) -> None:
    lost, kept = harness.root / "hub" / "acme" / "task-1-new", harness.root / "kept"
    lost.rename(kept)
    pool_id = harness.register()

    pool = harness.store.pools.get(DEFAULT_TENANT, pool_id)
    assert pool.state is PoolState.INVALID
    assert pool.job.error is not None
    assert (pool.job.error["code"], pool.job.error["pointer"]) == ("repo_not_found", "/anchors/1/target")

    kept.rename(lost)
    harness.store.jobs.retry(DEFAULT_TENANT, pool_id)
    harness.run(pool_id, harness.without_commits)
    assert harness.store.pools.get(DEFAULT_TENANT, pool_id).state is PoolState.READY


def test_a_conversion_whose_pool_was_deleted_meanwhile_fails_with_a_word(harness: PoolHarness) -> None:
    pool_id = harness.register()
    harness.store.pools.delete(DEFAULT_TENANT, pool_id)

    job = harness.store.jobs.get(DEFAULT_TENANT, harness.convert(pool=pool_id))

    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["pointer"]) == ("not_found", "/method/pool")


def test_a_registration_whose_pool_is_deleted_while_it_runs_ends_cancelled(harness: PoolHarness) -> None:
    pool_id = harness.store.pools.submit(DEFAULT_TENANT, PoolRequest.model_validate(body()))[0].id

    class Deleting(NoCommits):
        def check_read(self, repo_id: str) -> None:
            if repo_id == "acme/task-1-old":
                harness.store.pools.delete(DEFAULT_TENANT, pool_id)
                time.sleep(0.5)  # ten heartbeats
            super().check_read(repo_id)

    harness.run(pool_id, Deleting(harness.root / "hub"))

    assert harness.store.jobs.get(DEFAULT_TENANT, pool_id).state is JobState.CANCELLED
