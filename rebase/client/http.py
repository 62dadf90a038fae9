"""`RebaseClient`: one method per endpoint, typed responses and errors, and `wait`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2

from rebase.client.endpoints import CallbackEndpoints, PoolEndpoints, ReleaseEndpoints
from rebase.client.errors import ServiceError, ServiceUnreachable, parse_problem
from rebase.client.models import Event, Job, JobList, MethodInfo
from rebase.client.transport import describe_failure, to_path_segment
from rebase.schemas.conversions import ConversionRequest

# Restarting a service takes seconds, so this is long enough for a wait to survive it.
MAX_OUTAGE_S = 30.0
_POLL_S = 0.5
_RETRY_S = 1.0

Body = ConversionRequest | Mapping[str, Any]


class RebaseClient(PoolEndpoints, CallbackEndpoints, ReleaseEndpoints):
    """Connects to one service. Use it as a context manager, or call `close`.

    Every call raises ServiceError (the service returned an error) or ServiceUnreachable (no response).
    """

    def is_ready(self) -> bool:
        """Whether the service reports that it is ready."""
        try:
            return self._http.get("/readyz").status_code == httpx2.codes.OK
        except (httpx2.TransportError, httpx2.InvalidURL):
            return False

    def convert(
        self, request: Body, *, idempotency_key: str | None = None, hub_token: str | None = None
    ) -> Job:
        """`POST /convert`; returns the job as accepted. `request`: a model, or the JSON object of the API.
        `hub_token`: for this job only."""
        return self._submit("/convert", request, idempotency_key, hub_token)

    def precheck(
        self, request: Body, *, idempotency_key: str | None = None, hub_token: str | None = None
    ) -> Job:
        """`POST /precheck`: a job that ends with the verdict."""
        return self._submit("/precheck", request, idempotency_key, hub_token)

    def get_job(self, job_id: str) -> Job:
        """`GET /jobs/{id}`."""
        return self._parse_job(self._request("GET", f"/jobs/{to_path_segment(job_id)}"))

    def list_jobs(
        self, *, state: str | None = None, adapter: str | None = None, target: str | None = None
    ) -> Iterator[Job]:
        """`GET /jobs`, newest first, page after page."""
        filters = {"state": state, "adapter": adapter, "target": target}
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._parse(JobList, self._request("GET", "/jobs", params=params))
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def get_diagnostics(self, job_id: str) -> dict[str, Any]:
        """`GET /jobs/{id}/diagnostics`: summary and per-site measurements."""
        return self._parse_object(self._request("GET", f"/jobs/{to_path_segment(job_id)}/diagnostics"))

    def cancel(self, job_id: str) -> Job:
        """`POST /jobs/{id}/cancel`."""
        return self._parse_job(self._request("POST", f"/jobs/{to_path_segment(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """`POST /jobs/{id}/retry`."""
        return self._parse_job(self._request("POST", f"/jobs/{to_path_segment(job_id)}/retry"))

    def list_methods(self) -> list[MethodInfo]:
        """`GET /methods`."""
        entries = self._parse_object(self._request("GET", "/methods")).get("methods", [])
        return [MethodInfo.model_validate(entry) for entry in entries]

    def stream_events(
        self, job_id: str, *, after: int | None = None, max_outage_s: float = MAX_OUTAGE_S
    ) -> Iterator[Event]:
        """`GET /jobs/{id}/events`: events after id `after`, until the job is done and the service ends the
        stream.

        Dropped connections are resumed with Last-Event-ID, for outages of at most `max_outage_s`.
        """
        path = f"/jobs/{to_path_segment(job_id)}/events"
        last_id, broken_at = after, None
        while True:
            headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
            try:
                with self._http.sse(path, headers=headers) as stream:
                    if stream.response.is_error:
                        stream.response.read()
                        raise parse_problem(stream.response)
                    broken_at = None
                    for message in stream:
                        last_id = int(message.id)
                        yield Event(id=last_id, type=message.event, data=json.loads(message.data))
                    return
            except httpx2.TransportError as exc:
                broken_at = broken_at or time.monotonic()
                if time.monotonic() - broken_at > max_outage_s:
                    raise ServiceUnreachable(self.base_url, describe_failure(exc)) from exc
                time.sleep(_RETRY_S)

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] | None = None,
        *,
        timeout_s: float | None = None,
        max_outage_s: float = MAX_OUTAGE_S,
    ) -> Job:
        """Poll until the job is done; `on_update` receives every response that differs from the previous one.

        Tolerates outages up to `max_outage_s`. Raises TimeoutError after `timeout_s`; the job continues
        regardless.
        """
        started = last_response_at = time.monotonic()
        previous_job: Job | None = None
        while True:
            try:
                job = self.get_job(job_id)
            except (ServiceUnreachable, ServiceError) as exc:
                if not exc.error.retryable or time.monotonic() - last_response_at > max_outage_s:
                    raise
            else:
                last_response_at = time.monotonic()
                if on_update is not None and job != previous_job:
                    on_update(job)
                if job.done:
                    return job
                previous_job = job
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(f"job {job_id} was still not done after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _submit(self, path: str, request: Body, idempotency_key: str | None, hub_token: str | None) -> Job:
        optional_headers = {"Idempotency-Key": idempotency_key, "X-Hub-Token": hub_token}
        headers = {name: value for name, value in optional_headers.items() if value}
        body = request
        if isinstance(request, ConversionRequest):
            # Only fields that were set: defaults are up to the service.
            body = request.model_dump(mode="json", exclude_unset=True)
        return self._parse_job(self._request("POST", path, json=body, headers=headers))

    def _parse_job(self, response: httpx2.Response) -> Job:
        return self._parse(Job, response)
