"""`/audit`, `/limits` and `/tenant-data`: a tenant's audit log and limits, and deleting its data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.tenants import AuditListOut, AuditOut, LimitsOut
from rebase.store.audit import MAX_EVENTS, list_audit_events
from rebase.store.tenants import cancel_all_jobs, erase_tenant_data
from service.auth import AdminDep, CallerDep

router = APIRouter(tags=["tenant"])

_MAX_ID = 2**63 - 1


class AuditQuery(BaseModel):
    """Parameters of `GET /audit`."""

    model_config = ConfigDict(extra="forbid")

    before: int | None = Field(
        default=None, ge=1, le=_MAX_ID, description=("`next_before` of the previous page.")
    )
    limit: int = Field(default=50, ge=1, le=MAX_EVENTS)


@router.get("/audit", response_model=AuditListOut)
def list_audit(caller: AdminDep, query: Annotated[AuditQuery, Query()]) -> AuditListOut:
    """The audit log of your tenant."""
    events = list_audit_events(caller.service.store.db, caller.tenant, before=query.before, limit=query.limit)
    lines = [AuditOut(**{name: getattr(line, name) for name in AuditOut.model_fields}) for line in events]
    return AuditListOut(lines=lines, next_before=lines[-1].id if len(lines) == query.limit else None)


@router.get("/limits", response_model=LimitsOut)
async def get_limits(caller: CallerDep) -> LimitsOut:
    """Your tenant's limits, as set by the operator of the service."""
    return LimitsOut(**asdict(caller.limits))


@router.delete("/tenant-data", status_code=204, response_class=Response)
def delete_tenant_data(caller: AdminDep) -> Response:
    """Delete every job, pool and stored secret of your tenant. Jobs are cancelled first: while a worker still
    runs one the answer is 409, and the call must be repeated. Keys and the audit log are kept, and today's
    jobs still count towards the limit."""
    cancel_all_jobs(caller.service.store, caller.tenant)
    erase_tenant_data(caller.service.store, caller.tenant, caller.audit)
    return Response(status_code=204)
