"""The sealed Hub token that came with a job's request: kept with the job, gone when it ends."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, insert, update

from core.tables import JobToken


def keep_token(connection: Connection, job_id: str, sealed: str, now: datetime) -> None:
    """Store it in the transaction that queues the job, in place of one that is there."""
    changed = connection.execute(update(JobToken).where(JobToken.job_id == job_id).values(sealed=sealed))
    if changed.rowcount == 0:
        connection.execute(insert(JobToken).values(job_id=job_id, sealed=sealed, created_at=now))


def wipe_token(connection: Connection, job_id: str) -> None:
    """Forget it, in the transaction that ends the job. Most jobs have none, which is fine."""
    connection.execute(delete(JobToken).where(JobToken.job_id == job_id))
