"""The compose file's own commands, environment, health checks and order, run as local processes.

What differs from containers: host names and ports become loopback ones, PostgreSQL is this machine's with a
database of its own, the Hub is a stand-in over real HTTP, and /var/lib/rebase is a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from rebase.client.errors import ServiceError
from rebase.client.http import RebaseClient
from rebase.schemas.callbacks import CallbackSpec
from rebase.schemas.conversions import ConversionRequest
from rebase.store.vault import generate_key
from support import compose, tiny_repos
from support.postgres import a_database
from support.receivers import answers, receiver
from support.redis_server import redis_executable
from support.running_service import free_port
from support.standin_hub import StandinHub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]

TOKEN = "hf_operators_token"
SECRETS = {
    "REBASE_POSTGRES_PASSWORD": "p0stgres",
    "REBASE_REDIS_PASSWORD": "r3dis",
    "REBASE_HUB_TOKEN": TOKEN,
    "REBASE_SECRET_KEYS": generate_key(),
}
CHOICES = {"REBASE_CALLBACK_ALLOW": "127.0.0.1"}
SERVICES: dict[str, dict[str, Any]] = compose.load({**SECRETS, **CHOICES})["services"]
PATIENCE_S = 90.0


def image_environment() -> dict[str, str]:
    """What ENV sets in the base stage of the Dockerfile."""
    text = (compose.FILE.parent / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    return dict(item.split("=", 1) for item in line.split())


@dataclass
class Stack:
    """Local addresses, and the processes by service name."""

    folder: Path
    database_url: str
    redis_port: int
    api_port: int
    hub_url: str
    running: dict[str, subprocess.Popen[bytes]]

    def environment(self, name: str) -> dict[str, str]:
        """The container's environment, with addresses that exist here."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        found = {**image_environment(), **SERVICES[name].get("environment", {})}
        found = {key: value.replace("/var/lib/rebase", str(home)) for key, value in found.items()}
        found["PATH"] = os.environ["PATH"]
        if "REBASE_DATABASE_URL" in found:
            assert found["REBASE_DATABASE_URL"] == "postgresql://rebase:p0stgres@postgres:5432/rebase"
            found["REBASE_DATABASE_URL"] = self.database_url
            found["REBASE_REDIS_URL"] = found["REBASE_REDIS_URL"].replace(
                "@redis:6379", f"@127.0.0.1:{self.redis_port}"
            )
        if name == "api":
            found |= {"REBASE_HOST": "127.0.0.1", "REBASE_PORT": str(self.api_port)}
        if name.startswith("worker"):
            found |= {"HF_ENDPOINT": self.hub_url, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        return found

    def command(self, words: list[str]) -> list[str]:
        """The words of a compose command, with programs and ports of this machine."""
        programs = {"python": sys.executable, "redis-server": redis_executable()}
        local = [programs.get(words[0], words[0]), *words[1:]]
        return [word.replace("127.0.0.1:8000", f"127.0.0.1:{self.api_port}") for word in local]

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        environment = self.environment(name)
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*self.command(SERVICES[name]["command"]), *more],
                env=environment,
                cwd=self.folder / name,
                stdout=log,
                stderr=log,
            )
        return self.running[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def until_healthy(self, name: str) -> None:
        """Run the service's own health check until it passes."""
        check = self.command(SERVICES[name]["healthcheck"]["test"][1:])
        give_up = time.monotonic() + PATIENCE_S
        while subprocess.run(
            check, env=self.environment(name), cwd=self.folder / name, capture_output=True, check=False
        ).returncode:
            assert self.running[name].poll() is None, self.log(name).read_text()
            assert time.monotonic() < give_up, self.log(name).read_text()
            time.sleep(0.3)

    def run_once(self, name: str) -> None:
        assert self.start(name).wait(PATIENCE_S) == 0, self.log(name).read_text()

    def tool(self, name: str, *words: str) -> str:
        """`docker compose exec NAME rebase …`"""
        program = Path(sys.executable).with_name("rebase")
        done = subprocess.run(
            [program, *words],
            env=self.environment(name),
            cwd=self.folder / name,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode()

    def stop(self, name: str) -> int:
        """As compose does: SIGTERM, and the end must come within the grace period."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        amount, unit = re.fullmatch(r"(\d+)([sm])", SERVICES[name]["stop_grace_period"]).groups()  # type: ignore[union-attr]
        return process.wait(min(float(amount) * {"s": 1, "m": 60}[unit], PATIENCE_S))


@contextmanager
def a_stack(folder: Path, hub_url: str, postgres: str) -> Iterator[Stack]:
    """Started in the order that `depends_on` asks for."""
    with a_database(postgres) as database_url:
        stack = Stack(
            folder, database_url.replace("+psycopg", ""), free_port(), free_port(), hub_url, running={}
        )
        try:
            redis_here = ["--port", str(stack.redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
            stack.start("redis", *redis_here)
            stack.run_once("migrate")
            stack.start("api")
            stack.start("courier")
            stack.start("worker-cpu")
            stack.until_healthy("api")
            stack.until_healthy("courier")
            stack.until_healthy("worker-cpu")
            yield stack
        finally:
            for process in stack.running.values():
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandinHub]:
    repos = tiny_repos.make_hub(tmp_path_factory.mktemp("repos"))
    with StandinHub() as server:
        server.add_token(TOKEN, user="acme")
        for repo in (tiny_repos.OLD, tiny_repos.NEW, tiny_repos.ADAPTER):
            server.add_repo(repo, repos / repo, private=True)
        yield server


@pytest.fixture(scope="module")
def stack(hub: StandinHub, postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with a_stack(tmp_path_factory.mktemp("stack"), hub.url, postgres_server) as started:
        yield started


def shared_entries(stack: Stack) -> list[str]:
    """Digests of the cached factors in the stack's Redis."""
    url = f"redis://:{SECRETS['REBASE_REDIS_PASSWORD']}@127.0.0.1:{stack.redis_port}/0"
    with redis.Redis.from_url(url) as client:
        return sorted(name.decode().rpartition(":")[2] for name in client.scan_iter("rebase:factors:entry:*"))


def local_entries(stack: Stack) -> list[str]:
    """Digests of the cached factors in the worker's folder."""
    return sorted(
        path.stem for path in (stack.folder / "worker-cpu").rglob("cache/entries/*/*/*.safetensors")
    )


def test_the_composed_stack_converts_an_adapter_and_stops_cleanly(stack: Stack, hub: StandinHub) -> None:
    url = f"http://127.0.0.1:{stack.api_port}"
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": tiny_repos.ADAPTER},
            "target": {"repo_id": tiny_repos.NEW},
            "method": {"name": "cross_lora", "rank": 8, "alignment": "projection"},
        }
    )
    with RebaseClient(url) as stranger, pytest.raises(ServiceError):
        stranger.convert(request)

    key = json.loads(stack.tool("api", "keys", "create", "--name", "ci", "--scope", "admin", "--json"))["key"]
    with RebaseClient(url, key) as client, receiver(answers(204)) as found:
        secret = str(client.rotate_signing_secret().secret)
        callback = CallbackSpec(url=found.url)
        job = client.convert(request.model_copy(update={"callback": callback}))
        give_up = time.monotonic() + PATIENCE_S
        while not (job := client.get_job(job.id)).done:
            assert time.monotonic() < give_up, stack.log("worker-cpu").read_text()
            time.sleep(0.2)
        assert job.succeeded, (job, stack.log("worker-cpu").read_text())
        assert found.wait()[0].verified(secret)["data"]["job"] == job.id

    published = (job.result or {})["output"]
    commits = hub.store.repos[published["repo_id"]].commits
    assert sum(job.id in commit.message or job.id in commit.title for commit in commits.values()) == 1
    assert "adapter_model.safetensors" in commits[published["commit"]].files

    stack.run_once("migrate")
    assert set(shared_entries(stack)) <= set(local_entries(stack))
    assert shared_entries(stack), "the factors are in both tiers"
    for name in ("api", "courier", "worker-cpu", "redis"):
        assert stack.stop(name) in (0, -signal.SIGTERM), stack.log(name).read_text()
    logs = "".join(stack.log(name).read_text() for name in SERVICES if stack.log(name).exists())
    bare = secret.removeprefix("whsec_")
    assert not [one for one in (*SECRETS.values(), bare) if one in logs], "no secret in any log"
