"""`POST /convert` and `POST /precheck`: record the job, answer 202. The bell is rung outside the request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from core.jobs.records import Kind
from core.requests import ConversionRequest, refuse_unavailable
from service.answers import job_answer
from service.auth import TenantDep
from service.state import Service, ServiceDep
from service.views import JobView

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Same key and same request: the same job. Other request: 422. First one in flight: 409.",
    ),
]


@router.post("/convert", status_code=202, response_model=JobView, response_description="Accepted.")
def convert(
    request: ConversionRequest, service: ServiceDep, tenant: TenantDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Move an adapter onto another base model and push the result."""
    return _submit(service, tenant, "convert", request, idempotency_key)


@router.post("/precheck", status_code=202, response_model=JobView, response_description="Accepted.")
def precheck(
    request: ConversionRequest, service: ServiceDep, tenant: TenantDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Find out whether the move can work; writes nothing anywhere."""
    return _submit(service, tenant, "precheck", request, idempotency_key)


def _submit(
    service: Service, tenant: str, kind: Kind, request: ConversionRequest, idempotency_key: str | None
) -> Response:
    refuse_unavailable(request)
    job, _created = service.store.submit(tenant, kind, request, idempotency_key)
    service.keeper.nudge()
    return job_answer(job, 202, created=True)
