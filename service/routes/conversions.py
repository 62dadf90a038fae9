"""`POST /convert` and `POST /precheck`: record the job, answer 202. Notifications are sent afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rebase.errors import NotFound, RequestInvalid, StateConflict
from rebase.methods.base_params import MethodParams
from rebase.schemas.conversions import ConversionRequest, check_precheck_request, check_selection_examples
from rebase.schemas.jobs import JobOut
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import ConversionKind
from rebase.store.job_events import SubmissionContext
from service.auth import Caller, CallerDep
from service.responses import build_job_response
from service.routes.callbacks import check_callback
from service.routes.hub_token import JobHubToken, build_submission_context

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description=(
            "Repeating a request with the same key returns the same job. Another request with that key: "
            "422. First request still in progress: 409."
        ),
    ),
]


@router.post("/convert", status_code=202, response_model=JobOut, response_description="Accepted.")
async def convert(
    request: ConversionRequest,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
    hub_token: JobHubToken = None,
) -> Response:
    """Transfer an adapter to another base model and publish the result."""
    return await _submit(
        caller, "convert", request, idempotency_key, build_submission_context(caller, hub_token)
    )


@router.post("/precheck", status_code=202, response_model=JobOut, response_description="Accepted.")
async def precheck(
    request: ConversionRequest,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
    hub_token: JobHubToken = None,
) -> Response:
    """Predict whether the transfer will work; publishes nothing."""
    return await _submit(
        caller, "precheck", request, idempotency_key, build_submission_context(caller, hub_token)
    )


async def _submit(
    caller: Caller,
    kind: ConversionKind,
    request: ConversionRequest,
    idempotency_key: str | None,
    context: SubmissionContext,
) -> Response:
    check_selection_examples(request)
    if kind == "precheck":
        check_precheck_request(request)
    if request.callback is not None:
        await run_in_threadpool(check_callback, caller, request.callback)
    for pointer, pool in _find_named_pools(request.method):
        await run_in_threadpool(_check_pool, caller, kind, request, pool, pointer, idempotency_key)
    if idempotency_key is None:
        job = await caller.service.group_committer.submit(caller.tenant, kind, request, context)
    else:
        job, _ = await run_in_threadpool(
            caller.service.store.submissions.submit, caller.tenant, kind, request, idempotency_key, context
        )
    caller.service.scheduler.wake()
    return build_job_response(job, 202, created=True)


def _find_named_pools(method: MethodParams) -> Iterator[tuple[str, str]]:
    """The anchor pools named in a request: (pointer to the field, id)."""
    for pointer, params in (
        ("/method", method),
        *(
            (f"/method/candidates/{index}", params)
            for index, params in enumerate(method.listed_candidates or ())
        ),
    ):
        if params.pool_id is not None:
            yield f"{pointer}/pool", params.pool_id


def _check_pool(
    caller: Caller,
    kind: ConversionKind,
    request: ConversionRequest,
    pool_id: str,
    pointer: str,
    idempotency_key: str | None,
) -> None:
    """Check that the pool named in the request can be used. Skipped if the idempotency key has a job already.

    Raises NotFound, StateConflict (not ready) and RequestInvalid (different bases).
    """
    store, tenant = caller.service.store, caller.tenant
    if (
        idempotency_key is not None
        and store.submissions.find(tenant, kind, request, idempotency_key) is not None
    ):
        return
    try:
        spec = store.pools.get_ready(tenant, pool_id).spec
    except (NotFound, StateConflict) as exc:
        exc.pointer = pointer
        raise
    for side, requested, expected in (
        ("source", request.source, spec.source),
        ("target", request.target, spec.target),
    ):
        if requested is not None and _name_base(requested) != _name_base(expected):
            raise RequestInvalid(
                f"This anchor pool is for the {side} base '{_name_base(expected)}', not "
                f"'{_name_base(requested)}'.",
                hint="Use a pool for these two bases; GET /anchor-pools lists yours.",
                pointer=pointer,
            )


def _name_base(ref: RepoRef) -> str:
    """The base without its revision."""
    return f"{ref.repo_id}:{ref.subfolder}" if ref.subfolder else ref.repo_id
