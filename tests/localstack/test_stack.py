"""`rebase up` as real processes: it starts, heals, stops in order, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rebase.client.http import RebaseClient
from rebase.hub.local import LocalHub
from rebase.localstack.stack import seed_hub
from rebase.localstack.supervised_process import GRACE_S, SupervisedProcess
from rebase.schemas.repos import RepoRef
from support.command import REBASE
from support.running_service import clean_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc")


def members(home: Path) -> dict[int, str]:
    """Every process whose environment names this home: pid → command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_text()
            if line and f"REBASE_HOME={home}\0".encode() in environment:
                found[int(entry.name)] = line.replace("\0", " ")
    return found


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Up:
    """A running `rebase up` on a free port."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.err = home / "up.err"
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*REBASE, "up", "--port", "0"],
                env=clean_environment(home),
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        assert self.process.stdout is not None
        match = re.search(r"http://\S+", self.process.stdout.readline())
        assert match is not None, self.err.read_text()
        self.url = match[0]

    def stop(self, number: int) -> int:
        """Signal it and wait for its end; the exit status."""
        self.process.send_signal(number)
        self.process.communicate(timeout=GRACE_S + 20)
        return self.process.returncode

    def child(self, module: str) -> int | None:
        """The pid of the API, the courier or the worker proper, while there is one."""
        for pid, line in members(self.home).items():
            if line.endswith(f"-P -m {module} ") and "guard" not in line:
                return pid
        return None


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path)
    yield running
    if running.process.poll() is None:
        running.stop(signal.SIGTERM)
    until(lambda: not members(tmp_path))


def ready(url: str) -> bool:
    with RebaseClient(url) as client:
        return client.is_ready()


@pytest.mark.e2e
def test_a_child_that_is_killed_comes_back(up: Up) -> None:
    assert ready(up.url)
    before = {module: up.child(module) for module in ("service", "service.callbacks", "workers")}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    for module, pid in before.items():
        until(lambda module=module, pid=pid: up.child(module) not in (None, pid))  # type: ignore[misc]
    until(lambda: ready(up.url))
    assert up.err.read_text().count("is being restarted") == 3
    assert up.stop(signal.SIGINT) == 0
    until(lambda: not members(up.home), 5)


@pytest.mark.e2e
def test_a_killed_supervisor_takes_everything_with_it(up: Up) -> None:
    # Itself, three guards, API, courier, worker, the worker's pool process.
    until(lambda: len(members(up.home)) >= 8)
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not members(up.home), GRACE_S + 10)


def test_ctrl_c_while_starting_leaves_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*REBASE, "up", "--port", "0"], env=clean_environment(tmp_path), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Starting")
    until(lambda: len(members(tmp_path)) > 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=GRACE_S + 20)
    assert process.returncode == 130
    assert "Traceback" not in err
    until(lambda: not members(tmp_path), 5)


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = subprocess.Popen(
            [*REBASE, "up", "--port", str(port)],
            env=clean_environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"Error: 127.0.0.1:{port} cannot be used" in err
    assert "--port" in err
    assert not (tmp_path / "rebase.db").exists()


def guarded(tmp_path: Path, code: str, grace_s: float = GRACE_S) -> SupervisedProcess:
    child = SupervisedProcess(
        "test",
        [sys.executable, "-c", code],
        clean_environment(tmp_path),
        tmp_path / "logs" / "test.log",
        grace_s=grace_s,
    )
    child.start()
    return child


# SIGTERM is ignored, and what is ignored stays so in the processes that it starts.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up", flush=True)
time.sleep(600)
"""
LEAVES_A_PROCESS = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_what_ignores_sigterm_is_killed_with_its_offspring_in_bounded_time(tmp_path: Path) -> None:
    child = guarded(tmp_path, STUBBORN, grace_s=0.5)
    until(lambda: "up" in child.read_log_tail() and len(members(tmp_path)) == 3)
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 4
    until(lambda: not members(tmp_path), 2)


def test_offspring_of_a_child_that_ended_goes_too(tmp_path: Path) -> None:
    child = guarded(
        tmp_path,
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
    )
    until(lambda: child.exit_status == 0)
    until(lambda: not members(tmp_path), 2)
    child.stop()


def test_a_child_that_keeps_falling_is_started_again_with_growing_patience(tmp_path: Path) -> None:
    child = guarded(tmp_path, "raise SystemExit(7)")
    falls: list[float] = []
    while len(falls) < 3:
        if (status := child.restart_if_due()) is not None:
            assert status == 7
            falls.append(time.monotonic())
        time.sleep(0.02)
    child.stop()
    assert falls[1] - falls[0] >= 0.5
    assert falls[2] - falls[1] >= 1.0


def test_a_log_that_grew_too_long_makes_room(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "test.log"
    log.parent.mkdir()
    log.write_bytes(b"old\n" * (3 * 2**20))
    child = guarded(tmp_path, "print('new')")
    until(lambda: child.exit_status == 0)
    child.stop()
    assert log.read_text() == "new\n"
    assert (tmp_path / "logs" / "test.log.1").stat().st_size == 12 * 2**20


def test_bundled_repos_are_copied_once_and_give_way_to_another_bundle_without_loss(tmp_path: Path) -> None:
    files, hub = tmp_path / "files", tmp_path / "home-hub"
    for number in (1, 2):
        files.mkdir(exist_ok=True)
        (files / "config.json").write_text(f'{{"bundle": {number}}}')
        bundle = LocalHub(tmp_path / f"examples-{number}" / "hub")
        bundle.publish("tiny/base", files, message="", parent=None, private=False, create_pr=False)
    seed_hub(hub, tmp_path / "examples-1")
    local = LocalHub(hub)
    head = local.get_latest("tiny/base")
    assert head is not None
    mine = local.publish("tiny/base", files, message="mine", parent=head.sha, private=False, create_pr=False)
    seed_hub(hub, tmp_path / "examples-1")
    assert local.resolve(RepoRef(repo_id="tiny/base")).sha == mine.commit
    seed_hub(hub, tmp_path / "examples-2")
    assert local.resolve(RepoRef(repo_id="tiny/base")) == LocalHub(
        tmp_path / "examples-2" / "hub"
    ).get_latest("tiny/base")
    assert list(hub.glob(f"tiny/.base-before-*/base/commits/{mine.commit}.json"))
