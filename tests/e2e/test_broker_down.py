"""The broker is away when a job is submitted: the job is accepted, and done once the broker is back."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx2
import pytest

import migrations
from benchmarks.processes import api, environment, free_port, wait_ready, worker
from support.redis_server import redis_executable
from support.tiny_repos import ADAPTER, NEW, make_hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_a_job_submitted_while_the_broker_is_down_is_done_when_it_is_back(tmp_path: Path) -> None:
    hub = make_hub(tmp_path / "hub")
    migrations.upgrade(f"sqlite:///{tmp_path / 'rebase.db'}")
    broker_port, port = free_port(), free_port()
    env = environment(
        tmp_path,
        REBASE_HUB_DIR=str(hub),
        REBASE_BROKER_URL=f"redis://127.0.0.1:{broker_port}/0",
        REBASE_SWEEP_S="0.5",
    )
    url = f"http://127.0.0.1:{port}"
    processes = [api(tmp_path, env, port), worker(tmp_path, env)]
    redis: subprocess.Popen[bytes] | None = None
    try:
        processes[0].start()
        wait_ready(url)
        body = {"adapter": {"repo_id": ADAPTER}, "target": {"repo_id": NEW}}
        answer = httpx2.post(f"{url}/convert", json=body, timeout=10)
        assert answer.status_code == 202
        time.sleep(1.5)
        assert httpx2.get(url + answer.headers["location"], timeout=10).json()["status"] == "queued"
        assert httpx2.get(f"{url}/readyz", timeout=10).status_code == 200

        command = [redis_executable(), "--port", str(broker_port), "--bind", "127.0.0.1", "--save", ""]
        redis = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
        processes[1].start()
        deadline = time.monotonic() + 120
        while not (job := httpx2.get(url + answer.headers["location"], timeout=10).json())["done"]:
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        assert job["status"] == "succeeded"
    finally:
        for process in processes:
            process.stop()
        if redis is not None:
            redis.terminate()
            redis.wait(10)
