"""`GET /jobs/{id}/events`: the job's history and live progress as server-sent events, read from SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from rebase.errors import Busy
from rebase.schemas.jobs import build_progress
from rebase.store import api_keys as keys
from rebase.store.records import EventRecord, JobRecord
from service.auth import Caller, CallerDep

router = APIRouter(prefix="/jobs", tags=["jobs"])

_MAX_ID = 2**63 - 1


async def _get_job(job_id: str, caller: CallerDep) -> JobRecord:
    """Load the job before the stream begins, so that a missing one is a 404."""
    return await run_in_threadpool(caller.service.store.jobs.get, caller.tenant, job_id)


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def get_events(
    job: Annotated[JobRecord, Depends(_get_job)],
    caller: CallerDep,
    last_event_id: Annotated[int, Header(ge=0, le=_MAX_ID)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """State transitions, phases and other events of the job with increasing ids; `progress` in between,
    under the id of the last event. The stream ends when the job is done, or soon after its key has expired or
    was revoked. Resume with Last-Event-ID."""
    intervals = caller.service.event_intervals
    last, version = last_event_id, job.version - 1
    key_checked_at = anyio.current_time()
    while True:
        try:
            if anyio.current_time() - key_checked_at >= intervals.key_check_s:
                key_checked_at = anyio.current_time()
                if not await run_in_threadpool(_is_key_active, caller):
                    return
            job, events = await run_in_threadpool(
                caller.service.store.jobs.get_with_events, job.tenant_id, job.id, last
            )
        except Busy:
            await anyio.sleep(intervals.poll_s)
            continue
        for event in events:
            last = event.id
            yield _build_event(event)
        if events:
            continue  # the page may have been full; the next poll finds the rest
        if job.is_done:
            return
        if job.version != version:
            version = job.version
            yield ServerSentEvent(event="progress", id=str(last), data=_build_progress_data(job))
        await anyio.sleep(intervals.poll_s)


def _is_key_active(caller: Caller) -> bool:
    """Whether the key that opened the stream is still valid. Raises Busy."""
    key_id = caller.audit.key_id
    return key_id is None or keys.is_active(caller.service.store, key_id)


def _build_event(event: EventRecord) -> ServerSentEvent:
    return ServerSentEvent(
        event=event.type, id=str(event.id), data={"at": event.at.isoformat(), **event.data}
    )


def _build_progress_data(job: JobRecord) -> dict[str, Any]:
    progress = build_progress(job)
    return {
        "status": job.state.value,
        "phase": job.phase,
        "progress": progress.model_dump() if progress is not None else None,
    }
