"""The real app, run by starlette's TestClient, with a broker that only takes notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from rebase.settings import Settings
from rebase.store.records import Claim
from rebase.store.store import Store
from service.app import create_app
from service.deps import EventIntervals, KeyCache, LimitsCache

BODY: dict[str, Any] = {
    "adapter": {"repo_id": "acme/sql-lora"},
    "target": {"repo_id": "acme/base-2"},
}


@dataclass
class Api:
    """A running app: its client, its store, and the job ids that it rang for."""

    client: TestClient
    store: Store
    rung: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def start(cls, database_url: str, home: Path, **settings: Any) -> Iterator[Api]:
        """Start it, lifespan included."""
        rung: list[str] = []
        chosen = {"database_url": database_url, "home": home, "sweep_s": 0.2, **settings}
        app = create_app(Settings(_env_file=None, **chosen), notify=rung.append)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield cls(client, app.state.service.store, rung)

    def remember_nothing(self) -> None:
        """Changes of keys and limits take effect at once."""
        state = self.app.state
        state.service = replace(state.service, key_cache=KeyCache(0), limits_cache=LimitsCache(0))

    def poll_events_every(self, poll_s: float, key_check_s: float = 10.0) -> None:
        """How often event streams look at their job, and at the key that opened them."""
        state = self.app.state
        state.service = replace(state.service, event_intervals=EventIntervals(poll_s, key_check_s))

    @property
    def app(self) -> FastAPI:
        """The app behind the client."""
        assert isinstance(self.client.app, FastAPI)
        return self.client.app

    def submit(self, **changes: Any) -> str:
        """A job's id."""
        job_id: str = self.client.post("/convert", json={**BODY, **changes}).json()["id"]
        return job_id

    def claim(self, job_id: str) -> Claim:
        """Be its worker."""
        claim = self.store.queue.claim(job_id, "worker", 60)
        assert claim is not None
        return claim
