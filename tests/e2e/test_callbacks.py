"""Callbacks of real processes: a courier that is killed in the middle, and a conversion by `rebase up`."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from rebase.client.http import RebaseClient
from rebase.schemas.callbacks import DeliveryState
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.deliveries import DeliveryRepository
from rebase.store.repository import utcnow
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.store import Store
from rebase.store.tables.callbacks import CallbackDelivery
from rebase.store.vault import Vault, generate_key
from service.callbacks.health import is_alive
from support.callbacks import ended_job, sql_text
from support.command import REBASE
from support.dispatchers import courier_process, until, until_settled
from support.receivers import Manner, answers, in_turn, never_answers, receiver
from support.running_service import clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_courier_killed_after_its_post_sends_the_same_message_again(database_url: str, home: Path) -> None:
    key, db = generate_key(), Database.open(database_url)
    jobs = Store(db)
    secret = SigningSecretRepository(db).rotate(Vault([key]), "default", 3600)[1]
    settings = {
        "REBASE_DATABASE_URL": database_url,
        "REBASE_SECRET_KEYS": key,
        "REBASE_CALLBACK_ALLOW": "127.0.0.1",
    }
    release = threading.Event()
    try:
        with receiver(in_turn(never_answers(release), answers(200))) as found:
            with courier_process(home, **settings) as courier:
                job_id = ended_job(jobs, found.url)
                (first,) = found.wait()
                courier.send_signal(signal.SIGKILL)
                courier.wait(10)
            with db.write() as connection:  # its hold runs out
                past = utcnow() - timedelta(seconds=1)
                connection.execute(update(CallbackDelivery).values(held_until=past))
            with courier_process(home, **settings) as courier:
                delivery = until_settled(db, job_id)
                assert is_alive(Settings(_env_file=None, home=home), time.time())
                courier.send_signal(signal.SIGTERM)
                assert courier.wait(15) == 0
            release.set()
            first, second = found.got
    finally:
        db.close()

    assert delivery.state is DeliveryState.DELIVERED
    assert first.id == second.id == delivery.id
    assert first.body == second.body
    assert first.verified(secret) == second.verified(secret)
    assert [attempt.reason for attempt in delivery.log] == ["courier_lost", None]
    assert secret.removeprefix("whsec_") not in (home / "courier.log").read_text()


def test_a_courier_without_keys_for_secrets_says_so_and_ends(home: Path) -> None:
    with courier_process(home, REBASE_DATABASE_URL="postgresql://127.0.0.1:1/none") as courier:
        assert courier.wait(30) == 2
    assert "REBASE_SECRET_KEYS is not set" in (home / "courier.log").read_text()


@contextmanager
def stack(home: Path, **settings: str) -> Iterator[str]:
    """`rebase up`; its address."""
    command = [*REBASE, "up", "--port", "0"]
    env = clean_environment(home, **settings)
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match is not None, (home / "up.log").read_text()
        yield match[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)


def recovering() -> Manner:
    """Down at first, as a receiver that is being restarted."""
    return in_turn(answers(503), answers(204))


def test_a_real_conversion_of_the_embedded_stack_calls_back(home: Path) -> None:
    with (
        receiver(recovering()) as found,
        stack(home, REBASE_CALLBACK_ALLOW="127.0.0.1", REBASE_CALLBACK_WAITS_S="0.2,1") as url,
        RebaseClient(url) as client,
    ):
        secret = client.rotate_signing_secret().secret
        assert secret is not None
        job = client.convert(
            {
                "adapter": {"repo_id": "tiny/harbor-sql-lora"},
                "target": {"repo_id": "tiny/harbor-2"},
                "callback": {"url": found.url, "events": ["job.started", "job.succeeded", "job.failed"]},
            }
        )
        ended = client.wait(job.id, timeout_s=180)
        assert ended.succeeded, ended.error
        requests = found.wait(3)
        until(lambda: {one.state for one in client.list_job_deliveries(job.id)} == {"delivered"})
        told = client.list_job_deliveries(job.id)
        assert ended.result is not None

    assert [one.event for one in told] == ["job.started", "job.succeeded"]
    assert {request.id for request in requests} == {one.id for one in told}
    # Either message may be the one that met the receiver while it was down, and then came twice.
    message, *again = [
        payload for request in requests if (payload := request.verified(secret))["type"] == "job.succeeded"
    ]
    assert all(payload == message for payload in again)
    output = ended.result["output"]
    assert message["data"] == {
        "job": job.id,
        "kind": "convert",
        "state": "succeeded",
        "attempt": 1,
        "verdict": "compatible",
        "adapter": "tiny/harbor-sql-lora",
        "target": "tiny/harbor-2",
        "output": {"repo_id": output["repo_id"], "commit": output["commit"]},
        "error": None,
        "path": f"/jobs/{job.id}",
    }
    bare = secret.removeprefix("whsec_")
    words = [file.read_text(errors="replace") for file in (home / "logs").iterdir()]
    assert len(words) == 3
    db = Database.open(Settings(_env_file=None, home=home).resolved_database_url)
    assert DeliveryRepository(db).list_for_job("default", job.id)
    everything = sql_text(db)
    db.close()
    assert not any(bare in text for text in [*words, everything, (home / "up.log").read_text()])
