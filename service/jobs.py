"""`/jobs`: look, page, cancel, retry."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.repos import check_repo_id
from rebase.schemas.states import JobState
from rebase.store.repository import MAX_PAGE
from service.answers import etag_of, job_answer, matches
from service.auth import CallerDep
from service.hub_tokens import JobHubToken, extras_of
from service.views import DiagnosticsView, JobListView, JobView

router = APIRouter(prefix="/jobs", tags=["jobs"])

RepoFilter = Annotated[str | None, AfterValidator(lambda value: value and check_repo_id(value))]


class JobsQuery(BaseModel):
    """What `GET /jobs` can be asked. A misspelt filter is refused: ignored, it would list every job."""

    model_config = ConfigDict(extra="forbid")

    state: JobState | None = None
    adapter: RepoFilter = None
    target: RepoFilter = None
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


@router.get("", response_model=JobListView)
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
    return Response(JobListView.of(page).model_dump_json(), media_type="application/json")


@router.get("/{job_id}", response_model=JobView, responses={304: {"description": "Not changed."}})
def get_job(
    job_id: str, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """One job. Send the last ETag as If-None-Match to be told 304 when nothing has changed."""
    job = caller.service.store.jobs.get(caller.tenant, job_id)
    if matches(if_none_match, etag_of(job)):
        return Response(status_code=304, headers={"ETag": etag_of(job)})
    return job_answer(job)


@router.get("/{job_id}/diagnostics", response_model=DiagnosticsView)
def get_diagnostics(job_id: str, caller: CallerDep) -> Response:
    """What the latest run measured, site by site. Empty before the pre-check has run."""
    view = DiagnosticsView.of(job_id, caller.service.store.jobs.get_diagnostics(caller.tenant, job_id))
    return Response(view.model_dump_json(), media_type="application/json")


@router.post("/{job_id}/cancel", response_model=JobView)
def cancel_job(job_id: str, caller: CallerDep) -> Response:
    """Cancel: at once while nobody runs the job, else with its worker's next heartbeat."""
    return job_answer(caller.service.store.jobs.cancel(caller.tenant, job_id, audit=caller.trail))


@router.post("/{job_id}/retry", status_code=202, response_model=JobView)
def retry_job(job_id: str, caller: CallerDep, hub_token: JobHubToken = None) -> Response:
    """Queue a failed, rejected or cancelled job again with a fresh budget of attempts."""
    job = caller.service.store.jobs.retry(caller.tenant, job_id, context=extras_of(caller, hub_token))
    caller.service.keeper.wake()
    return job_answer(job, 202, created=True)
