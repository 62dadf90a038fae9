"""`RebaseClient`: one method per endpoint, typed answers, typed errors, and `wait`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2

from rebase.client.callbacks import CallbackCalls
from rebase.client.errors import ServiceError, ServiceUnreachable, problem_of
from rebase.client.models import Event, Job, JobList, MethodInfo
from rebase.client.pools import PoolCalls
from rebase.client.releases import ReleaseCalls
from rebase.client.wire import reason_of, segment
from rebase.schemas.conversions import ConversionRequest

# Restarting a service takes seconds; a wait that began well outlives that.
PATIENCE_S = 30.0
_POLL_S = 0.5
_RETRY_S = 1.0

Body = ConversionRequest | Mapping[str, Any]


class RebaseClient(PoolCalls, CallbackCalls, ReleaseCalls):
    """Talks to one service. Use as a context manager, or call `close`.

    Every call raises ServiceError (the service said no) or ServiceUnreachable (nobody answered).
    """

    def ready(self) -> bool:
        """Does the service say that it can work?"""
        try:
            return self._http.get("/readyz").status_code == httpx2.codes.OK
        except (httpx2.TransportError, httpx2.InvalidURL):
            return False

    def convert(
        self, request: Body, *, idempotency_key: str | None = None, hub_token: str | None = None
    ) -> Job:
        """`POST /convert`; the job as accepted. The request as a model, or as the JSON object that the API
        takes. `hub_token`: for this job alone."""
        return self._submit("/convert", request, idempotency_key, hub_token)

    def precheck(
        self, request: Body, *, idempotency_key: str | None = None, hub_token: str | None = None
    ) -> Job:
        """`POST /precheck`: a job that stops after the verdict."""
        return self._submit("/precheck", request, idempotency_key, hub_token)

    def job(self, job_id: str) -> Job:
        """`GET /jobs/{id}`."""
        return self._job(self._call("GET", f"/jobs/{segment(job_id)}"))

    def jobs(
        self, *, state: str | None = None, adapter: str | None = None, target: str | None = None
    ) -> Iterator[Job]:
        """`GET /jobs`, newest first, page after page."""
        filters = {"state": state, "adapter": adapter, "target": target}
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._parse(JobList, self._call("GET", "/jobs", params=params))
            yield from page.jobs
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def diagnostics(self, job_id: str) -> dict[str, Any]:
        """`GET /jobs/{id}/diagnostics`: summary and per-site rows."""
        return self._object(self._call("GET", f"/jobs/{segment(job_id)}/diagnostics"))

    def cancel(self, job_id: str) -> Job:
        """`POST /jobs/{id}/cancel`."""
        return self._job(self._call("POST", f"/jobs/{segment(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """`POST /jobs/{id}/retry`."""
        return self._job(self._call("POST", f"/jobs/{segment(job_id)}/retry"))

    def methods(self) -> list[MethodInfo]:
        """`GET /methods`."""
        entries = self._object(self._call("GET", "/methods")).get("methods", [])
        return [MethodInfo.model_validate(entry) for entry in entries]

    def events(
        self, job_id: str, *, after: int | None = None, patience_s: float = PATIENCE_S
    ) -> Iterator[Event]:
        """`GET /jobs/{id}/events`, from after event `after`, until the service ends the stream of a finished
        job.

        A dropped connection is resumed with Last-Event-ID; an outage of `patience_s` gives up.
        """
        path = f"/jobs/{segment(job_id)}/events"
        last, broken_at = after, None
        while True:
            headers = {} if last is None else {"Last-Event-ID": str(last)}
            try:
                with self._http.sse(path, headers=headers) as stream:
                    if stream.response.is_error:
                        stream.response.read()
                        raise problem_of(stream.response)
                    broken_at = None
                    for message in stream:
                        last = int(message.id)
                        yield Event(id=last, type=message.event, data=json.loads(message.data))
                    return
            except httpx2.TransportError as exc:
                broken_at = broken_at or time.monotonic()
                if time.monotonic() - broken_at > patience_s:
                    raise ServiceUnreachable(self.base_url, reason_of(exc)) from exc
                time.sleep(_RETRY_S)

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] | None = None,
        *,
        timeout_s: float | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Job:
        """Poll until the job is done; `on_update` sees every answer that differs from the one before.

        Outages up to `patience_s` are sat out. Raises TimeoutError after `timeout_s`; the job goes on all the
        same.
        """
        started = last_answer = time.monotonic()
        seen: Job | None = None
        while True:
            try:
                job = self.job(job_id)
            except (ServiceUnreachable, ServiceError) as exc:
                if not exc.error.retryable or time.monotonic() - last_answer > patience_s:
                    raise
            else:
                last_answer = time.monotonic()
                if on_update is not None and job != seen:
                    on_update(job)
                if job.done:
                    return job
                seen = job
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(f"job {job_id} was still not done after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _submit(self, path: str, request: Body, idempotency_key: str | None, hub_token: str | None) -> Job:
        given = {"Idempotency-Key": idempotency_key, "X-Hub-Token": hub_token}
        headers = {name: value for name, value in given.items() if value}
        body = request
        if isinstance(request, ConversionRequest):
            # Only what was said: defaults are the service's own.
            body = request.model_dump(mode="json", exclude_unset=True)
        return self._job(self._call("POST", path, json=body, headers=headers))

    def _job(self, response: httpx2.Response) -> Job:
        return self._parse(Job, response)
