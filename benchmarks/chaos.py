"""SIGKILL the worker at random moments, again and again: no job may be lost, none may commit twice.

    python -m benchmarks.chaos --runs 50

Each run submits one conversion over HTTP, kills the worker's whole process group when the job reaches a
moment drawn from the seed (a phase, plus a few milliseconds), starts a new worker and waits for the end.
A job is lost when it does not end `succeeded`; a duplicate is a second commit that carries a job's marker.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.processes import Process, api, environment, free_port, wait_ready, worker

_EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "hub"
_ADAPTER, _TARGET = "tiny/harbor-sql-lora", "tiny/harbor-2"
MOMENTS = (
    "resolving",
    "reading",
    "prechecking",
    "transferring",
    "verifying",
    "publishing",
    "publishing",
    "settled",
)
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """How one run went."""

    moment: str
    seen: str
    state: str
    attempts: int
    commits: int
    seconds: float


class Arena:
    """One deployment: SQLite, a local hub folder, one API, and a worker that dies often."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.hub = home / "hub"
        shutil.copytree(_EXAMPLES, self.hub)
        self.env = environment(
            home,
            REBASE_HUB_DIR=str(self.hub),
            REBASE_LEASE_S="3",
            REBASE_HEARTBEAT_S="0.5",
            REBASE_SWEEP_S="0.5",
            REBASE_MAX_ATTEMPTS="5",
            REBASE_RETRY_BASE_S="0.5",
            REBASE_LOG_FORMAT="json",
        )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.api: Process = api(home, self.env, port)
        self.worker: Process = worker(home, self.env)

    def __enter__(self) -> Arena:
        from migrations import upgrade

        upgrade(f"sqlite:///{self.home / 'rebase.db'}")
        self.api.start()
        wait_ready(self.url)
        self.worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.kill()
        self.api.stop()

    def submit(self, output: str) -> str:
        """POST /convert; returns the job id."""
        body = {
            "adapter": {"repo_id": _ADAPTER},
            "target": {"repo_id": _TARGET},
            "method": "copy",
            "output": {"repo_id": output},
        }
        answer = httpx2.post(f"{self.url}/convert", json=body, timeout=30)
        answer.raise_for_status()
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """GET /jobs/{id}."""
        document: dict[str, Any] = httpx2.get(f"{self.url}/jobs/{job_id}", timeout=30).json()
        return document

    def await_moment(self, job_id: str, moment: str) -> str:
        """Watch the row itself, which is faster than HTTP, until the moment comes or has passed."""
        order = {name: rank for rank, name in enumerate(MOMENTS)}
        deadline = time.monotonic() + _PATIENCE_S
        with sqlite3.connect(f"file:{self.home / 'rebase.db'}?mode=ro", uri=True, timeout=5) as connection:
            while time.monotonic() < deadline:
                state, phase = connection.execute(
                    "SELECT state, phase FROM jobs WHERE id = ?", (job_id,)
                ).fetchone()
                if state in ("succeeded", "failed", "rejected", "cancelled"):
                    return "settled"
                now = "publishing" if state == "publishing" else phase
                if state in ("running", "publishing") and order.get(now, -1) >= order[moment]:
                    return str(now)
                time.sleep(0.0005)
        return "never"

    def await_end(self, job_id: str) -> dict[str, Any]:
        """Until the job is done, or as it stands when patience ends."""
        deadline = time.monotonic() + _PATIENCE_S
        document = self.job(job_id)
        while not document["done"] and time.monotonic() < deadline:
            time.sleep(0.1)
            document = self.job(job_id)
        return document

    def commits(self, repo_id: str, job_id: str) -> int:
        """How many commits of the output repo carry the job's marker."""
        folder = self.hub / repo_id / "commits"
        if not folder.is_dir():
            return 0
        return sum(f"Rebase-Job: {job_id}" in path.read_text() for path in folder.glob("*.json"))


def one_run(arena: Arena, output: str, moment: str, delay_s: float) -> Run:
    """Submit, kill `delay_s` after the moment, restart, wait for the end, count commits."""
    began = time.monotonic()
    job_id = arena.submit(output)
    seen = arena.await_moment(job_id, moment)
    time.sleep(delay_s)
    arena.worker.kill()
    arena.worker.start()
    document = arena.await_end(job_id)
    return Run(
        moment,
        seen,
        document["status"],
        document["attempt"],
        arena.commits(output, job_id),
        time.monotonic() - began,
    )


def endure(runs: int, seed: int) -> dict[str, Any]:
    """All runs in one deployment; prints a line each."""
    chance = random.Random(seed)
    results: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="rebase-chaos-") as folder, Arena(Path(folder)) as arena:
        for number in range(runs):
            run = one_run(arena, f"tiny/chaos-{number}", chance.choice(MOMENTS), chance.random() * 0.02)
            results.append(run)
            print(
                f"{number + 1:4d}  killed at {run.seen:<13} {run.state:<10} attempts {run.attempts}  "
                f"commits {run.commits}  {run.seconds:5.1f} s",
                flush=True,
            )
    return {
        "runs": runs,
        "lost": sum(run.state != "succeeded" or run.commits == 0 for run in results),
        "duplicates": sum(run.commits > 1 for run in results),
        "killed_at": dict(sorted(Counter(run.seen for run in results).items())),
        "seed": seed,
    }


def main() -> int:
    """Exit 1 when anything was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = endure(arguments.runs, arguments.seed)
    print(json.dumps(figures))
    return 1 if figures["lost"] or figures["duplicates"] else 0


if __name__ == "__main__":
    sys.exit(main())
