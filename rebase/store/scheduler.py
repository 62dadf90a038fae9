"""The scheduler: one thread that publishes the outbox and recovers from lost messages and dead workers.

It lives in the API process. Several may run at once, on one machine or many: guarded SQL shares the work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rebase.errors import Busy
from rebase.logging import get_logger
from rebase.store.outbox import ReapResult
from rebase.store.retention import PurgeResult, Retention
from rebase.store.store import Store

log = get_logger("scheduler")

# Large backlogs are published in small batches with pauses in between: the jobs take minutes, and API
# requests come first.
PUBLISH_BATCH = 20
BATCH_PAUSE_S = 0.1
PURGE_INTERVAL_S = 60.0
COALESCE_S = 0.05  # after a wake-up, wait this long for others: one batch for a burst instead of one each


class Notify(Protocol):
    """Send one job's notification to the broker; raises the transport's errors."""

    def __call__(self, job_id: str, /) -> None: ...


@dataclass(slots=True)
class SchedulerState:
    """The scheduler's last observations, for /readyz and /metrics."""

    broker_ok: bool | None = None  # None: nothing was sent yet
    notified: int = 0
    failures: int = 0
    last_reap: ReapResult | None = None


class Scheduler:
    """Publishes the outbox when woken and every `interval` seconds; also reaps every `interval` seconds, and
    queues polls of the Hub every `reconcile_s` seconds (0: never)."""

    def __init__(
        self,
        store: Store,
        notify: Notify,
        interval: float,
        *,
        reconcile_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
        retention: Retention | None = None,
    ) -> None:
        """`retention`: deletes expired rows, checked every `PURGE_INTERVAL_S` seconds."""
        self.state = SchedulerState()
        self._store = store
        self._notify = notify
        self._interval = interval
        self._reconcile_s = reconcile_s
        self._monotonic = monotonic
        self._retention = retention
        self._purged_at = float("-inf")
        self._wake_event = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the background thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop after the current notification. The others stay in the outbox."""
        self._stopping.set()
        self._wake_event.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._thread = None

    def wake(self) -> None:
        """Publish the outbox soon. Cheap for the caller."""
        self._wake_event.set()

    def _run(self) -> None:
        reaped_at = float("-inf")
        while not self._stopping.is_set():
            self._wake_event.clear()
            has_more = self._run_step(self._publish_batch)
            if self._monotonic() - reaped_at >= self._interval:
                reaped_at = self._monotonic()
                has_more = bool(self._run_step(self._reap)) or has_more
                self._run_step(self._purge)
                has_more = (self._reconcile_s > 0 and self._run_step(self._enqueue_polls)) or has_more
            if has_more:
                self._stopping.wait(BATCH_PAUSE_S)
            else:
                self._wake_event.wait(self._interval)
                self._stopping.wait(COALESCE_S)

    def _publish_batch(self) -> bool:
        published = self._store.outbox.publish(self._notify_one, limit=PUBLISH_BATCH)
        self.state.notified += published
        return published == PUBLISH_BATCH

    def _notify_one(self, job_id: str) -> None:
        try:
            self._notify(job_id)
        except Exception:
            self.state.broker_ok = False
            raise
        self.state.broker_ok = True

    def _reap(self) -> bool:
        result = self._store.outbox.reap()
        self.state.last_reap = result
        if result != ReapResult():
            log.info("swept", **{name: getattr(result, name) for name in ReapResult.__slots__})
        return result.notifications > 0

    def _purge(self) -> bool:
        """Purge one bounded batch; while there is more, the next round purges again."""
        if self._retention is None or self._monotonic() - self._purged_at < PURGE_INTERVAL_S:
            return False
        result = self._retention.purge()
        if not result.has_more:
            self._purged_at = self._monotonic()
        if result != PurgeResult():
            log.info("purged", **{name: getattr(result, name) for name in PurgeResult.__slots__})
        return result.has_more

    def _enqueue_polls(self) -> bool:
        queued = self._store.releases.enqueue_polls(self._reconcile_s)
        if queued:
            log.info("reconciling", looks=queued)
        return queued > 0

    def _run_step(self, step: Callable[[], bool]) -> bool:
        """Log errors of broker and database instead of raising; the step is repeated next time."""
        try:
            return step()
        except Busy as exc:
            log.warning("scheduler_database_busy", cause=str(exc.__cause__))
        except Exception as exc:
            log.warning("scheduler_step_failed", step=step.__name__, error=f"{type(exc).__name__}: {exc}")
        self.state.failures += 1
        return False
