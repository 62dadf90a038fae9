"""A worker without processes: database, store, settings, hub, cache, and the runner over them.

Jobs run in the test's own thread by the code that a Celery task calls, so a test decides what happens around
each step and which worker does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from sqlalchemy import select

from rebase.cache.factor_cache import FactorCache
from rebase.hub.base import Hub
from rebase.hub.local import LocalHub
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import ConversionKind
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.records import JobRecord
from rebase.store.store import Store
from rebase.store.tables.base import DEFAULT_TENANT
from rebase.store.tables.jobs import Job
from support.tiny_repos import ADAPTER, NEW
from workers.runner import WorkerContext, run_job

# A lost lease and a retry cost a test next to nothing.
QUICK_SETTINGS: dict[str, Any] = {"heartbeat_s": 0.05, "lease_s": 5, "retry_base_s": 0}


class WorkerHarness:
    """Everything that a worker needs, below `root`: `hub` (a folder), `cache`, `home` (scratch files).

    `url`: a migrated database. `hub`: default the folder `root/hub`. `redis_url`: the cache's second tier.
    `settings`: over `QUICK_SETTINGS`.
    """

    def __init__(
        self, root: Path, url: str, *, hub: Hub | None = None, redis_url: str | None = None, **settings: Any
    ) -> None:
        self.root = root
        self.hub: Hub = hub or LocalHub(root / "hub")
        self.store = Store(Database.open(url))
        self.settings = Settings(_env_file=None, home=root / "home", **QUICK_SETTINGS | settings)
        self.cache = FactorCache(root / "cache", 2**30, redis_url)

    def close(self) -> None:
        """Close the database."""
        self.store.db.close()

    def context(self, hub: Hub | None = None, owner: str = "worker-1") -> WorkerContext:
        """What one worker process keeps between jobs; `hub`: the one that it sees instead."""
        runtime = Runtime(hub or self.hub, self.cache, torch.device("cpu"))
        return WorkerContext(self.settings, self.store, runtime, owner)

    def submit(self, kind: ConversionKind = "convert", tenant: str = DEFAULT_TENANT, **changes: Any) -> str:
        """Queue a conversion of `support.tiny_repos`; `changes` replace fields of its body. The job's id."""
        body = {
            "adapter": {"repo_id": ADAPTER},
            "target": {"repo_id": NEW},
            "output": {"repo_id": "acme/out"},
            **changes,
        }
        request = ConversionRequest.model_validate(body)
        return self.store.submissions.submit(tenant, kind, request)[0].id

    def run(self, job_id: str, hub: Hub | None = None, owner: str = "worker-1") -> None:
        """Claim the job, if it can be claimed, and work on it to its end."""
        run_job(job_id, self.context(hub, owner))

    def run_queued(self, kind: str) -> list[dict[str, Any]]:
        """Run every waiting job of a kind; the result or error of each."""
        with self.store.db.read() as connection:
            waiting = select(Job.id).where(Job.kind == kind, Job.state == "queued").order_by(Job.id)
            ids = connection.scalars(waiting).all()
        for job_id in ids:
            self.run(job_id)
        with self.store.db.read() as connection:
            rows = connection.execute(select(Job.result, Job.error).where(Job.id.in_(ids)).order_by(Job.id))
            return [row.result or row.error for row in rows]

    def job(self, job_id: str, tenant: str = DEFAULT_TENANT) -> JobRecord:
        """The job as its owner sees it."""
        return self.store.jobs.get(tenant, job_id)

    def count_commits(self, job_id: str, repo_id: str = "acme/out") -> int:
        """Commits of the local hub's repo that carry the job's id."""
        commits = (self.root / "hub" / repo_id / "commits").glob("*.json")
        return sum(f"Rebase-Job: {job_id}" in path.read_text() for path in commits)


class MakeWorker(Protocol):
    """Builds a harness on a database, with the options of `WorkerHarness`."""

    def __call__(self, url: str, **options: Any) -> WorkerHarness: ...


@pytest.fixture
def make_worker(tmp_path: Path) -> Iterator[MakeWorker]:
    """Harnesses below the test's own folder; their databases are closed at its end."""
    opened: list[WorkerHarness] = []

    def make(url: str, **options: Any) -> WorkerHarness:
        opened.append(WorkerHarness(tmp_path, url, **options))
        return opened[-1]

    yield make
    for harness in opened:
        harness.close()
