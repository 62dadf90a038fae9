"""`/anchor-pools`: register, list, read, delete. Registering is a job with the same id as the pool."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rebase.schemas.anchor_pools import PoolListOut, PoolOut, PoolRequest
from rebase.schemas.repos import RepoFilter
from rebase.schemas.states import PoolState
from rebase.store.anchor_pools import PoolRecord
from rebase.store.repository import MAX_PAGE
from service.auth import CallerDep
from service.responses import compute_retry_after_s
from service.routes.conversions import IdempotencyKey
from service.routes.hub_token import JobHubToken, build_submission_context

router = APIRouter(prefix="/anchor-pools", tags=["anchor pools"])


class PoolsQuery(BaseModel):
    """Parameters of `GET /anchor-pools`. Unknown ones are rejected, because ignoring a misspelt filter would
    list every pool."""

    model_config = ConfigDict(extra="forbid")

    source: RepoFilter = None
    target: RepoFilter = None
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


@router.post("", status_code=202, response_model=PoolOut, response_description="Accepted.")
async def register_pool(
    request: PoolRequest,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
    hub_token: JobHubToken = None,
) -> Response:
    """Register adapters that exist on two bases. They are read and measured before the pool is ready."""
    store = caller.service.store
    context = build_submission_context(caller, hub_token)
    pool, _ = await run_in_threadpool(store.pools.submit, caller.tenant, request, idempotency_key, context)
    caller.service.scheduler.wake()
    return _build_response(pool, 202, created=True)


@router.get("", response_model=PoolListOut)
def list_pools(caller: CallerDep, query: Annotated[PoolsQuery, Query()]) -> Response:
    """Your pools, newest first; `source` and `target` are the repo ids of base models."""
    page = caller.service.store.pools.list(
        caller.tenant, source=query.source, target=query.target, cursor=query.cursor, limit=query.limit
    )
    return Response(PoolListOut.from_page(page).model_dump_json(), media_type="application/json")


@router.get("/{pool_id}", response_model=PoolOut)
def get_pool(pool_id: str, caller: CallerDep) -> Response:
    """One pool. Once it is ready, every revision in it is pinned to a commit."""
    return _build_response(caller.service.store.pools.get(caller.tenant, pool_id))


@router.delete("/{pool_id}", status_code=204, response_class=Response)
def delete_pool(pool_id: str, caller: CallerDep) -> Response:
    """Delete a pool and cancel its validation. Unfinished jobs that need it will fail."""
    caller.service.store.pools.delete(caller.tenant, pool_id, audit=caller.audit)
    return Response(status_code=204)


def _build_response(pool: PoolRecord, status: int = 200, *, created: bool = False) -> Response:
    headers = {"Location": f"/anchor-pools/{pool.id}"} if created else {}
    if pool.state is PoolState.VALIDATING:
        headers["Retry-After"] = str(compute_retry_after_s(pool.job))
    return Response(PoolOut.from_record(pool).model_dump_json(), status, headers, "application/json")
