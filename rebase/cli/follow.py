"""Shared by `convert`, `precheck`, `status` and `demo`: creating a client, and following a job until it
ends."""

from __future__ import annotations

import os
from typing import Any

from rebase.cli.exit_codes import Exit, exit_for_code
from rebase.cli.output import Output
from rebase.cli.progress import PhaseProgress
from rebase.client.http import RebaseClient
from rebase.client.models import Job
from rebase.schemas.states import JobState


def open_client(url: str) -> RebaseClient:
    """A client for `url`. The key is read only from REBASE_API_KEY: an option would be visible in the process
    list."""
    return RebaseClient(url, os.environ.get("REBASE_API_KEY"))


def follow_job(client: RebaseClient, job: Job, output: Output) -> Job:
    """Wait for the job with live progress. Ctrl-C leaves the job running, says so, and propagates."""
    try:
        with PhaseProgress(output.err) as progress:
            finished_job = client.wait(job.id, lambda seen: show_progress(seen, progress))
            if finished_job.succeeded:
                progress.finish()
            return finished_job
    except KeyboardInterrupt:
        output.note(
            f"Job {job.id} keeps running. Status: rebase status {job.id}   Stop it: rebase cancel {job.id}"
        )
        raise


def fetch_diagnostics(client: RebaseClient, job: Job) -> dict[str, Any] | None:
    """The diagnostics of a rejected job, with all reasons; its error contains only the decisive ones."""
    return client.get_diagnostics(job.id) if job.status == JobState.REJECTED.value else None


def show_progress(job: Job, progress: PhaseProgress) -> None:
    """Pass one response of the service to the progress display."""
    if job.done:
        return
    current = job.progress
    if job.phase is None or current is None:
        progress.update(job.phase or job.status)
    else:
        progress.update(job.phase, current.done or 0, current.total, current.unit, current.eta_s)


def exit_for_job(job: Job) -> Exit:
    """The exit code for a job's state; an unfinished job is not a failure."""
    if job.succeeded and job.kind == "precheck" and job.verdict == "incompatible":
        return Exit.INCOMPATIBLE
    if job.succeeded or not job.done:
        return Exit.DONE
    if job.status == JobState.REJECTED.value:
        return Exit.INCOMPATIBLE
    return exit_for_code(job.error.code) if job.error is not None else Exit.FAILED
