"""Writes the delivery that a job's move asks for, in the transaction of the move: told if it happened."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from core.callbacks.spec import EVENT_BY_STATE, CallbackEvent, DeliveryState
from core.callbacks.url import parse_callback_url
from core.ids import new_id
from core.states import JobState
from core.tables.callbacks import CallbackDelivery, CallbackStop
from core.tables.jobs import Job


def enqueue_delivery(connection: Connection, job_id: str, at: datetime, state: JobState) -> None:
    """Record a delivery when the job's request asks to hear of this move; its row has the new state already.

    A URL that has answered 410 to this tenant gets a row that is stopped from the start, for a replay.
    """
    event = EVENT_BY_STATE.get(state)
    if event is None:
        return
    # Most jobs have none, and the rest of a request may be long.
    callback = connection.scalar(select(Job.request["callback"]).where(Job.id == job_id))
    if callback is None or event.value not in callback["events"]:
        return
    row = connection.execute(select(Job.__table__).where(Job.id == job_id)).one()
    url = callback["url"]
    digest = hash_url(url)
    stopped = select(CallbackStop.at).where(
        CallbackStop.tenant_id == row.tenant_id, CallbackStop.url_sha256 == digest
    )
    is_pending = connection.scalar(stopped) is None
    connection.execute(
        insert(CallbackDelivery).values(
            id=new_id(),
            tenant_id=row.tenant_id,
            job_id=job_id,
            event=event.value,
            url=url,
            url_sha256=digest,
            receiver=parse_callback_url(url).origin,
            payload=build_payload(row, event, at),
            state=(DeliveryState.PENDING if is_pending else DeliveryState.STOPPED).value,
            attempts=0,
            failures=0,
            next_at=at if is_pending else None,
            created_at=at,
            updated_at=at,
        )
    )


def hash_url(url: str) -> str:
    """What a URL is stopped by."""
    return hashlib.sha256(url.encode()).hexdigest()


def build_payload(job: Row[Any], event: CallbackEvent, at: datetime) -> str:
    """The message as JSON text. Small and stable: names and codes; whoever wants more asks the API."""
    output = (job.result or {}).get("output") or {}
    error = job.error or {}
    data = {
        "job": job.id,
        "kind": job.kind,
        "state": job.state,
        "attempt": job.attempt,
        "verdict": job.verdict,
        "adapter": job.adapter_repo,
        "target": job.target_repo,
        "output": {"repo_id": output.get("repo_id"), "commit": output.get("commit")} if output else None,
        "error": {"code": error.get("code"), "message": error.get("message")} if error else None,
        "path": f"/jobs/{job.id}",
    }
    message = {"type": event.value, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data}
    return json.dumps(message, ensure_ascii=True, separators=(",", ":"))
