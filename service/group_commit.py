"""Group commit: submissions that wait for the database at the same time share one transaction.

A transaction costs a round trip and a flush to disk, whether it holds one job or fifty. Submissions that
arrive during one transaction form the next batch; a lone one does not wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import ConversionKind
from rebase.store.job_events import NO_CONTEXT, SubmissionContext
from rebase.store.job_submission import Submission
from rebase.store.records import JobRecord
from rebase.store.store import Store

MAX_BATCH = 100
THREADS = 2  # one collects and writes while the other waits for its flush


@dataclass(frozen=True, slots=True)
class _Pending:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[JobRecord]
    submission: Submission


class GroupCommitter:
    """Threads between the event loop and `SubmissionRepository.submit_batch`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: SimpleQueue[_Pending | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start accepting submissions."""
        self._threads = [
            threading.Thread(target=self._run, name="intake", daemon=True) for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write what was submitted, then stop. Nothing may be submitted afterwards."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(10)
        self._threads = []

    async def submit(
        self,
        tenant_id: str,
        kind: ConversionKind,
        request: ConversionRequest,
        context: SubmissionContext = NO_CONTEXT,
    ) -> JobRecord:
        """Queue a job; returns once it is committed. Raises QuotaExceeded and Busy."""
        loop = asyncio.get_running_loop()
        submission = Submission(tenant_id, kind, request, context)
        pending = _Pending(loop, loop.create_future(), submission)
        self._queue.put(pending)
        return await pending.future

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < MAX_BATCH:
                try:
                    another = self._queue.get_nowait()
                except Empty:
                    break
                if another is None:
                    self._queue.put(None)  # the stop signal: handle it after this batch
                    break
                batch.append(another)
            self._commit_batch(batch)

    def _commit_batch(self, batch: Sequence[_Pending]) -> None:
        results: Sequence[JobRecord | Exception]
        try:
            results = self._store.submissions.submit_batch([one.submission for one in batch])
        except Exception as exc:  # raised to each caller, in its event loop
            results = [exc] * len(batch)
        batch[0].loop.call_soon_threadsafe(_resolve_futures, batch, results)


def _resolve_futures(batch: Sequence[_Pending], results: Sequence[JobRecord | Exception]) -> None:
    for pending, result in zip(batch, results, strict=True):
        if pending.future.done():
            continue  # the client disconnected; its job is recorded anyway
        if isinstance(result, Exception):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)
