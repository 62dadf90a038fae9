"""Submitting jobs: quotas, idempotency keys, and inserting each job with its first event and notification."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, func, insert, select

from rebase.errors import IdempotencyInFlight, IdempotencyMismatch, QuotaExceeded, RequestInvalid
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import ConversionKind, JobState, Kind
from rebase.store.audit import AuditContext
from rebase.store.database import Database
from rebase.store.hub_tokens import insert_tokens
from rebase.store.job_events import NO_CONTEXT, SubmissionContext, next_notification_at
from rebase.store.limits import Limits
from rebase.store.quota import load_quota, require_quota
from rebase.store.records import JobRecord, JobRequest
from rebase.store.repository import Repository, new_id
from rebase.store.tables.jobs import IdempotencyKey, Job, JobEvent, Outbox
from rebase.store.tables.tenants import AuditEvent

_JOB_COLUMNS = [
    "id",
    "tenant_id",
    "kind",
    "state",
    "request",
    "adapter_repo",
    "target_repo",
    "attempt",
    "attempt_limit",
    "cancel_requested",
    "ring_after",
    "rings",
    "version",
    "created_at",
    "updated_at",
]
_INSERT_JOB = insert(Job).values(
    {name: bindparam(f"p_{name}", type_=Job.__table__.c[name].type) for name in _JOB_COLUMNS}
)
_TIMESTAMP = Job.__table__.c.created_at.type
_INSERT_EVENT = insert(JobEvent).values(
    job_id=bindparam("p_id"),
    at=bindparam("p_created_at", type_=_TIMESTAMP),
    type="state",
    data={"state": JobState.QUEUED.value},
)
_INSERT_NOTIFICATION = insert(Outbox).values(
    job_id=bindparam("p_id"),
    tries=0,
    next_at=bindparam("p_created_at", type_=_TIMESTAMP),
    created_at=bindparam("p_created_at", type_=_TIMESTAMP),
)
_INSERT_AUDIT_EVENT = insert(AuditEvent).values(
    at=bindparam("p_created_at", type_=_TIMESTAMP),
    tenant_id=bindparam("p_tenant_id"),
    key_id=bindparam("p_key_id"),
    action=bindparam("p_action"),
    object=bindparam("p_id"),
    outcome="done",
    request_id=bindparam("p_request_id"),
    client=bindparam("p_client"),
)
# PostgreSQL runs all three as one statement and checks foreign keys at its end: one round trip.
_INSERT_ALL = _INSERT_NOTIFICATION.add_cte(_INSERT_JOB.cte("job"), _INSERT_EVENT.cte("event"))
_INSERT_ALL_WITH_AUDIT = _INSERT_ALL.add_cte(_INSERT_AUDIT_EVENT.cte("line"))
_INSERT_SEPARATELY = (_INSERT_JOB, _INSERT_EVENT, _INSERT_NOTIFICATION)


def insert_jobs(
    connection: Connection, records: Sequence[JobRecord], audit_contexts: Sequence[AuditContext] | None = None
) -> None:
    """Insert all of them, or none; one round trip on PostgreSQL. `audit_contexts`, one per job: the actors
    for the audit log."""
    parameters = [_build_parameters(record) for record in records]
    for values, audit in zip(parameters, audit_contexts or (), strict=audit_contexts is not None):
        values |= {"p_key_id": audit.key_id, "p_request_id": audit.request_id, "p_client": audit.client}
        values["p_action"] = "pool.registered" if values["p_kind"] == "pool" else "job.submitted"
    if connection.dialect.name == "postgresql":
        statements: tuple[Insert, ...] = (_INSERT_ALL if audit_contexts is None else _INSERT_ALL_WITH_AUDIT,)
    else:
        statements = (
            _INSERT_SEPARATELY if audit_contexts is None else (*_INSERT_SEPARATELY, _INSERT_AUDIT_EVENT)
        )
    for statement in statements:
        connection.execute(statement, parameters if len(parameters) > 1 else parameters[0])


def _build_parameters(record: JobRecord) -> dict[str, Any]:
    adapter_repo, target_repo = _get_repo_columns(record)
    derived = {
        "state": record.state.value,
        "adapter_repo": adapter_repo,
        "target_repo": target_repo,
        "ring_after": next_notification_at(record.created_at, 0),
        "rings": 0,
    }
    return {f"p_{name}": derived[name] if name in derived else getattr(record, name) for name in _JOB_COLUMNS}


def _get_repo_columns(record: JobRecord) -> tuple[str, str]:
    """Values of the columns adapter_repo and target_repo; for internal jobs, the repo they look at."""
    request = record.request
    if record.kind == "release":
        return "", request["repo_id"]
    if record.kind == "reconcile":
        return "", request["owner"]
    return request["source" if record.kind == "pool" else "adapter"]["repo_id"], request["target"]["repo_id"]


MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission of a batch."""

    tenant_id: str
    kind: ConversionKind
    request: ConversionRequest
    extras: SubmissionContext = NO_CONTEXT


_in_flight: set[tuple[str, str]] = set()  # shared by the whole process
_in_flight_lock = threading.Lock()


