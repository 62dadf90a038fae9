"""The sealed Hub token that came with a job's request: kept with the job, gone when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, delete, insert, update

from core.tables.jobs import JobToken


def insert_tokens(connection: Connection, encrypted: Mapping[str, str], now: datetime) -> None:
    """Store those of new jobs (id → sealed token) in the transaction that queues them."""
    rows = [
        {"job_id": job_id, "sealed": ciphertext, "created_at": now}
        for job_id, ciphertext in encrypted.items()
    ]
    if rows:
        connection.execute(insert(JobToken), rows)


def upsert_token(connection: Connection, job_id: str, ciphertext: str, now: datetime) -> None:
    """Store one for a job that is queued again."""
    result = connection.execute(update(JobToken).where(JobToken.job_id == job_id).values(sealed=ciphertext))
    if result.rowcount == 0:
        connection.execute(insert(JobToken).values(job_id=job_id, sealed=ciphertext, created_at=now))


def delete_token(connection: Connection, job_id: str) -> None:
    """Forget it, in the transaction that ends the job. Most jobs have none, which is fine."""
    connection.execute(delete(JobToken).where(JobToken.job_id == job_id))
