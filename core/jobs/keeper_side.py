"""What keeps jobs moving when messages are lost and workers die: the relay and the sweeper.

Both may run in several processes at once: a row is taken by one guarded UPDATE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVarTuple

from sqlalchemy import Connection, Select, case, delete, func, or_, select, update

from core.errors import PublicError, WorkerLost
from core.jobs.base import (
    StoreBase,
    add_bells,
    add_move,
    began_publishing,
    is_paused,
    queued_values,
    ring_again_at,
)
from core.jobs.client_side import CANCELLED
from core.jobs.token_rows import wipe_token
from core.jobs.turns import ring_next
from core.states import LEASED, TERMINAL, JobState
from core.tables.jobs import Job, Outbox

Ts = TypeVarTuple("Ts")

BATCH = 100
HELD_S = 30.0  # a relay that dies with rows in hand: they fall due again after this
LAST_BACKOFF_S = 60.0

LOST = PublicError(
    code=WorkerLost.code,
    message="The worker died on every attempt that this job had.",
    hint="Look at the workers' logs and memory, then retry the job.",
)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did."""

    due: int = 0  # waits that were over
    requeued: int = 0  # lost workers, attempts left
    lost: int = 0  # lost workers, no attempts left
    cancelled: int = 0  # lost workers of jobs that were to be cancelled
    rung_again: int = 0  # queued jobs that nobody took

    @property
    def bells(self) -> int:
        """Rows added to the outbox."""
        return self.due + self.requeued + self.rung_again


class KeeperSide(StoreBase):
    """`relay` and `sweep`."""

    def relay(self, ring: Callable[[str], None], limit: int = BATCH) -> int:
        """Ring for due outbox rows, oldest first; returns how many rang.

        Rows are taken first and rung outside any transaction, so a slow broker blocks nobody. Stops at the
        first bell that fails: those rows wait (1 s, doubling, at most 60 s) and the error is raised.
        """
        now = self.clock()
        with self.db.write() as connection:
            rows = self._take(connection, now, limit)
        rung: list[int] = []
        try:
            for row_id, job_id, _ in rows:
                ring(job_id)
                rung.append(row_id)
        finally:
            left = rows[len(rung) :]
            if rows:
                self._settle(rung, left)
        return len(rung)

    def _take(self, connection: Connection, now: datetime, limit: int) -> list[tuple[int, str, int]]:
        due = (
            select(Outbox.id)
            .where(Outbox.next_at <= now)
            .order_by(Outbox.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        taken = connection.execute(
            update(Outbox)
            .where(Outbox.id.in_(due), Outbox.next_at <= now)
            .values(next_at=now + timedelta(seconds=HELD_S), tries=Outbox.tries + 1)
            .returning(Outbox.id, Outbox.job_id, Outbox.tries)
        )
        return sorted((row.id, row.job_id, row.tries) for row in taken)

    def _settle(self, rung: list[int], left: list[tuple[int, str, int]]) -> None:
        now = self.clock()
        with self.db.write() as connection:
            if rung:
                connection.execute(delete(Outbox).where(Outbox.id.in_(rung)))
            for row_id, _, tries in left:
                wait = min(LAST_BACKOFF_S, 2.0 ** min(tries - 1, 10))
                connection.execute(
                    update(Outbox).where(Outbox.id == row_id).values(next_at=now + timedelta(seconds=wait))
                )

    def waiting_bells(self) -> int:
        """Outbox rows that still have to be rung."""
        with self.db.read() as connection:
            return connection.scalar(select(func.count()).select_from(Outbox)) or 0

    def active_counts(self) -> dict[JobState, int]:
        """How many jobs are in each state that is not terminal."""
        active = [state for state in JobState if state not in TERMINAL]
        query = (
            select(Job.state, func.count())
            .where(Job.state.in_([state.value for state in active]))
            .group_by(Job.state)
        )
        with self.db.read() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state.value, 0) for state in active}

    def sweep(self) -> Swept:
        """Put right what nobody else will: ended waits, dead workers, queued jobs whose bell was lost."""
        now = self.clock()
        freed: set[str] = set()
        with self.db.write() as connection:
            due = self._requeue_due(connection, now)
            requeued, lost, cancelled = self._expire(connection, now, freed)
            rung_again = self._ring_again(connection, now)
        # Not above: a claim locks its tenant and then its job, this transaction has locked jobs already.
        for tenant_id in sorted(freed):
            with self.db.write() as connection:
                rung_again += ring_next(connection, tenant_id, self.limits, now)
        return Swept(due, requeued, lost, cancelled, rung_again)

    def _requeue_due(self, connection: Connection, now: datetime) -> int:
        query = _some(select(Job.id).where(Job.state == JobState.RETRY_WAIT.value, Job.not_before <= now))
        ids = connection.scalars(query).all()
        for job_id in ids:
            self._requeue(connection, job_id, now, "wait over")
        return len(ids)

    def _expire(self, connection: Connection, now: datetime, freed: set[str]) -> tuple[int, int, int]:
        """`freed` is told the tenants that have fewer jobs running now."""
        held = Job.state.in_(sorted(state.value for state in LEASED))
        query = select(Job.id, Job.tenant_id, Job.attempt, Job.attempt_limit, Job.cancel_requested)
        rows = connection.execute(_some(query.where(held, Job.lease_expires_at <= now))).all()
        counts = {JobState.QUEUED: 0, JobState.FAILED: 0, JobState.CANCELLED: 0}
        for row in rows:
            cancel = row.cancel_requested and not began_publishing(connection, row.id)
            state = after_worker_lost(row.attempt, row.attempt_limit, cancel=cancel)
            counts[state] += 1
            freed.add(row.tenant_id)
            if state is JobState.QUEUED:
                self._requeue(connection, row.id, now, WorkerLost.code)
            else:
                self._end(connection, row.id, now, state, CANCELLED if cancel else LOST)
        return counts[JobState.QUEUED], counts[JobState.FAILED], counts[JobState.CANCELLED]

    def _ring_again(self, connection: Connection, now: datetime) -> int:
        unrung = select(Outbox.id).where(Outbox.job_id == Job.id).exists()
        query = select(Job.id, Job.rings).where(
            Job.state == JobState.QUEUED.value,
            or_(Job.ring_after.is_(None), Job.ring_after <= now),
            ~unrung,
            ~is_paused(),
        )
        rows = connection.execute(_some(query)).all()
        if rows:
            later = {row.id: ring_again_at(now, row.rings + 1) for row in rows}
            connection.execute(
                update(Job)
                .where(Job.id.in_(later))
                .values(rings=Job.rings + 1, ring_after=case(later, value=Job.id))
            )
        add_bells(connection, [row.id for row in rows], now)
        return len(rows)

    def _requeue(self, connection: Connection, job_id: str, now: datetime, reason: str) -> None:
        connection.execute(
            update(Job).where(Job.id == job_id).values(**queued_values(now), version=Job.version + 1)
        )
        add_move(connection, job_id, now, JobState.QUEUED, reason=reason)
        add_bells(connection, [job_id], now)

    def _end(
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
        add_move(connection, job_id, now, state, reason=error.code)
        wipe_token(connection, job_id)


def after_worker_lost(attempt: int, limit: int, *, cancel: bool) -> JobState:
    """Where a job goes when its lease has run out. `cancel`: somebody asked to, and nothing can stand yet."""
    if cancel:
        return JobState.CANCELLED
    return JobState.QUEUED if attempt < limit else JobState.FAILED


def _some(query: Select[*Ts]) -> Select[*Ts]:
    return query.order_by(Job.id).limit(BATCH).with_for_update(skip_locked=True, of=Job)
