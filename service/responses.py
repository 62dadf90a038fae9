"""Job responses shared by several endpoints: ETag, Retry-After and Location."""

from __future__ import annotations

from starlette.responses import Response

from rebase.schemas.jobs import JobOut
from rebase.store.records import JobRecord

_MAX_RETRY_AFTER_S = 30


def build_job_response(job: JobRecord, status: int = 200, *, created: bool = False) -> Response:
    """A job as JSON with ETag, Retry-After while it is unfinished, and Location if it is new."""
    headers = {"ETag": compute_etag(job)}
    if not job.is_done:
        headers["Retry-After"] = str(compute_retry_after_s(job))
    if created:
        headers["Location"] = f"/jobs/{job.id}"
    return Response(JobOut.from_record(job).model_dump_json(), status, headers, "application/json")


def compute_etag(job: JobRecord) -> str:
    """Changes with everything that the job's response shows."""
    return f'"{job.version}"'


def etag_matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110 weak comparison of an If-None-Match header."""
    if if_none_match is None:
        return False
    client_etags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in client_etags or "*" in client_etags


def compute_retry_after_s(job: JobRecord) -> int:
    """Seconds until polling again is worthwhile: the estimate if there is one, at most half a minute."""
    return max(1, min(_MAX_RETRY_AFTER_S, round(job.progress_eta_s or 1)))
