"""The callback dispatcher: leases due deliveries, sends them and records the results, within fixed limits.

A dispatcher leases a few deliveries per receiver, some per tenant and a fixed number in total, each for a
limited time. So an unresponsive receiver delays only its own deliveries.
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
from service.callbacks.sender import Attempt, AttemptResult, CallbackSender, FailureReason, decide_settlement

log = get_logger("dispatcher")

POLL_S = 0.5
DATABASE_RETRY_S = 1.0
SHUTDOWN_GRACE_S = 5.0  # time for attempts in progress at shutdown; the others fall due again
LEASE_MARGIN_S = 45.0  # added to the duration of an attempt, for the database
_MAX_SETTLE_ATTEMPTS = 5
_USER_AGENT = "Rebase-Callbacks/1"


class CallbackDispatcher:
    """`run` until stopped. Any number of dispatchers may share a database."""

    def __init__(
        self,
        queue: DeliveryQueue,
        signing: SigningSecretRepository,
        vault: Vault,
        sender: CallbackSender,
        delays: tuple[float, ...],
        *,
        heartbeat_file: Path | None = None,
    ) -> None:
        self._queue = queue
        self._signing = signing
        self._vault = vault
        self._sender = sender
        self._delays = delays
        self._heartbeat_file = heartbeat_file
        self._heartbeat_warned = False  # the last touch of `heartbeat_file` failed, which has been logged
        self._lease_owner = f"{socket.gethostname()[:24]}/{os.getpid()}/{secrets.token_hex(8)}"
        self._in_flight: dict[asyncio.Task[None], LeasedDelivery] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Stop soon: lease nothing more."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop` is called."""
        while not self._stopping:
            self._wake.clear()
            if not await self._lease_due():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_S)
        if self._in_flight:
            _, unfinished = await asyncio.wait(self._in_flight, timeout=SHUTDOWN_GRACE_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _lease_due(self) -> bool:
        """Start the deliveries that are due and within the limits. False: there were none."""
        if self._heartbeat_file is not None:
            self._touch_heartbeat_file(self._heartbeat_file)
        lease_s = self._sender.timeout_s + LEASE_MARGIN_S
        try:
            leased = await asyncio.to_thread(
                self._queue.lease, self._lease_owner, lease_s, list(self._in_flight.values())
            )
        except Busy as exc:
            log.warning("dispatcher_database_busy", cause=str(exc.__cause__))
            await asyncio.sleep(DATABASE_RETRY_S)
            return False
        for delivery in leased:
            task = asyncio.create_task(self._deliver(delivery))
            self._in_flight[task] = delivery
            task.add_done_callback(self._on_task_done)
        return bool(leased)

    def _touch_heartbeat_file(self, file: Path) -> None:
        """A full or read-only folder must not stop deliveries. It is logged once, and again if it recurs
        after working in between."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as exc:
            if not self._heartbeat_warned:
                log.warning("dispatcher_alive_file", error=f"{type(exc).__name__}: {exc.strerror}")
            self._heartbeat_warned = True
        else:
            self._heartbeat_warned = False

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        delivery = self._in_flight.pop(task)
        self._wake.set()
        if not task.cancelled() and (exc := task.exception()) is not None:
            # Its lease expires, and the delivery falls due again.
            log.error("delivery_left", delivery_id=delivery.id, error=f"{type(exc).__name__}: {exc}")

    async def _deliver(self, delivery: LeasedDelivery) -> None:
        started = self._queue.clock()
        attempt = await self._run_attempt(delivery)
        result = attempt.result
        record = AttemptRecord(
            number=delivery.attempt,
            at=started,
            status=result.status,
            reason=result.reason.value if result.reason is not None else None,
            detail=result.detail,
            duration_ms=result.duration_ms,
        )
        now = self._queue.clock()
        settlement = decide_settlement(result, delivery.failures, self._delays, delivery.id, now)
        settled = await self._retry_while_busy(lambda: self._queue.settle(delivery, record, settlement))
        log.info(
            "callback",
            delivery_id=delivery.id,
            tenant=delivery.tenant_id,
            receiver=delivery.receiver,
            attempt=delivery.attempt,
            status=result.status,
            reason=record.reason,
            state=settlement.state.value if settled else "lease lost",
            ms=result.duration_ms,
        )
        if attempt.lookup is not None and not attempt.lookup.done():
            # Free the slot only now: otherwise slow name servers could occupy more threads than there are.
            await asyncio.wait([attempt.lookup])

    async def _run_attempt(self, delivery: LeasedDelivery) -> Attempt:
        if delivery.failures > len(self._delays):
            return Attempt(
                AttemptResult(
                    reason=FailureReason.COURIER_LOST,
                    detail=("The dispatcher ended during every attempt at this delivery."),
                )
            )
        try:
            keys = await asyncio.to_thread(self._signing.decrypt_signing, self._vault, delivery.tenant_id)
        except SettingsInvalid as exc:
            log.warning("signing_secret_closed", tenant=delivery.tenant_id, error=exc.message)
            keys = []
        if not keys:
            return Attempt(
                AttemptResult(reason=FailureReason.NO_SECRET, detail="There is no usable signing secret.")
            )
        body = delivery.payload.encode()
        timestamp = int(self._queue.clock().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            **build_signature_headers(keys, delivery.id, timestamp, body),
        }
        try:
            return await self._sender.send(delivery.url, headers, body)
        except Exception as exc:
            log.exception("unforeseen", delivery_id=delivery.id, error=type(exc).__name__)
            return Attempt(
                AttemptResult(
                    reason=FailureReason.INTERNAL, detail="The dispatcher failed; the cause is in its log."
                )
            )

    async def _retry_while_busy(self, write: Callable[[], bool]) -> bool:
        """Retry while the database is briefly busy, so that the receiver does not get the message twice."""
        for attempt in range(_MAX_SETTLE_ATTEMPTS):
            try:
                return await asyncio.to_thread(write)
            except Busy:
                await asyncio.sleep(DATABASE_RETRY_S * (attempt + 1))
        return False
