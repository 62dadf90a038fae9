"""What a job's owner can do: read, list, cancel and retry. Another tenant's job raises NotFound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update

from rebase.errors import NotFound, StateConflict
from rebase.schemas.states import TERMINAL, JobState
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.diagnostics import (
    read_layer_similarity,
    read_metrics,
    replace_layer_similarity,
    replace_metrics,
)
from rebase.store.hub_tokens import delete_token, upsert_token
from rebase.store.job_events import (
    CANCELLED_ERROR,
    NO_CONTEXT,
    SubmissionContext,
    add_event,
    build_queued_values,
    enqueue_notifications,
    has_started_publishing,
    record_transition,
)
from rebase.store.quota import require_quota
from rebase.store.records import (
    INTERNAL_KINDS,
    NO_LAYER_SIMILARITY,
    Diagnostics,
    EventRecord,
    JobPage,
    JobRecord,
)
from rebase.store.repository import (
    MAX_PAGE,
    Repository,
    check_page_limit,
    decode_cursor,
    encode_cursor,
    is_valid_id,
)
from rebase.store.tables.jobs import AnchorPool, Job, JobEvent, SiteDiagnostics


class JobRepository(Repository):
    """Reading jobs, and cancelling and retrying them on a client's request."""

    def get(self, tenant_id: str, job_id: str) -> JobRecord:
        """One job. Raises NotFound."""
        with self.db.read() as connection:
            return _load(connection, tenant_id, job_id)

    def get_diagnostics(self, tenant_id: str, job_id: str) -> Diagnostics:
        """What the latest run measured (empty before the pre-check). Raises NotFound."""
        with self.db.read() as connection:
            job = _load(connection, tenant_id, job_id)
            rows = connection.scalars(
                select(SiteDiagnostics.data)
                .where(SiteDiagnostics.job_id == job_id)
                .order_by(SiteDiagnostics.position)
            ).all()
            layer_similarity, metrics = (
                read_layer_similarity(connection, job_id),
                read_metrics(connection, job_id),
            )
        return Diagnostics(job.verdict, job.diagnostics, tuple(rows), layer_similarity, metrics)

    def list_events(self, tenant_id: str, job_id: str, after: int = 0) -> Sequence[EventRecord]:
        """The job's events with ids above `after`, oldest first, at most one page. Raises NotFound."""
        return self.get_with_events(tenant_id, job_id, after)[1]

    def get_with_events(
        self, tenant_id: str, job_id: str, after: int = 0
    ) -> tuple[JobRecord, Sequence[EventRecord]]:
        """The job, then its events above `after`, including every event that led to the state returned.
        Raises NotFound."""
        with self.db.read() as connection:
            job = _load(connection, tenant_id, job_id)
            rows = connection.execute(
                select(JobEvent.id, JobEvent.at, JobEvent.type, JobEvent.data)
                .where(JobEvent.job_id == job_id, JobEvent.id > after)
                .order_by(JobEvent.id)
                .limit(MAX_PAGE)
            ).all()
        return job, [EventRecord(id=row.id, at=row.at, type=row.type, data=row.data) for row in rows]

    def cancel(self, tenant_id: str, job_id: str, *, audit: AuditContext | None = None) -> JobRecord:
        """Cancel at once if no worker runs the job, else set the flag that its worker reads.

        A job that ever reached publishing may have a commit on the Hub, so it is left to its next worker,
        which checks first. Idempotent. Raises NotFound, and StateConflict if the job has ended otherwise or
        is being published.
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
            write_audit_event(connection, self.clock(), audit, "job.cancelled", job_id)
            return _load(connection, tenant_id, job_id)

    def retry(self, tenant_id: str, job_id: str, *, context: SubmissionContext = NO_CONTEXT) -> JobRecord:
        """Queue an ended job again with a fresh budget of attempts; results of the last run are cleared.

        The Hub token of the first request has been deleted; this request may bring a new one. Raises
        NotFound, StateConflict if the job succeeded, has not ended or lost its pool, and QuotaExceeded.
        """
        now = self.clock()
        with self.db.write() as connection:
            job = _load(connection, tenant_id, job_id, lock=True)
            if job.state not in TERMINAL - {JobState.SUCCEEDED}:
                state = job.state.value
                raise StateConflict(
                    f"Only failed, rejected or cancelled jobs can be retried; it is '{state}'."
                )
            has_pool = select(AnchorPool.id).where(AnchorPool.id == job_id)
            if job.kind == "pool" and connection.scalar(has_pool) is None:
                raise StateConflict(
                    "The anchor pool of this job was deleted.", hint="Register it again: POST /anchor-pools."
                )
            require_quota(connection, tenant_id, context.limits, now, is_new=False)
            retry_locked(connection, job_id, now, self.max_attempts)
            if context.encrypt_token is not None:
                upsert_token(connection, job_id, context.encrypt_token(job_id), now)
            write_audit_event(connection, now, context.audit, "job.retried", job_id)
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
        """Newest first. `adapter` and `target` are repo ids. Raises RequestInvalid for an invalid cursor."""
        check_page_limit(limit)
        query = select(Job.__table__).where(_visible_to(tenant_id)).order_by(Job.id.desc())
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
    """Cancel an unfinished job whose row the caller has locked; see `JobRepository.cancel`."""
    statement = update(Job).where(Job.id == job.id).values(version=Job.version + 1, updated_at=now)
    if job.state is JobState.RUNNING or has_started_publishing(connection, job.id):
        connection.execute(statement.values(cancel_requested=True))
        add_event(connection, job.id, now, "cancel_requested")
        return
    connection.execute(
        statement.values(
            state=JobState.CANCELLED.value,
            cancel_requested=True,
            not_before=None,
            finished_at=now,
            error=CANCELLED_ERROR.model_dump(),
        )
    )
    record_transition(connection, job.id, now, JobState.CANCELLED)
    delete_token(connection, job.id)


def retry_locked(connection: Connection, job_id: str, now: datetime, max_attempts: int) -> None:
    """Requeue an ended job whose row the caller has locked; see `JobRepository.retry`."""
    cleared = dict.fromkeys(("error", "result", "diagnostics", "verdict", "started_at", "finished_at"))
    connection.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            **build_queued_values(now),
            **cleared,
            cancel_requested=False,
            attempt_limit=Job.attempt + max_attempts,
            version=Job.version + 1,
        )
    )
    connection.execute(delete(SiteDiagnostics).where(SiteDiagnostics.job_id == job_id))
    replace_layer_similarity(connection, job_id, NO_LAYER_SIMILARITY)
    replace_metrics(connection, job_id, ())
    record_transition(connection, job_id, now, JobState.QUEUED, reason="retry")
    enqueue_notifications(connection, [job_id], now)


def _visible_to(tenant_id: str) -> ColumnElement[bool]:
    """The tenant's own jobs. Internal jobs are left out: they may name repos that the tenant cannot see on
    the Hub."""
    return and_(Job.tenant_id == tenant_id, Job.kind.not_in(INTERNAL_KINDS))


def _load(connection: Connection, tenant_id: str, job_id: str, *, lock: bool = False) -> JobRecord:
    if not is_valid_id(job_id):
        raise NotFound("There is no such job.")
    query = select(Job.__table__).where(Job.id == job_id, _visible_to(tenant_id))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    return JobRecord.from_row(row)
