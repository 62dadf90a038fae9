"""Recording a new job: job, first event, bell and idempotency row in one transaction."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, func, insert, select

from core.errors import IdempotencyInFlight, IdempotencyMismatch, QuotaExceeded, RequestInvalid
from core.ids import new_id
from core.jobs.base import NO_CONTEXT, Repository, SubmissionContext
from core.jobs.insert import insert_jobs
from core.jobs.records import ConversionKind, JobRecord, JobRequest, Kind
from core.jobs.room import load_quota, require_quota
from core.jobs.token_rows import insert_tokens
from core.limits import Limits
from core.requests import ConversionRequest
from core.states import JobState
from core.tables.jobs import IdempotencyKey, Job

MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission among many."""

    tenant_id: str
    kind: ConversionKind
    request: ConversionRequest
    extras: SubmissionContext = NO_CONTEXT


class JobSubmission(Repository):
    """`submit`, one at a time or many at once."""

    _in_flight: set[tuple[str, str]] = set()  # noqa: RUF012  (one process, one set)
    _in_flight_lock = threading.Lock()

    def submit(
        self,
        tenant_id: str,
        kind: ConversionKind,
        request: ConversionRequest,
        idempotency_key: str | None = None,
        context: SubmissionContext = NO_CONTEXT,
    ) -> tuple[JobRecord, bool]:
        """Queue a job; with a key that was used before for the same request, return that job and False.

        Raises IdempotencyMismatch (same key, other request), IdempotencyInFlight (the first use is
        still being recorded), RequestInvalid (a key too long), QuotaExceeded and Busy.
        """
        record = self._build_record(tenant_id, kind, request)
        if idempotency_key is None:
            with self.db.statement() if context == NO_CONTEXT else self.db.write() as connection:
                self._insert_submission(connection, record, context)
            return record, True
        write = partial(self._insert_submission, record=record, context=context)
        return self._submit_once(record, compute_fingerprint(kind, request), idempotency_key, write)

    def find_submitted(
        self, tenant_id: str, kind: Kind, request: JobRequest, idempotency_key: str
    ) -> JobRecord | None:
        """The job that this key and request made before, if they did. Raises IdempotencyMismatch."""
        check_idempotency_key(idempotency_key)
        with self.db.read() as connection:
            return self._find_by_key(
                connection, tenant_id, idempotency_key, compute_fingerprint(kind, request)
            )

    def _submit_once(
        self, record: JobRecord, fingerprint: str, key: str, write: Callable[[Connection], None]
    ) -> tuple[JobRecord, bool]:
        """`write` in a transaction that also takes the key; else the job that the key made before."""
        check_idempotency_key(key)
        tenant_id = record.tenant_id
        with self._reserve_key(tenant_id, key), self.db.write() as connection:
            self._lock_key(connection, tenant_id, key)
            existing = self._find_by_key(connection, tenant_id, key, fingerprint)
            if existing is not None:
                return existing, False
            write(connection)
            connection.execute(
                insert(IdempotencyKey).values(
                    tenant_id=tenant_id,
                    key=key,
                    fingerprint=fingerprint,
                    job_id=record.id,
                    created_at=record.created_at,
                )
            )
        return record, True

    def submit_batch(self, submissions: Sequence[Submission]) -> list[JobRecord | QuotaExceeded]:
        """Queue jobs in one transaction, for each order the job or why its tenant may have no more. Raises
        Busy."""
        records = [self._build_record(order.tenant_id, order.kind, order.request) for order in submissions]
        with self.db.write() as connection:
            results = self._apply_quotas(connection, submissions, records)
            accepted = [
                (result, order.extras)
                for result, order in zip(results, submissions, strict=True)
                if isinstance(result, JobRecord)
            ]
            audited = [(record, extras.audit) for record, extras in accepted if extras.audit is not None]
            unaudited = [record for record, extras in accepted if extras.audit is None]
            if unaudited:
                insert_jobs(connection, unaudited)
            if audited:
                insert_jobs(connection, [record for record, _ in audited], [audit for _, audit in audited])
            encrypted = {
                record.id: extras.encrypt_token(record.id)
                for record, extras in accepted
                if extras.encrypt_token is not None
            }
            insert_tokens(connection, encrypted, self.clock())
        return results

    def _apply_quotas(
        self, connection: Connection, submissions: Sequence[Submission], records: Sequence[JobRecord]
    ) -> list[JobRecord | QuotaExceeded]:
        """Each order's record, or its refusal where its tenant's room is used up by those before it."""
        limited: dict[str, Limits] = {
            order.tenant_id: order.extras.limits
            for order in submissions
            if order.extras.limits.has_job_limits
        }
        # In one order for everybody, as each of these is a lock.
        quotas = {
            tenant: load_quota(connection, tenant, limited[tenant], self.clock())
            for tenant in sorted(limited)
        }
        results: list[JobRecord | QuotaExceeded] = []
        used = dict.fromkeys(quotas, 0)
        for order, record in zip(submissions, records, strict=True):
            quota = quotas.get(order.tenant_id)
            if quota is not None and quota.error is not None and used[order.tenant_id] >= quota.remaining:
                results.append(quota.error)
                continue
            if quota is not None:
                used[order.tenant_id] += 1
            results.append(record)
        return results

    def _insert_submission(
        self, connection: Connection, record: JobRecord, context: SubmissionContext
    ) -> None:
        """One job with what comes with it, in the caller's transaction. Raises QuotaExceeded."""
        require_quota(connection, record.tenant_id, context.limits, record.created_at)
        insert_jobs(connection, [record], [context.audit] if context.audit is not None else None)
        if context.encrypt_token is not None:
            insert_tokens(connection, {record.id: context.encrypt_token(record.id)}, record.created_at)

    def _build_record(self, tenant_id: str, kind: Kind, request: JobRequest) -> JobRecord:
        now: datetime = self.clock()
        values: dict[str, Any] = dict.fromkeys(JobRecord.__slots__)
        values.update(
            id=new_id(),
            tenant_id=tenant_id,
            kind=kind,
            state=JobState.QUEUED,
            request=request.model_dump(mode="json"),
            attempt=0,
            attempt_limit=self.max_attempts,
            cancel_requested=False,
            version=1,
            created_at=now,
            updated_at=now,
        )
        return JobRecord(**values)

    @contextmanager
    def _reserve_key(self, tenant_id: str, key: str) -> Iterator[None]:
        """Within this process a key is used by one submission at a time."""
        entry = (tenant_id, key)
        with self._in_flight_lock:
            if entry in self._in_flight:
                raise _in_flight_error()
            self._in_flight.add(entry)
        try:
            yield
        finally:
            with self._in_flight_lock:
                self._in_flight.discard(entry)

    def _lock_key(self, connection: Connection, tenant_id: str, key: str) -> None:
        """The same between processes: an advisory lock of the transaction. SQLite has one writer anyway."""
        if not self.db.is_postgres:
            return
        digest = hashlib.sha256(f"{tenant_id}\0{key}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        if not connection.scalar(select(func.pg_try_advisory_xact_lock(number))):
            raise _in_flight_error()

    def _find_by_key(
        self, connection: Connection, tenant_id: str, key: str, fingerprint: str
    ) -> JobRecord | None:
        row = connection.execute(
            select(Job.__table__, IdempotencyKey.fingerprint)
            .join(IdempotencyKey, IdempotencyKey.job_id == Job.id)
            .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        ).one_or_none()
        if row is None:
            return None
        if row.fingerprint != fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used before for a different request.",
                hint="Use a new key for a new request.",
            )
        return JobRecord.from_row(row)


def check_idempotency_key(key: str) -> None:
    """Refuse keys that are empty, too long or not printable ASCII. Raises RequestInvalid."""
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise RequestInvalid(f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters.")


def compute_fingerprint(kind: Kind, request: JobRequest) -> str:
    """SHA-256 of the request with its defaults filled in, so that `null` and `left out` are the same."""
    return hashlib.sha256(f"{kind}\n{request.model_dump_json()}".encode()).hexdigest()


def _in_flight_error() -> IdempotencyInFlight:
    return IdempotencyInFlight(
        "A request with this Idempotency-Key is being recorded right now.", hint="Try again in a second."
    )
