"""What a worker can do with a job it has claimed. Every write is fenced by id, attempt, owner and state.

Zero rows changed means that the lease expired and another worker has the job: LeaseLost, stop working on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Update, and_, delete, insert, or_, select, update

from rebase.errors import Cancelled, LeaseLost, PublicError
from rebase.schemas.states import LEASED, TERMINAL, JobState, Phase, get_source_states
from rebase.store.concurrency_limits import build_concurrency_condition, notify_waiting
from rebase.store.diagnostics import replace_layer_similarity, replace_metrics
from rebase.store.hub_tokens import delete_token
from rebase.store.job_events import (
    CANCELLED_ERROR,
    add_event,
    campaign_paused,
    has_started_publishing,
    record_transition,
)
from rebase.store.records import (
    NO_LAYER_SIMILARITY,
    Claim,
    LayerSimilarityMatrix,
    MetricRow,
    get_request_model,
)
from rebase.store.repository import Repository
from rebase.store.tables.jobs import Job, SiteDiagnostics


class JobQueue(Repository):
    """Claim jobs, report progress, settle."""

    def claim(self, job_id: str, owner: str, lease_s: float) -> Claim | None:
        """Claim a queued job, or one whose retry wait is over. None: not claimable, its campaign is paused,
        or its tenant is at its concurrency limit. `owner` identifies this worker."""
        now = self.clock()
        due = and_(Job.state == JobState.RETRY_WAIT.value, Job.not_before <= now)
        with self.db.write() as connection:
            within_limit = build_concurrency_condition(connection, job_id, self.limits)
            row = connection.execute(
                update(Job)
                .where(Job.id == job_id, or_(Job.state == JobState.QUEUED.value, due), ~campaign_paused())
                .where(*([within_limit] if within_limit is not None else []))
                .values(
                    state=JobState.RUNNING.value,
                    attempt=Job.attempt + 1,
                    lease_owner=owner,
                    lease_expires_at=now + timedelta(seconds=lease_s),
                    not_before=None,
                    ring_after=None,
                    phase=Phase.RESOLVING.value,
                    error=None,
                    version=Job.version + 1,
                    updated_at=now,
                    started_at=now,
                )
                .returning(Job.tenant_id, Job.kind, Job.request, Job.attempt)
            ).one_or_none()
            if row is None:
                return None
            record_transition(connection, job_id, now, JobState.RUNNING, attempt=row.attempt)
        request = get_request_model(row.kind).model_validate(row.request)
        return Claim(job_id, row.tenant_id, row.kind, request, row.attempt, owner)

    def heartbeat(self, claim: Claim, lease_s: float) -> bool:
        """Extend the lease. True: cancellation was requested. Raises LeaseLost."""
        expires = self.clock() + timedelta(seconds=lease_s)
        with self.db.statement() as connection:
            row = connection.execute(
                _fenced_update(claim).values(lease_expires_at=expires).returning(Job.cancel_requested)
            ).one_or_none()
        return bool(_require_row(row, claim).cancel_requested)

    def report_progress(
        self,
        claim: Claim,
        phase: Phase,
        done: int = 0,
        total: int | None = None,
        unit: str | None = None,
        eta_s: float | None = None,
    ) -> None:
        """Publish progress. Only a change of phase adds an event to the history. Raises LeaseLost."""
        now = self.clock()
        statement = _fenced_update(claim).values(
            phase=phase.value,
            progress_done=done,
            progress_total=total,
            progress_unit=unit,
            progress_eta_s=eta_s,
            version=Job.version + 1,
            updated_at=now,
        )
        with self.db.write() as connection:
            if connection.execute(statement.where(Job.phase.is_distinct_from(phase.value))).rowcount:
                add_event(connection, claim.job_id, now, "phase", {"phase": phase.value})
            else:
                _update_one(connection, statement, claim)

    def record_resolved(
        self,
        claim: Claim,
        *,
        adapter_sha: str,
        source_repo: str,
        source_sha: str,
        target_sha: str,
        output_repo: str | None,
    ) -> None:
        """Record the pinned commits and the output repo. Raises LeaseLost."""
        pins = {
            "adapter_sha": adapter_sha,
            "source_repo": source_repo,
            "source_sha": source_sha,
            "target_sha": target_sha,
            "output_repo": output_repo,
        }
        now = self.clock()
        with self.db.write() as connection:
            _update_one(
                connection,
                _fenced_update(claim).values(**pins, version=Job.version + 1, updated_at=now),
                claim,
            )
            add_event(connection, claim.job_id, now, "resolved", pins)

    def mark_publishing(self, claim: Claim) -> None:
        """The last step before the commit. Raises Cancelled if cancellation was requested (then nothing may
        be published), and LeaseLost if another worker has the job."""
        with self.db.write() as connection:
            row = lock_claimed_job(connection, claim, {JobState.RUNNING})
            if row.cancel_requested:
                raise Cancelled(CANCELLED_ERROR.message)
            self._transition(connection, claim, JobState.PUBLISHING)

    def has_started_publishing(self, claim: Claim) -> bool:
        """Whether a commit of this job may exist on the Hub, made by this attempt or an earlier one."""
        with self.db.read() as connection:
            return has_started_publishing(connection, claim.job_id)

    def save_diagnostics(
        self,
        claim: Claim,
        summary: dict[str, Any],
        sites: list[dict[str, Any]],
        verdict: str | None,
        layer_similarity: LayerSimilarityMatrix = NO_LAYER_SIMILARITY,
        metrics: Sequence[MetricRow] = (),
    ) -> None:
        """Replace the job's diagnostics, including those of earlier attempts. Raises LeaseLost."""
        now = self.clock()
        values = {"diagnostics": summary, "verdict": verdict, "updated_at": now}
        with self.db.write() as connection:
            _update_one(connection, _fenced_update(claim).values(**values, version=Job.version + 1), claim)
            connection.execute(delete(SiteDiagnostics).where(SiteDiagnostics.job_id == claim.job_id))
            if sites:
                rows = [
                    {"job_id": claim.job_id, "position": position, "data": site}
                    for position, site in enumerate(sites)
                ]
                connection.execute(insert(SiteDiagnostics), rows)
            replace_layer_similarity(connection, claim.job_id, layer_similarity)
            replace_metrics(connection, claim.job_id, metrics)
            add_event(connection, claim.job_id, now, "diagnostics", {"verdict": verdict, "sites": len(sites)})

    def succeed(self, claim: Claim, result: dict[str, Any]) -> None:
        """End the job as succeeded with its result. Raises LeaseLost."""
        with self.db.write() as connection:
            self._transition(connection, claim, JobState.SUCCEEDED, result=result)

    def reject(self, claim: Claim, error: PublicError) -> None:
        """End the job as rejected: its verdict or its measurements forbid publishing. Raises LeaseLost."""
        with self.db.write() as connection:
            self._transition(connection, claim, JobState.REJECTED, error=error.model_dump())

    def mark_cancelled(self, claim: Claim) -> None:
        """End the job as cancelled by its owner. Raises LeaseLost."""
        with self.db.write() as connection:
            self._transition(connection, claim, JobState.CANCELLED, error=CANCELLED_ERROR.model_dump())

    def fail(self, claim: Claim, error: PublicError, retry_in_s: float | None = None) -> JobState:
        """End this attempt: retry after `retry_in_s` while attempts are left, else end the job.

        Returns the new state. Raises LeaseLost.
        """
        with self.db.write() as connection:
            row = lock_claimed_job(connection, claim, LEASED)
            state = get_state_after_failure(
                attempt=claim.attempt,
                limit=row.attempt_limit,
                retryable=retry_in_s is not None,
                cancel=row.cancel_requested and not has_started_publishing(connection, claim.job_id),
            )
            public_error = CANCELLED_ERROR if state is JobState.CANCELLED else error
            retry_at: datetime | None = None
            if state is JobState.RETRY_WAIT and retry_in_s is not None:
                retry_at = self.clock() + timedelta(seconds=retry_in_s)
            # A waiting job has not ended, so the failure goes into its history and not into `error`.
            final_values = {"error": public_error.model_dump()} if state is not JobState.RETRY_WAIT else {}
            self._transition(connection, claim, state, not_before=retry_at, reason=error.code, **final_values)
        return state

    def _transition(
        self,
        connection: Connection,
        claim: Claim,
        state: JobState,
        *,
        reason: str | None = None,
        **values: Any,
    ) -> None:
        now = self.clock()
        columns: dict[str, Any] = {
            "state": state.value,
            "version": Job.version + 1,
            "updated_at": now,
            **values,
        }
        if state is not JobState.PUBLISHING:
            columns |= {"lease_owner": None, "lease_expires_at": None, "phase": None, "progress_eta_s": None}
            if state is not JobState.RETRY_WAIT:
                columns["finished_at"] = now
        allowed = get_source_states(state) & LEASED
        _update_one(connection, _fenced_update(claim, allowed).values(**columns), claim)
        record_transition(connection, claim.job_id, now, state, **({"reason": reason} if reason else {}))
        if state in TERMINAL:
            delete_token(connection, claim.job_id)
        if state not in LEASED:
            notify_waiting(connection, claim.tenant_id, self.limits, now)


