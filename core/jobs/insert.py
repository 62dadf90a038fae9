"""New jobs as SQL: job, first event and bell of each, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, insert

from core.audit import AuditContext
from core.jobs.base import next_notification_at
from core.jobs.records import JobRecord
from core.states import JobState
from core.tables.jobs import Job, JobEvent, Outbox
from core.tables.tenants import AuditEvent

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
# PostgreSQL takes all three in one statement and checks the foreign keys at its end: one round trip.
_INSERT_ALL = _INSERT_NOTIFICATION.add_cte(_INSERT_JOB.cte("job"), _INSERT_EVENT.cte("event"))
_INSERT_ALL_WITH_AUDIT = _INSERT_ALL.add_cte(_INSERT_AUDIT_EVENT.cte("line"))
_INSERT_SEPARATELY = (_INSERT_JOB, _INSERT_EVENT, _INSERT_NOTIFICATION)


def insert_jobs(
    connection: Connection, records: Sequence[JobRecord], audit_contexts: Sequence[AuditContext] | None = None
) -> None:
    """Write all of them, or none. On PostgreSQL any number of jobs is one round trip. `trails`, one a job:
    who the audit log is to name."""
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
    """What the columns adapter_repo and target_repo hold; of the service's own work only what it looks at."""
    request = record.request
    if record.kind == "release":
        return "", request["repo_id"]
    if record.kind == "reconcile":
        return "", request["owner"]
    return request["source" if record.kind == "pool" else "adapter"]["repo_id"], request["target"]["repo_id"]
