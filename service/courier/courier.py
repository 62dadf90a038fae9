"""Takes what is due, has it sent, writes down what came of it. Bounded at every turn.

A courier holds a few deliveries per receiver, some per tenant and a fixed number in all, each for a bounded
time; so a dead receiver costs its own deliveries patience, and nobody else anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from rebase.errors import Busy, SettingsInvalid
from rebase.logging import get_logger
from rebase.store.deliveries import AttemptRecord, LeasedDelivery
from rebase.store.delivery_queue import DeliveryQueue
from rebase.store.signing_secrets import SigningSecretRepository, build_signature_headers
from rebase.store.vault import Vault
from service.courier.outcome import Outcome, Reason, settlement_of
from service.courier.sending import Attempt, Sender

log = get_logger("courier")

POLL_S = 0.5
BUSY_S = 1.0
LEAVE_S = 5.0  # a stopping courier gives attempts under way this long; the others fall due again
HOLD_S = 45.0  # beyond the time of an attempt, for the database
_SETTLE_TRIES = 5
_USER_AGENT = "Rebase-Callbacks/1"


class Courier:
    """`run` until stopped. Any number of couriers may share a database."""

    def __init__(
        self,
        queue: DeliveryQueue,
        signing: SigningSecretRepository,
        vault: Vault,
        sender: Sender,
        waits: tuple[float, ...],
        *,
        alive: Path | None = None,
    ) -> None:
        self._queue = queue
        self._signing = signing
        self._vault = vault
        self._sender = sender
        self._waits = waits
        self._alive = alive
        self._mute = False  # the last touch of `alive` failed, and the log says so
        self._holder = f"{socket.gethostname()[:24]}/{os.getpid()}/{secrets.token_hex(8)}"
        self._in_hand: dict[asyncio.Task[None], LeasedDelivery] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """End soon: nothing more is taken."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`."""
        while not self._stopping:
            self._wake.clear()
            if not await self._take():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_S)
        if self._in_hand:
            _, late = await asyncio.wait(self._in_hand, timeout=LEAVE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _take(self) -> bool:
        """Begin what is due and fits. False: there was nothing."""
        if self._alive is not None:
            self._say_alive(self._alive)
        hold_s = self._sender.timeout_s + HOLD_S
        try:
            taken = await asyncio.to_thread(
                self._queue.lease, self._holder, hold_s, list(self._in_hand.values())
            )
        except Busy as exc:
            log.warning("courier_database_busy", cause=str(exc.__cause__))
            await asyncio.sleep(BUSY_S)
            return False
        for one in taken:
            task = asyncio.create_task(self._deliver(one))
            self._in_hand[task] = one
            task.add_done_callback(self._done)
        return bool(taken)

    def _say_alive(self, file: Path) -> None:
        """A folder that is full or read-only is no reason to deliver nothing. Said once, and again when it
        comes back in between."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as exc:
            if not self._mute:
                log.warning("courier_alive_file", error=f"{type(exc).__name__}: {exc.strerror}")
            self._mute = True
        else:
            self._mute = False

    def _done(self, task: asyncio.Task[None]) -> None:
        one = self._in_hand.pop(task)
        self._wake.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            # Its hold runs out, and the delivery falls due again.
            log.error("delivery_left", delivery_id=one.id, error=f"{type(exc).__name__}: {exc}")

    async def _deliver(self, taken: LeasedDelivery) -> None:
        started = self._queue.clock()
        attempt = await self._attempt(taken)
        outcome = attempt.outcome
        record = AttemptRecord(
            number=taken.attempt,
            at=started,
            status=outcome.status,
            reason=outcome.reason.value if outcome.reason is not None else None,
            detail=outcome.detail,
            duration_ms=outcome.duration_ms,
        )
        now = self._queue.clock()
        settlement = settlement_of(outcome, taken.failures, self._waits, taken.id, now)
        settled = await self._patiently(lambda: self._queue.settle(taken, record, settlement))
        log.info(
            "callback",
            delivery_id=taken.id,
            tenant=taken.tenant_id,
            receiver=taken.receiver,
            attempt=taken.attempt,
            status=outcome.status,
            reason=record.reason,
            state=settlement.state.value if settled else "not ours any more",
            ms=outcome.duration_ms,
        )
        if attempt.lookup is not None and not attempt.lookup.done():
            # Only now is the slot free: else slow name servers could be asked by more threads than there are.
            await asyncio.wait([attempt.lookup])

    async def _attempt(self, taken: LeasedDelivery) -> Attempt:
        if taken.failures > len(self._waits):
            return Attempt(
                Outcome(reason=Reason.COURIER_LOST, detail="Couriers kept ending during this delivery.")
            )
        try:
            keys = await asyncio.to_thread(self._signing.decrypt_signing, self._vault, taken.tenant_id)
        except SettingsInvalid as exc:
            log.warning("signing_secret_closed", tenant=taken.tenant_id, error=exc.message)
            keys = []
        if not keys:
            return Attempt(
                Outcome(reason=Reason.NO_SECRET, detail="There is no signing secret that can be used.")
            )
        body = taken.payload.encode()
        timestamp = int(self._queue.clock().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            **build_signature_headers(keys, taken.id, timestamp, body),
        }
        try:
            return await self._sender.send(taken.url, headers, body)
        except Exception as exc:
            log.exception("unforeseen", delivery_id=taken.id, error=type(exc).__name__)
            return Attempt(Outcome(reason=Reason.INTERNAL, detail="The courier failed; its log says why."))

    async def _patiently(self, write: Callable[[], bool]) -> bool:
        """A database that is busy for a moment must not cost a receiver a second message."""
        for number in range(_SETTLE_TRIES):
            try:
                return await asyncio.to_thread(write)
            except Busy:
                await asyncio.sleep(BUSY_S * (number + 1))
        return False
