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
from core.jobs.base import PLAIN, Extras, StoreBase
from core.jobs.insert import insert_jobs
from core.jobs.records import ConversionKind, JobRecord, JobRequest, Kind
from core.jobs.room import check_room, room_of
from core.jobs.token_rows import insert_tokens
from core.limits import Limits
from core.requests import ConversionRequest
from core.states import JobState
from core.tables.jobs import IdempotencyKey, Job

MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Order:
    """One submission among many."""

    tenant_id: str
    kind: ConversionKind
    request: ConversionRequest
    extras: Extras = PLAIN


class Submitting(StoreBase):
    """`submit`, one at a time or many at once."""

    _in_flight: set[tuple[str, str]] = set()  # noqa: RUF012  (one process, one set)
    _in_flight_lock = threading.Lock()

    def submit(
        self,
        tenant_id: str,
        kind: ConversionKind,
        request: ConversionRequest,
        idempotency_key: str | None = None,
        extras: Extras = PLAIN,
    ) -> tuple[JobRecord, bool]:
        """Queue a job; with a key that was used before for the same request, return that job and False.

        Raises IdempotencyMismatch (same key, other request), IdempotencyInFlight (the first use is
        still being recorded), RequestInvalid (a key too long), QuotaExceeded and Busy.
        """
        record = self._new_record(tenant_id, kind, request)
        if idempotency_key is None:
            with self.db.statement() if extras == PLAIN else self.db.write() as connection:
                self._record(connection, record, extras)
            return record, True
        write = partial(self._record, record=record, extras=extras)
        return self._submit_once(record, fingerprint_of(kind, request), idempotency_key, write)

    def submitted(
        self, tenant_id: str, kind: Kind, request: JobRequest, idempotency_key: str
    ) -> JobRecord | None:
        """The job that this key and request made before, if they did. Raises IdempotencyMismatch."""
        check_idempotency_key(idempotency_key)
        with self.db.read() as connection:
            return self._earlier(connection, tenant_id, idempotency_key, fingerprint_of(kind, request))

    def _submit_once(
        self, record: JobRecord, fingerprint: str, key: str, write: Callable[[Connection], None]
    ) -> tuple[JobRecord, bool]:
        """`write` in a transaction that also takes the key; else the job that the key made before."""
        check_idempotency_key(key)
        tenant_id = record.tenant_id
        with self._only_user_of(tenant_id, key), self.db.write() as connection:
            self._lock_key(connection, tenant_id, key)
            earlier = self._earlier(connection, tenant_id, key, fingerprint)
            if earlier is not None:
                return earlier, False
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

    def submit_batch(self, orders: Sequence[Order]) -> list[JobRecord | QuotaExceeded]:
        """Queue jobs in one transaction, for each order the job or why its tenant may have no more. Raises
        Busy."""
        records = [self._new_record(order.tenant_id, order.kind, order.request) for order in orders]
        with self.db.write() as connection:
            answers = self._fitting(connection, orders, records)
            taken = [
                (answer, order.extras)
                for answer, order in zip(answers, orders, strict=True)
                if isinstance(answer, JobRecord)
            ]
            named = [(record, extras.trail) for record, extras in taken if extras.trail is not None]
            unnamed = [record for record, extras in taken if extras.trail is None]
            if unnamed:
                insert_jobs(connection, unnamed)
            if named:
                insert_jobs(connection, [record for record, _ in named], [trail for _, trail in named])
            sealed = {
                record.id: extras.seal(record.id) for record, extras in taken if extras.seal is not None
            }
            insert_tokens(connection, sealed, self.clock())
        return answers

    def _fitting(
        self, connection: Connection, orders: Sequence[Order], records: Sequence[JobRecord]
    ) -> list[JobRecord | QuotaExceeded]:
        """Each order's record, or its refusal where its tenant's room is used up by those before it."""
        limited: dict[str, Limits] = {
            order.tenant_id: order.extras.limits for order in orders if order.extras.limits.on_jobs
        }
        # In one order for everybody, as each of these is a lock.
        rooms = {
            tenant: room_of(connection, tenant, limited[tenant], self.clock()) for tenant in sorted(limited)
        }
        answers: list[JobRecord | QuotaExceeded] = []
        used = dict.fromkeys(rooms, 0)
        for order, record in zip(orders, records, strict=True):
            room = rooms.get(order.tenant_id)
            if room is not None and room.refusal is not None and used[order.tenant_id] >= room.left:
                answers.append(room.refusal)
                continue
            if room is not None:
                used[order.tenant_id] += 1
            answers.append(record)
        return answers

    def _record(self, connection: Connection, record: JobRecord, extras: Extras) -> None:
        """One job with what comes with it, in the caller's transaction. Raises QuotaExceeded."""
        check_room(connection, record.tenant_id, extras.limits, record.created_at)
        insert_jobs(connection, [record], [extras.trail] if extras.trail is not None else None)
        if extras.seal is not None:
            insert_tokens(connection, {record.id: extras.seal(record.id)}, record.created_at)

    def _new_record(self, tenant_id: str, kind: Kind, request: JobRequest) -> JobRecord:
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
    def _only_user_of(self, tenant_id: str, key: str) -> Iterator[None]:
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

    def _earlier(
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


def fingerprint_of(kind: Kind, request: JobRequest) -> str:
    """SHA-256 of the request with its defaults filled in, so that `null` and `left out` are the same."""
    return hashlib.sha256(f"{kind}\n{request.model_dump_json()}".encode()).hexdigest()


def _in_flight_error() -> IdempotencyInFlight:
    return IdempotencyInFlight(
        "A request with this Idempotency-Key is being recorded right now.", hint="Try again in a second."
    )
