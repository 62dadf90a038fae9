"""Group commit: requests that wait for the database together share one transaction.

A transaction costs a round trip and a flush to disk, whether it holds one job or fifty. While one is under
way, what arrives gathers; a lone request waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from rebase.schemas.conversions import ConversionRequest
from rebase.store.job_events import NO_CONTEXT, SubmissionContext
from rebase.store.job_submission import Submission
from rebase.store.records import ConversionKind, JobRecord
from rebase.store.store import Store

LARGEST = 100
THREADS = 2  # one gathers and writes while the other waits for its flush


@dataclass(frozen=True, slots=True)
class _Waiting:
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[JobRecord]
    order: Submission


class Intake:
    """Threads between the event loop and `Store.submit_batch`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to take requests."""
        self._threads = [
            threading.Thread(target=self._run, name="intake", daemon=True) for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after what was handed in is written. Nothing may be handed in afterwards."""
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
        extras: SubmissionContext = NO_CONTEXT,
    ) -> JobRecord:
        """Queue a job; returns once it is committed. Raises what `Store.submit` raises."""
        loop = asyncio.get_running_loop()
        order = Submission(tenant_id, kind, request, extras)
        waiting = _Waiting(loop, loop.create_future(), order)
        self._queue.put(waiting)
        return await waiting.answer

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            while len(batch) < LARGEST:
                try:
                    another = self._queue.get_nowait()
                except Empty:
                    break
                if another is None:
                    self._queue.put(None)  # our sign to stop: leave it for after this batch
                    break
                batch.append(another)
            self._write(batch)

    def _write(self, batch: Sequence[_Waiting]) -> None:
        answers: Sequence[JobRecord | Exception]
        try:
            answers = self._store.submissions.submit_batch([one.order for one in batch])
        except Exception as exc:  # told to each caller, in the loop where it waits
            answers = [exc] * len(batch)
        batch[0].loop.call_soon_threadsafe(_settle, batch, answers)


def _settle(batch: Sequence[_Waiting], answers: Sequence[JobRecord | Exception]) -> None:
    for one, answer in zip(batch, answers, strict=True):
        if one.answer.done():
            continue  # its client has gone; the job is recorded all the same
        if isinstance(answer, Exception):
            one.answer.set_exception(answer)
        else:
            one.answer.set_result(answer)
