"""Publishing the outbox, and recovery from lost messages and dead workers.

Both may run in several processes at once: rows are taken by guarded UPDATEs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVarTuple

from sqlalchemy import Connection, Select, case, delete, func, or_, select, update

from rebase.errors import PublicError, WorkerLost
from rebase.schemas.states import LEASED, TERMINAL, JobState
from rebase.store.concurrency_limits import notify_waiting
from rebase.store.hub_tokens import delete_token
from rebase.store.job_events import (
    CANCELLED_ERROR,
    build_queued_values,
    campaign_paused,
    enqueue_notifications,
    has_started_publishing,
    next_notification_at,
    record_transition,
)
from rebase.store.repository import Repository
from rebase.store.tables.jobs import Job, Outbox

Ts = TypeVarTuple("Ts")

BATCH = 100
LEASE_S = 30.0  # rows leased by a publisher that dies fall due again after this
MAX_BACKOFF_S = 60.0

WORKER_LOST_ERROR = PublicError(
    code=WorkerLost.code,
    message="The worker died on every attempt at this job.",
    hint="Check the workers' logs and memory, then retry the job.",
)


@dataclass(frozen=True, slots=True)
class ReapResult:
    """What one `reap` did."""

    waits_ended: int = 0  # retry waits that were over
    requeued: int = 0  # worker lost, attempts left
    lost: int = 0  # worker lost, no attempts left
    cancelled: int = 0  # worker lost, cancellation requested
    renotified: int = 0  # queued but unclaimed

    @property
    def notifications(self) -> int:
        """Rows added to the outbox."""
        return self.waits_ended + self.requeued + self.renotified


class OutboxRepository(Repository):
    """`publish` notifications and `reap` expired leases, for the scheduler."""

    def publish(self, notify: Callable[[str], None], limit: int = BATCH) -> int:
        """Send the notifications that are due, oldest first; returns how many were sent.

        Rows are leased first and sent outside any transaction, so a slow broker blocks nobody. The first
        failure stops the batch: the remaining rows are delayed (1 s, doubling, at most 60 s) and the error is
        raised.
        """
        now = self.clock()
        with self.db.write() as connection:
            rows = self._lease_rows(connection, now, limit)
        published: list[int] = []
        try:
            for row_id, job_id, _ in rows:
                notify(job_id)
                published.append(row_id)
        finally:
            unpublished = rows[len(published) :]
            if rows:
                self._settle(published, unpublished)
        return len(published)

    def _lease_rows(self, connection: Connection, now: datetime, limit: int) -> list[tuple[int, str, int]]:
        due = (
            select(Outbox.id)
            .where(Outbox.next_at <= now)
            .order_by(Outbox.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        leased = connection.execute(
            update(Outbox)
            .where(Outbox.id.in_(due), Outbox.next_at <= now)
            .values(next_at=now + timedelta(seconds=LEASE_S), tries=Outbox.tries + 1)
            .returning(Outbox.id, Outbox.job_id, Outbox.tries)
        )
        return sorted((row.id, row.job_id, row.tries) for row in leased)

    def _settle(self, published: list[int], unpublished: list[tuple[int, str, int]]) -> None:
        now = self.clock()
        with self.db.write() as connection:
            if published:
                connection.execute(delete(Outbox).where(Outbox.id.in_(published)))
            for row_id, _, tries in unpublished:
                wait = min(MAX_BACKOFF_S, 2.0 ** min(tries - 1, 10))
                connection.execute(
                    update(Outbox).where(Outbox.id == row_id).values(next_at=now + timedelta(seconds=wait))
                )

    def count_pending(self) -> int:
        """Outbox rows that have not been sent yet."""
        with self.db.read() as connection:
            return connection.scalar(select(func.count()).select_from(Outbox)) or 0

    def count_open_jobs_by_state(self) -> dict[JobState, int]:
        """Number of jobs in each non-terminal state."""
        open_states = [state for state in JobState if state not in TERMINAL]
        query = (
            select(Job.state, func.count())
            .where(Job.state.in_([state.value for state in open_states]))
            .group_by(Job.state)
        )
        with self.db.read() as connection:
            counts = {row[0]: row[1] for row in connection.execute(query)}
        return {state: counts.get(state.value, 0) for state in open_states}

    def reap(self) -> ReapResult:
        """Requeue jobs whose retry wait is over, whose worker died or whose notification was lost."""
        now = self.clock()
        freed_tenants: set[str] = set()
        with self.db.write() as connection:
            waits_ended = self._requeue_due(connection, now)
            requeued, lost, cancelled = self._reap_expired_leases(connection, now, freed_tenants)
            renotified = self._renotify(connection, now)
        # Separate transactions: a claim locks its tenant before its job, but the one above locks jobs first.
        for tenant_id in sorted(freed_tenants):
            with self.db.write() as connection:
                renotified += notify_waiting(connection, tenant_id, self.limits, now)
        return ReapResult(waits_ended, requeued, lost, cancelled, renotified)

    def _requeue_due(self, connection: Connection, now: datetime) -> int:
        query = _lock_batch(
            select(Job.id).where(Job.state == JobState.RETRY_WAIT.value, Job.not_before <= now)
        )
        ids = connection.scalars(query).all()
        for job_id in ids:
            self._requeue(connection, job_id, now, "delay passed")
        return len(ids)

    def _reap_expired_leases(
        self, connection: Connection, now: datetime, freed_tenants: set[str]
    ) -> tuple[int, int, int]:
        """Add to `freed_tenants` the tenants that now have fewer running jobs."""
        is_leased = Job.state.in_(sorted(state.value for state in LEASED))
        query = select(Job.id, Job.tenant_id, Job.attempt, Job.attempt_limit, Job.cancel_requested)
        rows = connection.execute(_lock_batch(query.where(is_leased, Job.lease_expires_at <= now))).all()
        counts = {JobState.QUEUED: 0, JobState.FAILED: 0, JobState.CANCELLED: 0}
        for row in rows:
            cancel = row.cancel_requested and not has_started_publishing(connection, row.id)
            state = get_state_after_worker_lost(row.attempt, row.attempt_limit, cancel=cancel)
            counts[state] += 1
            freed_tenants.add(row.tenant_id)
            if state is JobState.QUEUED:
                self._requeue(connection, row.id, now, WorkerLost.code)
            else:
                self._finish(connection, row.id, now, state, CANCELLED_ERROR if cancel else WORKER_LOST_ERROR)
        return counts[JobState.QUEUED], counts[JobState.FAILED], counts[JobState.CANCELLED]

    def _renotify(self, connection: Connection, now: datetime) -> int:
        has_notification = select(Outbox.id).where(Outbox.job_id == Job.id).exists()
        query = select(Job.id, Job.rings).where(
            Job.state == JobState.QUEUED.value,
            or_(Job.ring_after.is_(None), Job.ring_after <= now),
            ~has_notification,
            ~campaign_paused(),
        )
        rows = connection.execute(_lock_batch(query)).all()
        if rows:
            notify_after = {row.id: next_notification_at(now, row.rings + 1) for row in rows}
            connection.execute(
                update(Job)
                .where(Job.id.in_(notify_after))
                .values(rings=Job.rings + 1, ring_after=case(notify_after, value=Job.id))
            )
        enqueue_notifications(connection, [row.id for row in rows], now)
        return len(rows)

    def _requeue(self, connection: Connection, job_id: str, now: datetime, reason: str) -> None:
        connection.execute(
            update(Job).where(Job.id == job_id).values(**build_queued_values(now), version=Job.version + 1)
        )
        record_transition(connection, job_id, now, JobState.QUEUED, reason=reason)
        enqueue_notifications(connection, [job_id], now)

    def _finish(
        self, connection: Connection, job_id: str, now: datetime, state: JobState, error: PublicError
    ) -> None:
        connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(
                state=state.value,
                lease_owner=None,
                lease_expires_at=None,
                phase=None,
                progress_eta_s=None,
                error=error.model_dump(),
                version=Job.version + 1,
                updated_at=now,
                finished_at=now,
            )
        )
        record_transition(connection, job_id, now, state, reason=error.code)
        delete_token(connection, job_id)


def get_state_after_worker_lost(attempt: int, limit: int, *, cancel: bool) -> JobState:
    """The state after a lease expired. `cancel`: cancellation was requested and no commit can exist yet."""
    if cancel:
        return JobState.CANCELLED
    return JobState.QUEUED if attempt < limit else JobState.FAILED


def _lock_batch(query: Select[*Ts]) -> Select[*Ts]:
    return query.order_by(Job.id).limit(BATCH).with_for_update(skip_locked=True, of=Job)