def get_state_after_failure(*, attempt: int, limit: int, retryable: bool, cancel: bool) -> JobState:
    """The state after a failed attempt. `cancel`: cancellation was requested and no commit can exist yet."""
    if cancel:
        return JobState.CANCELLED
    return JobState.RETRY_WAIT if retryable and attempt < limit else JobState.FAILED


def _fence_condition(claim: Claim, states: Collection[JobState]) -> ColumnElement[bool]:
    return and_(
        Job.id == claim.job_id,
        Job.attempt == claim.attempt,
        Job.lease_owner == claim.owner,
        Job.state.in_(sorted(state.value for state in states)),
    )


def _fenced_update(claim: Claim, states: Collection[JobState] = LEASED) -> Update:
    return update(Job).where(_fence_condition(claim, states))


def lock_claimed_job(connection: Connection, claim: Claim, states: Collection[JobState]) -> Any:
    """Lock the job's row if the claim still holds. Raises LeaseLost."""
    query = (
        select(Job.attempt_limit, Job.cancel_requested)
        .where(_fence_condition(claim, states))
        .with_for_update()
    )
    return _require_row(connection.execute(query).one_or_none(), claim)


def _update_one(connection: Connection, statement: Update, claim: Claim) -> None:
    if connection.execute(statement).rowcount != 1:
        raise _lease_lost(claim)


def _require_row(row: Any, claim: Claim) -> Any:
    """The row, or raise LeaseLost if the fenced statement matched none."""
    if row is None:
        raise _lease_lost(claim)
    return row


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"Attempt {claim.attempt} no longer holds this job.")
