"""`/jobs`: list, read, cancel, retry."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.jobs import DiagnosticsOut, JobListOut, JobOut
from rebase.schemas.repos import RepoFilter
from rebase.schemas.states import JobState
from rebase.store.repository import MAX_PAGE
from service.auth import CallerDep
from service.responses import build_job_response, compute_etag, etag_matches
from service.routes.hub_token import JobHubToken, build_submission_context

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobsQuery(BaseModel):
    """Parameters of `GET /jobs`. Unknown ones are rejected: ignoring a typo would list every job."""

    model_config = ConfigDict(extra="forbid")

    state: JobState | None = None
    adapter: RepoFilter = None
    target: RepoFilter = None
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


@router.get("", response_model=JobListOut)
def list_jobs(caller: CallerDep, query: Annotated[JobsQuery, Query()]) -> Response:
    """Your jobs, newest first; `adapter` and `target` are repo ids."""
    page = caller.service.store.jobs.list(
        caller.tenant,
        state=query.state,
        adapter=query.adapter,
        target=query.target,
        cursor=query.cursor,
        limit=query.limit,
    )
    return Response(JobListOut.from_page(page).model_dump_json(), media_type="application/json")


@router.get("/{job_id}", response_model=JobOut, responses={304: {"description": "Not modified."}})
def get_job(
    job_id: str, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """One job. Send the last ETag as If-None-Match to get 304 if nothing has changed."""
    job = caller.service.store.jobs.get(caller.tenant, job_id)
    if etag_matches(if_none_match, compute_etag(job)):
        return Response(status_code=304, headers={"ETag": compute_etag(job)})
    return build_job_response(job)


@router.get("/{job_id}/diagnostics", response_model=DiagnosticsOut)
def get_diagnostics(job_id: str, caller: CallerDep) -> Response:
    """What the latest run measured, site by site. Empty before the pre-check has run."""
    view = DiagnosticsOut.from_diagnostics(
        job_id, caller.service.store.jobs.get_diagnostics(caller.tenant, job_id)
    )
    return Response(view.model_dump_json(), media_type="application/json")


@router.post("/{job_id}/cancel", response_model=JobOut)
def cancel_job(job_id: str, caller: CallerDep) -> Response:
    """Cancel a job: at once if no worker runs it, else at its worker's next heartbeat."""
    return build_job_response(caller.service.store.jobs.cancel(caller.tenant, job_id, audit=caller.audit))


@router.post("/{job_id}/retry", status_code=202, response_model=JobOut)
def retry_job(job_id: str, caller: CallerDep, hub_token: JobHubToken = None) -> Response:
    """Queue a failed, rejected or cancelled job again with a fresh budget of attempts."""
    job = caller.service.store.jobs.retry(
        caller.tenant, job_id, context=build_submission_context(caller, hub_token)
    )
    caller.service.scheduler.wake()
    return build_job_response(job, 202, created=True)
