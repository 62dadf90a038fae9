"""Anchor pools. Every query is scoped to one tenant: another tenant's pool raises NotFound.

A pool is registered by a job of kind `pool` with the same id, so lease, retries, progress and cancellation
work as for any job. The row in `anchor_pools` exists until the owner deletes the pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select

from rebase.errors import NotFound, StateConflict
from rebase.schemas.anchor_pools import Pool, PoolRequest
from rebase.schemas.states import JobState, PoolState, derive_pool_state
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.job_events import NO_CONTEXT, SubmissionContext
from rebase.store.job_submission import build_job_record, compute_fingerprint, insert_submission, submit_once
from rebase.store.jobs import cancel_locked
from rebase.store.records import JobRecord
from rebase.store.repository import Repository, check_page_limit, decode_cursor, encode_cursor, is_valid_id
from rebase.store.tables.jobs import AnchorPool, Job


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """A pool as shown to its owner, and the job that registers it."""

    job: JobRecord
    name: str | None
    anchor_count: int

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def state(self) -> PoolState:
        """Derived from the job's state."""
        return derive_pool_state(self.job.state)

    @property
    def document(self) -> dict[str, Any]:
        """A dump of PoolRequest: as submitted; once ready, with every revision pinned to a commit."""
        if self.state is PoolState.READY and self.job.result is not None:
            pinned: dict[str, Any] = self.job.result["pool"]
            return pinned
        return self.job.request

    @classmethod
    def from_row(cls, row: Row[Any]) -> PoolRecord:
        """Build from a row of `_select_pools`."""
        return cls(JobRecord.from_row(row), row.pool_name, row.pool_anchors)


@dataclass(frozen=True, slots=True)
class PoolPage:
    """A page of pools, newest first, and the cursor of the next page (None: this is the last one)."""

    pools: tuple[PoolRecord, ...]
    next_cursor: str | None