class SubmissionRepository(Repository):
    """Queue conversions and pre-checks, one at a time or many at once."""

    def submit(
        self,
        tenant_id: str,
        kind: ConversionKind,
        request: ConversionRequest,
        idempotency_key: str | None = None,
        context: SubmissionContext = NO_CONTEXT,
    ) -> tuple[JobRecord, bool]:
        """Queue a job; if the key was used before for the same request, return that job and False.

        Raises IdempotencyMismatch (same key, different request), IdempotencyInFlight (the first request with
        this key is still being recorded), RequestInvalid (invalid key), QuotaExceeded and Busy.
        """
        record = build_job_record(self, tenant_id, kind, request)
        if idempotency_key is None:
            with self.db.statement() if context == NO_CONTEXT else self.db.write() as connection:
                insert_submission(connection, record, context)
            return record, True
        write = partial(insert_submission, record=record, context=context)
        return submit_once(self.db, record, compute_fingerprint(kind, request), idempotency_key, write)

    def find(self, tenant_id: str, kind: Kind, request: JobRequest, idempotency_key: str) -> JobRecord | None:
        """The job created earlier with this key and request, if any. Raises IdempotencyMismatch."""
        check_idempotency_key(idempotency_key)
        with self.db.read() as connection:
            return _find_by_key(connection, tenant_id, idempotency_key, compute_fingerprint(kind, request))

    def submit_batch(self, submissions: Sequence[Submission]) -> list[JobRecord | QuotaExceeded]:
        """Queue jobs in one transaction; returns for each submission the job or the quota error. Raises
        Busy."""
        records = [
            build_job_record(self, submission.tenant_id, submission.kind, submission.request)
            for submission in submissions
        ]
        with self.db.write() as connection:
            results = self._apply_quotas(connection, submissions, records)
            accepted = [
                (result, submission.extras)
                for result, submission in zip(results, submissions, strict=True)
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
        """Each submission's record, or the error if earlier ones used up its tenant's quota."""
        limited: dict[str, Limits] = {
            submission.tenant_id: submission.extras.limits
            for submission in submissions
            if submission.extras.limits.has_job_limits
        }
        # Each of these takes a lock, so use the same order everywhere.
        quotas = {
            tenant: load_quota(connection, tenant, limited[tenant], self.clock())
            for tenant in sorted(limited)
        }
        results: list[JobRecord | QuotaExceeded] = []
        used = dict.fromkeys(quotas, 0)
        for submission, record in zip(submissions, records, strict=True):
            quota = quotas.get(submission.tenant_id)
            if (
                quota is not None
                and quota.error is not None
                and used[submission.tenant_id] >= quota.remaining
            ):
                results.append(quota.error)
                continue
            if quota is not None:
                used[submission.tenant_id] += 1
            results.append(record)
        return results


def submit_once(
    db: Database, record: JobRecord, fingerprint: str, key: str, write: Callable[[Connection], None]
) -> tuple[JobRecord, bool]:
    """Run `write` in a transaction that also reserves the key, or return the job created with it earlier."""
    check_idempotency_key(key)
    tenant_id = record.tenant_id
    with _reserve_key(tenant_id, key), db.write() as connection:
        _lock_key(connection, tenant_id, key)
        existing = _find_by_key(connection, tenant_id, key, fingerprint)
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


def insert_submission(connection: Connection, record: JobRecord, context: SubmissionContext) -> None:
    """Insert one job with its token and audit event in the caller's transaction. Raises QuotaExceeded."""
    require_quota(connection, record.tenant_id, context.limits, record.created_at)
    insert_jobs(connection, [record], [context.audit] if context.audit is not None else None)
    if context.encrypt_token is not None:
        insert_tokens(connection, {record.id: context.encrypt_token(record.id)}, record.created_at)


def build_job_record(repository: Repository, tenant_id: str, kind: Kind, request: JobRequest) -> JobRecord:
    """A new queued job; the caller inserts it."""
    now: datetime = repository.clock()
    values: dict[str, Any] = dict.fromkeys(JobRecord.__slots__)
    values.update(
        id=new_id(),
        tenant_id=tenant_id,
        kind=kind,
        state=JobState.QUEUED,
        request=request.model_dump(mode="json"),
        attempt=0,
        attempt_limit=repository.max_attempts,
        cancel_requested=False,
        version=1,
        created_at=now,
        updated_at=now,
    )
    return JobRecord(**values)


@contextmanager
def _reserve_key(tenant_id: str, key: str) -> Iterator[None]:
    """Within this process, only one submission at a time may use a key."""
    entry = (tenant_id, key)
    with _in_flight_lock:
        if entry in _in_flight:
            raise _in_flight_error()
        _in_flight.add(entry)
    try:
        yield
    finally:
        with _in_flight_lock:
            _in_flight.discard(entry)


def _lock_key(connection: Connection, tenant_id: str, key: str) -> None:
    """The same across processes: a transaction-level advisory lock. SQLite has a single writer anyway."""
    if connection.dialect.name != "postgresql":
        return
    digest = hashlib.sha256(f"{tenant_id}\0{key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    if not connection.scalar(select(func.pg_try_advisory_xact_lock(number))):
        raise _in_flight_error()


def _find_by_key(connection: Connection, tenant_id: str, key: str, fingerprint: str) -> JobRecord | None:
    row = connection.execute(
        select(Job.__table__, IdempotencyKey.fingerprint)
        .join(IdempotencyKey, IdempotencyKey.job_id == Job.id)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch(
            "This Idempotency-Key was already used for a different request.",
            hint="Use a new key for a new request.",
        )
    return JobRecord.from_row(row)


def check_idempotency_key(key: str) -> None:
    """Raise RequestInvalid for keys that are empty, too long or not printable ASCII."""
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise RequestInvalid(f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters.")


def compute_fingerprint(kind: Kind, request: JobRequest) -> str:
    """SHA-256 of the request with defaults filled in, so that null and an omitted field are the same."""
    return hashlib.sha256(f"{kind}\n{request.model_dump_json()}".encode()).hexdigest()


def _in_flight_error() -> IdempotencyInFlight:
    return IdempotencyInFlight(
        "A request with this Idempotency-Key is currently being recorded.", hint="Try again in a second."
    )
