"""A heartbeat thread that renews a job's lease while the pipeline runs, and detects cancellation."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rebase.errors import Cancelled, LeaseLost
from rebase.logging import get_logger
from rebase.store.records import Claim
from rebase.store.store import Store

log = get_logger(__name__)


class LeaseHeartbeat:
    """Renews the lease every `interval_s`; `check` raises if it was lost or the job was cancelled.

    If the database is unreachable, it keeps trying until the lease has expired. From then on, another worker
    may own the job.
    """

    def __init__(self, store: Store, claim: Claim, *, interval_s: float, lease_s: float) -> None:
        self._store, self._claim = store, claim
        self._interval_s, self._lease_s = interval_s, lease_s
        self._stop = threading.Event()
        self._cancelled = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew_loop, name=f"heart-{claim.job_id}", daemon=True)

    def __enter__(self) -> LeaseHeartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=self._interval_s + 5)

    def check(self) -> None:
        """Raises LeaseLost or Cancelled if the heartbeat detected either."""
        if self._lost.is_set():
            raise LeaseLost("Another worker owns this job now.")
        if self._cancelled.is_set():
            raise Cancelled("The job was cancelled.")

    def _renew_loop(self) -> None:
        last_renewed = time.monotonic()
        while not self._stop.wait(self._interval_s):
            try:
                if self._store.queue.heartbeat(self._claim, self._lease_s):
                    self._cancelled.set()
                last_renewed = time.monotonic()
            except LeaseLost:
                self._lost.set()
                return
            except Exception:  # the next heartbeat may succeed
                log.warning("heartbeat_failed", exc_info=True)
                if time.monotonic() - last_renewed > self._lease_s:
                    self._lost.set()
                    return
