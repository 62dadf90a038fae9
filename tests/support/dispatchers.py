"""A courier in this process, on a real database and real sockets, and one as a process of its own."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebase.schemas.callback_policy import Allowlist, parse_delays
from rebase.schemas.callbacks import DeliveryState
from rebase.store.database import Database
from rebase.store.deliveries import DeliveryRepository
from rebase.store.delivery_queue import DeliveryQueue, LeaseLimits
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.store import Store
from rebase.store.vault import Vault
from service.callbacks.dispatcher import CallbackDispatcher
from service.callbacks.sender import CallbackSender, Resolver, SystemResolver, make_tls_context
from support.running_service import clean_environment

QUICK = "0.05,0.05,0.05"


class Names:
    """A resolver that answers from a table; a list of answers is used one by one, the last one stays."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.asked: list[str] = []
        self._answers = {name.replace("_", "."): list(each) for name, each in answers.items()}

    async def __call__(self, host: str, _port: int, /) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise OSError("no such name")
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def a_sender(
    resolver: Resolver | None = None,
    allow: str = "127.0.0.1",
    timeout_s: float = 5.0,
    ca_file: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> CallbackSender:
    return CallbackSender(
        resolver or SystemResolver(4), Allowlist.parse(allow), tls or make_tls_context(ca_file), timeout_s
    )


@contextmanager
def running_courier(
    store: Store,
    vault: Vault,
    sender: CallbackSender,
    *,
    waits: str = QUICK,
    bounds: LeaseLimits | None = None,
    alive: Path | None = None,
) -> Iterator[CallbackDispatcher]:
    """A courier on a thread of its own until the end of the block. It goes by the wall clock."""
    made: list[CallbackDispatcher] = []
    ready = threading.Event()

    async def serve() -> None:
        queue = DeliveryQueue(store.db, limits=bounds)
        courier = CallbackDispatcher(
            queue, SigningSecretRepository(store.db), vault, sender, parse_delays(waits), heartbeat_file=alive
        )
        made.append(courier)
        loops.append(asyncio.get_running_loop())
        ready.set()
        await courier.run()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made[0]
    finally:
        loops[0].call_soon_threadsafe(made[0].stop)
        thread.join(20)
        assert not thread.is_alive()


def until_settled(db: Database, job_id: str, seconds: float = 30.0) -> Any:
    """The job's last delivery, once it is no longer pending."""
    book = DeliveryRepository(db)
    return until(
        lambda: next(
            (
                one
                for one in reversed(book.list_for_job("default", job_id))
                if one.state is not DeliveryState.PENDING
            ),
            None,
        ),
        seconds,
    )


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


@contextmanager
def courier_process(home: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m service.callbacks` until the end of the block, its words in `home/courier.log`."""
    env = clean_environment(home, **settings)
    with (home / "courier.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.callbacks"], env=env, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
