"""A real API and a real worker over a local hub folder, such as a copy of the bundled one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

import migrations
from benchmarks.processes import api, environment, free_port, wait_ready, worker

_HUB = Path(__file__).parents[2] / "examples" / "hub"
_BUNDLED = ("tiny/harbor-sql-lora", "tiny/harbor-2")
_PATIENCE_S = 200


@dataclass(frozen=True)
class Service:
    """`ask` sends one adapter by `copy` to one target, with changes."""

    url: str
    hub: Path
    adapter: str
    target: str

    def ask(self, kind: str = "convert", **changes: Any) -> httpx2.Response:
        body = {"adapter": {"repo_id": self.adapter}, "target": {"repo_id": self.target}, "method": "copy"}
        return self.post(f"/{kind}", {**body, **changes})

    def post(self, path: str, body: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=30)

    def get(self, path: str) -> Any:
        return httpx2.get(self.url + path, timeout=30).json()

    def ended(self, **changes: Any) -> dict[str, Any]:
        """A new job as it ended."""
        answer = self.ask(**changes)
        assert answer.status_code == 202, answer.text
        return self.end_of(answer.headers["location"])

    def end_of(self, path: str) -> dict[str, Any]:
        """The job at this path, once it has ended."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            job: dict[str, Any] = self.get(path)
            if job["done"]:
                return job
            time.sleep(0.1)
        raise TimeoutError(str(job))


@contextmanager
def bundled_service(home: Path, **settings: str) -> Iterator[Service]:
    """Over a copy of the bundled hub, which `home` is given."""
    shutil.copytree(_HUB, home / "hub")
    with service_over(home / "hub", home, *_BUNDLED, **settings) as service:
        yield service


@contextmanager
def service_over(hub: Path, home: Path, adapter: str, target: str, **settings: str) -> Iterator[Service]:
    """On SQLite, with all its files below `home`; for an adapter and a target of that hub."""
    migrations.upgrade(f"sqlite:///{home / 'rebase.db'}")
    env = environment(home, REBASE_HUB_DIR=str(hub), REBASE_SWEEP_S="0.5", **settings)
    port = free_port()
    processes = [api(home, env, port), worker(home, env)]
    try:
        for process in processes:
            process.start()
        wait_ready(f"http://127.0.0.1:{port}")
        yield Service(f"http://127.0.0.1:{port}", hub, adapter, target)
    finally:
        for process in processes:
            process.stop()
