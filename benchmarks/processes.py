"""Start the API and the worker as a deployment does, each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

_ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A loopback port that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(home: Path, **settings: str) -> dict[str, str]:
    """This process's environment without its own REBASE_ settings, plus the given ones."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("REBASE_")}
    return {
        **inherited,
        "REBASE_HOME": str(home),
        "PYTHONPATH": str(_ROOT),
        "OMP_NUM_THREADS": "1",
        **settings,
    }


@dataclass
class Process:
    """One child process group with its log file."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    log: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it; output goes to the log."""
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                self.command,
                env=dict(self.env),
                stdout=out,
                stderr=out,
                cwd=self.log.parent,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL the whole group: what a power cut or the kernel's memory killer leaves."""
        self._end(signal.SIGKILL)

    def stop(self, patience_s: float = 15.0) -> None:
        """SIGTERM, and SIGKILL for whatever is left after `patience_s`."""
        if self._child is None:
            return
        self._child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience_s)
        self._end(signal.SIGKILL)

    def _end(self, sign: signal.Signals) -> None:
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, sign)
        self._child.wait()
        self._child = None


def api(home: Path, env: Mapping[str, str], port: int) -> Process:
    """The API on a loopback port."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "service.main:app",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    return Process("api", command, env, home / "api.log")


def worker(home: Path, env: Mapping[str, str]) -> Process:
    """One Celery worker."""
    return Process("worker", [sys.executable, "-m", "workers"], env, home / "worker.log")


def wait_ready(url: str, patience_s: float = 30.0) -> None:
    """Until /readyz answers 200. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} did not become ready in {patience_s:.0f} s")
