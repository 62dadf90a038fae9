"""A real API process on a loopback port, with its SQLite database within reach of the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import migrations
from rebase.client.http import RebaseClient
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.store import Store


def free_port() -> int:
    """A loopback port that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path, **settings: str) -> dict[str, str]:
    """This environment without REBASE_ settings of its own, plus the given ones."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("REBASE_")}
    return env | {"REBASE_HOME": str(home), "OMP_NUM_THREADS": "1"} | settings


@dataclass(frozen=True)
class RunningService:
    """Where it answers, and the store that a worker would use on the same database."""

    url: str
    home: Path
    store: Store
    process: subprocess.Popen[bytes]


@contextmanager
def service_process(home: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m service`, ready; stopped at the end of the block."""
    env = clean_environment(home, REBASE_PORT=str(port), REBASE_SWEEP_S="0.2", **settings)
    with (home / "service.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=env, stdout=log, stderr=log)
    try:
        with RebaseClient(f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 60
            while not client.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((home / "service.log").read_text())
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(15)


@contextmanager
def running_service(home: Path, **settings: str) -> Iterator[RunningService]:
    """A migrated database in `home` and a service on it."""
    url = Settings(home=home, database_url=None).resolved_database_url
    migrations.upgrade(url)
    database, port = Database.open(url), free_port()
    try:
        with service_process(home, port, **settings) as process:
            yield RunningService(f"http://127.0.0.1:{port}", home, Store(database), process)
    finally:
        database.close()
