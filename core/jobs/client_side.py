"""What a job's owner may do: look, page, cancel, retry. Another tenant's job does not exist here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update

from core.audit import Trail, write_line
from core.errors import NotFound, PublicError, RequestInvalid, StateConflict
from core.jobs.base import (
    PLAIN,
    Extras,
    StoreBase,
    add_bells,
    add_event,
    add_move,
    began_publishing,
    queued_values,
)
from core.jobs.figure_rows import read_figures, replace_figures
from core.jobs.layer_rows import read_layers, replace_layers
from core.jobs.records import (
    NO_LAYERS,
    OWN_KINDS,
    Diagnostics,
    EventRecord,
    JobPage,
    JobRecord,
    decode_cursor,
    encode_cursor,
)
from core.jobs.room import check_room
from core.jobs.token_rows import keep_token, wipe_token
from core.states import TERMINAL, JobState
from core.tables.jobs import AnchorPool, Job, JobEvent, SiteDiagnostics

MAX_PAGE = 200
_JOB_ID = re.compile(r"[0-9a-f]{32}")
CANCELLED = PublicError(code="cancelled", message="The job was cancelled.")


class ClientSide(StoreBase):
    """Reads and the two requests that a person can make of a job."""

    def get(self, tenant_id: str, job_id: str) -> JobRecord:
        """One job. Raises NotFound."""
        with self.db.read() as connection:
            return _load(connection, tenant_id, job_id)

    def diagnostics(self, tenant_id: str, job_id: str) -> Diagnostics:
        """What the latest run measured (empty before the pre-check). Raises NotFound."""
        with self.db.read() as connection:
            job = _load(connection, tenant_id, job_id)
            rows = connection.scalars(
                select(SiteDiagnostics.data)
                .where(SiteDiagnostics.job_id == job_id)
                .order_by(SiteDiagnostics.position)
            ).all()
            layers, figures = read_layers(connection, job_id), read_figures(connection, job_id)
        return Diagnostics(job.verdict, job.diagnostics, tuple(rows), layers, figures)

    def events(self, tenant_id: str, job_id: str, after: int = 0) -> Sequence[EventRecord]:
        """The job's history with ids above `after`, oldest first, at most a page. Raises NotFound."""
        return self.history(tenant_id, job_id, after)[1]

    def history(self, tenant_id: str, job_id: str, after: int = 0) -> tuple[JobRecord, Sequence[EventRecord]]:
        """The job, then its events above `after`: none of those that led to this state is missing."""
        with self.db.read() as connection:
            job = _load(connection, tenant_id, job_id)
            rows = connection.execute(
                select(JobEvent.id, JobEvent.at, JobEvent.type, JobEvent.data)
                .where(JobEvent.job_id == job_id, JobEvent.id > after)
                .order_by(JobEvent.id)
                .limit(MAX_PAGE)
            ).all()
        return job, [EventRecord(id=row.id, at=row.at, type=row.type, data=row.data) for row in rows]

    def cancel(self, tenant_id: str, job_id: str, *, trail: Trail | None = None) -> JobRecord:
        """Cancel at once when nobody runs the job, else set the flag that its worker reads.

        What may stand on the hub already must not be called cancelled: a job that once came to publishing is
        left to its next worker, which looks first. Cancelling twice is fine. Raises NotFound, StateConflict
        when the job has ended otherwise or is being published.
        """
        with self.db.write() as connection:
            job = _load(connection, tenant_id, job_id, lock=True)
            if job.state is JobState.CANCELLED or job.cancel_requested:
                return job
            if job.state in TERMINAL:
                raise StateConflict(f"The job has already ended: it is '{job.state.value}'.")
            if job.state is JobState.PUBLISHING:
                raise StateConflict("It is too late to cancel: the result is being published.")
            cancel_locked(connection, job, self.clock())
            write_line(connection, self.clock(), trail, "job.cancelled", job_id)
            return _load(connection, tenant_id, job_id)

    def retry(self, tenant_id: str, job_id: str, *, extras: Extras = PLAIN) -> JobRecord:
        """Queue an ended job again with a fresh budget of attempts; what the last run left is cleared.

        A Hub token that came with the first request is gone; one may come with this one. Raises NotFound,
        StateConflict when the job succeeded or has not ended, or its pool was deleted, and QuotaExceeded.
        """
        now = self.clock()
        with self.db.write() as connection:
            job = _load(connection, tenant_id, job_id, lock=True)
            if job.state not in TERMINAL - {JobState.SUCCEEDED}:
                state = job.state.value
                raise StateConflict(
                    f"Only failed, rejected or cancelled jobs can be retried; it is '{state}'."
                )
            pool = select(AnchorPool.id).where(AnchorPool.id == job_id)
            if job.kind == "pool" and connection.scalar(pool) is None:
                raise StateConflict(
                    "The anchor pool of this job was deleted.", hint="Register it again: POST /anchor-pools."
                )
            check_room(connection, tenant_id, extras.limits, now, new=False)
            retry_locked(connection, job_id, now, self.max_attempts)
            if extras.seal is not None:
                keep_token(connection, job_id, extras.seal(job_id), now)
            write_line(connection, now, extras.trail, "job.retried", job_id)
            return _load(connection, tenant_id, job_id)

    def list(
        self,
        tenant_id: str,
        *,
        state: JobState | None = None,
        adapter: str | None = None,
        target: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Newest first. `adapter` and `target` are repo ids. Raises RequestInvalid for a foreign cursor."""
        check_limit(limit)
        query = select(Job.__table__).where(_of(tenant_id)).order_by(Job.id.desc())
        if state is not None:
            query = query.where(Job.state == state.value)
        if adapter is not None:
            query = query.where(Job.adapter_repo == adapter)
        if target is not None:
            query = query.where(Job.target_repo == target)
        if cursor is not None:
            query = query.where(Job.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        jobs = tuple(JobRecord.from_row(row) for row in rows[:limit])
        return JobPage(jobs=jobs, next_cursor=encode_cursor(jobs[-1].id) if len(rows) > limit else None)


def cancel_locked(connection: Connection, job: JobRecord, now: datetime) -> None:
    """Cancel a job that has not ended, whose row the caller has locked; see `ClientSide.cancel`."""
    changed = update(Job).where(Job.id == job.id).values(version=Job.version + 1, updated_at=now)
    if job.state is JobState.RUNNING or began_publishing(connection, job.id):
        connection.execute(changed.values(cancel_requested=True))
        add_event(connection, job.id, now, "cancel_requested")
        return
    connection.execute(
        changed.values(
            state=JobState.CANCELLED.value,
            cancel_requested=True,
            not_before=None,
            finished_at=now,
            error=CANCELLED.model_dump(),
        )
    )
    add_move(connection, job.id, now, JobState.CANCELLED)
    wipe_token(connection, job.id)


def retry_locked(connection: Connection, job_id: str, now: datetime, max_attempts: int) -> None:
    """Queue an ended job again, whose row the caller has locked; see `ClientSide.retry`."""
    cleared = dict.fromkeys(("error", "result", "diagnostics", "verdict", "started_at", "finished_at"))
    connection.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            **queued_values(now),
            **cleared,
            cancel_requested=False,
            attempt_limit=Job.attempt + max_attempts,
            version=Job.version + 1,
        )
    )
    connection.execute(delete(SiteDiagnostics).where(SiteDiagnostics.job_id == job_id))
    replace_layers(connection, job_id, NO_LAYERS)
    replace_figures(connection, job_id, ())
    add_move(connection, job_id, now, JobState.QUEUED, reason="retry")
    add_bells(connection, [job_id], now)


def is_job_id(text: str) -> bool:
    """Can this be an id? A foreign string may hold what the database refuses."""
    return _JOB_ID.fullmatch(text) is not None


def check_limit(limit: int) -> None:
    """Raises RequestInvalid for a page that is too small or too large."""
    if not 1 <= limit <= MAX_PAGE:
        raise RequestInvalid(f"'limit' must be between 1 and {MAX_PAGE}.", pointer="/limit")


def _of(tenant_id: str) -> ColumnElement[bool]:
    """A tenant's jobs as it may see them. The service's own are left out: they name repos that may turn out
    to be hidden from the tenant."""
    return and_(Job.tenant_id == tenant_id, Job.kind.not_in(OWN_KINDS))


def _load(connection: Connection, tenant_id: str, job_id: str, *, lock: bool = False) -> JobRecord:
    if not is_job_id(job_id):
        raise NotFound("There is no such job.")
    query = select(Job.__table__).where(Job.id == job_id, _of(tenant_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    return JobRecord.from_row(row)