class AnchorPoolRepository(Repository):
    """Create, read, list, delete and resolve anchor pools."""

    def submit(
        self,
        tenant_id: str,
        request: PoolRequest,
        idempotency_key: str | None = None,
        context: SubmissionContext = NO_CONTEXT,
    ) -> tuple[PoolRecord, bool]:
        """Register a pool: job, event, notification and pool in one transaction.

        The idempotency key works as in `SubmissionRepository.submit`. Raises the same errors, and
        StateConflict for a key whose pool was deleted.
        """
        record = build_job_record(self, tenant_id, "pool", request)

        def write(connection: Connection) -> None:
            insert_submission(connection, record, context)
            connection.execute(
                insert(AnchorPool).values(
                    id=record.id,
                    tenant_id=tenant_id,
                    name=request.name,
                    source_repo=request.source.repo_id,
                    target_repo=request.target.repo_id,
                    anchors=len(request.anchors),
                    created_at=record.created_at,
                )
            )

        if idempotency_key is None:
            with self.db.write() as connection:
                write(connection)
            return PoolRecord(record, request.name, len(request.anchors)), True
        job, created = submit_once(
            self.db, record, compute_fingerprint("pool", request), idempotency_key, write
        )
        try:
            return self.get(tenant_id, job.id), created
        except NotFound as exc:
            raise StateConflict(
                "The anchor pool that this Idempotency-Key registered was deleted.",
                hint="Use a new key to register it again.",
            ) from exc

    def get(self, tenant_id: str, pool_id: str) -> PoolRecord:
        """One pool. Raises NotFound."""
        with self.db.read() as connection:
            return _load(connection, tenant_id, pool_id)

    def list(
        self,
        tenant_id: str,
        *,
        source: str | None = None,
        target: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> PoolPage:
        """Newest first. `source` and `target` are repo ids. Raises RequestInvalid for an invalid cursor."""
        check_page_limit(limit)
        query = _select_pools(tenant_id).order_by(AnchorPool.id.desc())
        if source is not None:
            query = query.where(AnchorPool.source_repo == source)
        if target is not None:
            query = query.where(AnchorPool.target_repo == target)
        if cursor is not None:
            query = query.where(AnchorPool.id < decode_cursor(cursor))
        with self.db.read() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        pools = tuple(PoolRecord.from_row(row) for row in rows[:limit])
        return PoolPage(pools=pools, next_cursor=encode_cursor(pools[-1].id) if len(rows) > limit else None)

    def delete(self, tenant_id: str, pool_id: str, *, audit: AuditContext | None = None) -> None:
        """Delete a pool; its job is kept, and cancelled if it is still validating the pool. Raises
        NotFound."""
        with self.db.write() as connection:
            pool = _load(connection, tenant_id, pool_id, lock=True)
            if connection.execute(delete(AnchorPool).where(AnchorPool.id == pool_id)).rowcount != 1:
                raise _not_found()
            if pool.state is PoolState.VALIDATING and not pool.job.cancel_requested:
                cancel_locked(connection, pool.job, self.clock())
            write_audit_event(connection, self.clock(), audit, "pool.deleted", pool_id)

    def get_ready(self, tenant_id: str, pool_id: str) -> Pool:
        """A ready pool with pinned revisions. Raises NotFound, and StateConflict if it is not ready; both
        errors point at the method's `pool` field."""
        try:
            pool = self.get(tenant_id, pool_id)
        except NotFound as exc:
            exc.pointer = "/method/pool"
            raise
        if pool.state is PoolState.VALIDATING:
            raise StateConflict(
                "This anchor pool is still being validated.",
                hint=f"Wait until GET /anchor-pools/{pool_id} says that it is ready.",
                pointer="/method/pool",
            )
        if pool.state is PoolState.INVALID:
            raise StateConflict(
                "This anchor pool is invalid because its registration failed.",
                hint=f"GET /anchor-pools/{pool_id} says why.",
                pointer="/method/pool",
            )
        return _to_pool(pool)

    def find_for_bases(self, tenant_id: str, source_repo: str, target_repo: str) -> Pool | None:
        """The newest ready pool for this pair of base repos."""
        query = (
            _select_pools(tenant_id)
            .where(AnchorPool.source_repo == source_repo, AnchorPool.target_repo == target_repo)
            .where(Job.state == JobState.SUCCEEDED.value)
            .order_by(AnchorPool.id.desc())
            .limit(1)
        )
        with self.db.read() as connection:
            row = connection.execute(query).one_or_none()
        return _to_pool(PoolRecord.from_row(row)) if row is not None else None


@dataclass(frozen=True, slots=True)
class ScopedAnchorPools:
    """`rebase.schemas.anchor_pools.AnchorPools` for one tenant."""

    store: AnchorPoolRepository
    tenant_id: str

    def get(self, pool_id: str) -> Pool:
        """A ready pool of this tenant. Raises NotFound and StateConflict."""
        return self.store.get_ready(self.tenant_id, pool_id)

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """This tenant's newest ready pool for this pair of base repos."""
        return self.store.find_for_bases(self.tenant_id, source_repo, target_repo)


def _to_pool(pool: PoolRecord) -> Pool:
    return Pool(pool.id, PoolRequest.model_validate(pool.document))


def _select_pools(tenant_id: str) -> Select[Any]:
    return (
        select(Job.__table__, AnchorPool.name.label("pool_name"), AnchorPool.anchors.label("pool_anchors"))
        .join(AnchorPool, AnchorPool.id == Job.id)
        .where(AnchorPool.tenant_id == tenant_id)
    )


def _load(connection: Connection, tenant_id: str, pool_id: str, *, lock: bool = False) -> PoolRecord:
    if not is_valid_id(pool_id):
        raise _not_found()
    query = _select_pools(tenant_id).where(AnchorPool.id == pool_id)
    row = connection.execute(query.with_for_update(of=Job) if lock else query).one_or_none()
    if row is None:
        raise _not_found()
    return PoolRecord.from_row(row)


def _not_found() -> NotFound:
    return NotFound("There is no such anchor pool.", hint="GET /anchor-pools lists yours.")
