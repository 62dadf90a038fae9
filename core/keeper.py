"""The keeper: one thread that rings bells from the outbox and sweeps up after lost messages and dead workers.

It lives in the API process. Several may run at once, here or on many machines: guarded SQL shares the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.errors import Busy
from core.jobs import JobStore
from core.jobs.keeper_side import Swept
from core.logs import get_logger
from core.retention import Purged, Retention

log = get_logger("keeper")

# A burst is rung in small batches with a breath between them: bells are for jobs that take minutes, and
# requests that wait for an answer come first.
BATCH = 20
BREATH_S = 0.1
PURGE_S = 60.0
GATHER_S = 0.05  # a nudge waits this long for others, so that a burst costs one batch and not one each


class Ring(Protocol):
    """Put one job's bell on the broker; raises what the transport raises."""

    def __call__(self, job_id: str, /) -> None: ...


@dataclass(slots=True)
class KeeperState:
    """What the keeper last saw, for /readyz and /metrics."""

    broker_ok: bool | None = None  # None: nothing was rung yet
    rung: int = 0
    failures: int = 0
    last_sweep: Swept | None = None


class Keeper:
    """Relays when nudged and every `interval` seconds; sweeps every `interval` seconds, and asks for looks at
    the Hub that are `reconcile_s` old (0: never)."""

    def __init__(
        self,
        store: JobStore,
        ring: Ring,
        interval: float,
        *,
        reconcile_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
        retention: Retention | None = None,
    ) -> None:
        """`retention`: what is deleted because its time is over; looked at every `PURGE_S` seconds."""
        self.state = KeeperState()
        self._store = store
        self._ring = ring
        self._interval = interval
        self._reconcile_s = reconcile_s
        self._monotonic = monotonic
        self._retention = retention
        self._purged_at = float("-inf")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End after the bell in hand. Bells that are left stay in the outbox."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def nudge(self) -> None:
        """There is something in the outbox: ring soon. Costs the caller next to nothing."""
        self._wake.set()

    def _run(self) -> None:
        swept_at = float("-inf")
        while not self._stopping.is_set():
            self._wake.clear()
            more = self._guarded(self._relay_batch)
            if self._monotonic() - swept_at >= self._interval:
                swept_at = self._monotonic()
                more = bool(self._guarded(self._sweep)) or more
                self._guarded(self._purge)
                more = (self._reconcile_s > 0 and self._guarded(self._ask_for_looks)) or more
            if more:
                self._stopping.wait(BREATH_S)
            else:
                self._wake.wait(self._interval)
                self._stopping.wait(GATHER_S)

    def _relay_batch(self) -> bool:
        rung = self._store.relay(self._ring_one, limit=BATCH)
        self.state.rung += rung
        return rung == BATCH

    def _ring_one(self, job_id: str) -> None:
        try:
            self._ring(job_id)
        except Exception:
            self.state.broker_ok = False
            raise
        self.state.broker_ok = True

    def _sweep(self) -> bool:
        swept = self._store.sweep()
        self.state.last_sweep = swept
        if swept != Swept():
            log.info("swept", **{name: getattr(swept, name) for name in Swept.__slots__})
        return swept.bells > 0

    def _purge(self) -> bool:
        """One bounded batch; the next one comes with the next sweep while there is more."""
        if self._retention is None or self._monotonic() - self._purged_at < PURGE_S:
            return False
        purged = self._retention.sweep()
        if not purged.more:
            self._purged_at = self._monotonic()
        if purged != Purged():
            log.info("purged", **{name: getattr(purged, name) for name in Purged.__slots__})
        return purged.more

    def _ask_for_looks(self) -> bool:
        asked = self._store.ask_for_looks(self._reconcile_s)
        if asked:
            log.info("reconciling", looks=asked)
        return asked > 0

    def _guarded(self, step: Callable[[], bool]) -> bool:
        """The keeper outlives every trouble of broker and database; what failed is tried again next time."""
        try:
            return step()
        except Busy as exc:
            log.warning("keeper_database_busy", cause=str(exc.__cause__))
        except Exception as exc:
            log.warning("keeper_step_failed", step=step.__name__, error=f"{type(exc).__name__}: {exc}")
        self.state.failures += 1
        return False
