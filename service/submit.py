"""`POST /convert` and `POST /precheck`: record the job, answer 202. The bell is rung outside the request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from core.jobs import ConversionKind
from core.requests import ConversionRequest, refuse_unavailable
from service.answers import job_answer
from service.auth import Caller, CallerDep
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
async def convert(
    request: ConversionRequest, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Move an adapter onto another base model and push the result."""
    return await _submit(caller, "convert", request, idempotency_key)


@router.post("/precheck", status_code=202, response_model=JobView, response_description="Accepted.")
async def precheck(
    request: ConversionRequest, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Find out whether the move can work; writes nothing anywhere."""
    return await _submit(caller, "precheck", request, idempotency_key)


async def _submit(
    caller: Caller, kind: ConversionKind, request: ConversionRequest, idempotency_key: str | None
) -> Response:
    refuse_unavailable(request)
    if idempotency_key is None:
        job = await caller.service.intake.submit(caller.tenant, kind, request)
    else:
        job, _ = await run_in_threadpool(
            caller.service.store.submit, caller.tenant, kind, request, idempotency_key
        )
    caller.service.keeper.nudge()
    return job_answer(job, 202, created=True)
