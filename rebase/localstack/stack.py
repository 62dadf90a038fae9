"""The embedded stack: migrations, then API, worker and callback dispatcher as children of one process."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rebase.client.http import RebaseClient
from rebase.errors import CommandFailed
from rebase.localstack.supervised_process import SupervisedProcess
from rebase.settings import Settings
from rebase.store.deployment import migrate_database


def find_examples_folder() -> Path | None:
    """`examples/` of the checkout that this package is installed from; None for a wheel."""
    folder = Path(__file__).resolve().parents[2] / "examples"
    return folder if (folder / "hub").is_dir() else None


def seed_hub(hub: Path, examples: Path) -> None:
    """Copy each bundled repo into `hub` unless it is there already; commits that users added are kept.

    A copy whose bundled repo differs (from another checkout) is moved into a dot-folder, which hubs ignore.
    """
    for repo in sorted(path for path in (examples / "hub").glob("*/*") if path.is_dir()):
        destination = hub / repo.relative_to(examples / "hub")
        if _has_all_commits(destination, repo):
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=destination.parent) as scratch:
            shutil.copytree(repo, Path(scratch) / "repo")
            if destination.exists():
                backup_dir = tempfile.mkdtemp(prefix=f".{destination.name}-before-", dir=destination.parent)
                destination.replace(Path(backup_dir) / destination.name)
            (Path(scratch) / "repo").replace(destination)


def _has_all_commits(destination: Path, bundled: Path) -> bool:
    """Whether the copy contains every commit of the bundled repo. Commits are named by their content."""
    return all(
        (destination / commit.relative_to(bundled)).is_file() for commit in bundled.glob("commits/*.json")
    )


_READY_TIMEOUT_S = 90.0
_SUPERVISE_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class StackConfig:
    """Where a stack runs: its data, its hub (None: the online Hub) and its address."""

    home: Path
    hub: Path | None
    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def build_environment(self) -> dict[str, str]:
        """The children's environment: that of this process, overridden by this configuration."""
        env = {key: value for key, value in os.environ.items() if key != "REBASE_HUB_DIR"}
        env |= {"REBASE_HOME": str(self.home), "REBASE_HOST": self.host, "REBASE_PORT": str(self.port)}
        env["PYTHONUNBUFFERED"] = "1"
        return env | ({"REBASE_HUB_DIR": str(self.hub)} if self.hub is not None else {})


def choose_port(host: str, port: int) -> int:
    """`port` if it is free, or any free port for 0. Raises CommandFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Same as the server: a port whose last connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise CommandFailed(
                f"{host}:{port} cannot be used: {exc.strerror or exc}.",
                hint="Choose another one with --port, or 0 for any free port.",
            ) from exc
        return int(probe.getsockname()[1])


class Stack:
    """`start`, then `serve` until `stopping` is set, then `stop`. A context manager, so that `stop` always
    runs.

    After `start`, a thread restarts children that exit.
    """

    def __init__(self, config: StackConfig, report: Callable[[str], None]) -> None:
        self.config = config
        self.stopping = threading.Event()
        # `start` and `serve` check `stopping` themselves. The caller's code in between does not, so there a
        # signal interrupts it.
        self.interruptible = False
        self._report = report
        self._supervisor = threading.Thread(target=self._supervise, name="healer", daemon=True)
        env, logs = config.build_environment(), config.home / "logs"
        # -P: a folder named `core` or `service` in the working directory must not shadow ours.
        python = [sys.executable, "-P", "-m"]
        self.children = [
            SupervisedProcess("api", [*python, "service"], env, logs / "api.log"),
            SupervisedProcess("worker", [*python, "workers"], env, logs / "worker.log"),
            SupervisedProcess(
                "callback dispatcher", [*python, "service.callbacks"], env, logs / "dispatcher.log"
            ),
        ]

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Migrate, start the children, and return once the API is ready.

        Raises CommandFailed, and KeyboardInterrupt once `stopping` is set.
        """
        self.config.home.mkdir(parents=True, exist_ok=True)
        if self.config.hub is not None:
            self.config.hub.mkdir(parents=True, exist_ok=True)
        migrate_database(Settings(home=self.config.home).resolved_database_url)
        self._raise_if_stopping()
        for child in self.children:
            child.start()
        self._wait_until_ready()
        self._supervisor.start()
        self.interruptible = True

    def serve(self) -> None:
        """Return when `stopping` is set."""
        self.interruptible = False
        self.stopping.wait()

    def stop(self) -> None:
        """Stop all children at once, within a limited time."""
        self.interruptible = False
        self.stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for child in self.children:
            child.request_stop()
        for child in self.children:
            child.stop()

    def _supervise(self) -> None:
        """Restart children that exited, until `stopping` is set."""
        while not self.stopping.wait(_SUPERVISE_INTERVAL_S):
            for child in self.children:
                status = child.restart_if_due()
                if status is not None:
                    self._report(
                        f"The {child.name} ended with status {status} and is being restarted; see {child.log}"
                    )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with RebaseClient(self.config.url, timeout_s=5.0) as client:
            while not client.is_ready():
                for child in self.children:
                    if child.exit_status is not None:
                        raise CommandFailed(
                            f"The {child.name} did not start (status {child.exit_status}):\n"
                            f"{child.read_log_tail()}",
                            hint=f"Its log: {child.log}",
                        )
                if time.monotonic() > deadline:
                    raise CommandFailed(
                        f"The API was not ready after {_READY_TIMEOUT_S:g} s.",
                        hint=f"Logs: {self.config.home}/logs",
                    )
                time.sleep(0.2)
                self._raise_if_stopping()

    def _raise_if_stopping(self) -> None:
        """Abort a start that was cancelled, at a point where nothing is half done."""
        if self.stopping.is_set():
            raise KeyboardInterrupt
