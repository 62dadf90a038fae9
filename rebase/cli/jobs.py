"""`rebase status`, `jobs`, `cancel`, `retry`: inspect, cancel and retry jobs of a running service."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import exit_for_job, fetch_diagnostics, follow_job, open_client
from rebase.cli.output import Output
from rebase.cli.tables import (
    build_diagnostics_table,
    build_evaluation_tables,
    build_jobs_table,
    build_selection_tables,
    find_selection,
    format_job,
)
from rebase.client.models import Job


def status(
    job_id: options.JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job until it ends.")] = False,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Also show the measurements of each site.")
    ] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Show one job: state, progress, result or error."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        job = client.get_job(job_id)
        if wait and not job.done:
            job = follow_job(client, job, out)
        details = client.get_diagnostics(job_id) if diagnostics else None
        reasons = details or fetch_diagnostics(client, job)
    document = job.model_dump(mode="json")
    out.write_json(document if details is None else {**document, "diagnostics": details})
    out.show(*format_job(job, reasons))
    if details is not None:
        out.show(build_diagnostics_table(details))
    out.show(*build_selection_tables(find_selection(job.result, reasons)))
    out.show(*build_evaluation_tables((details or job.result or reasons or {}).get("evaluation")))
    return exit_for_job(job)


def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="REPO", help="Only jobs of this adapter.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="REPO", help="Only jobs to this base.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number to list, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List jobs, newest first."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        jobs = list(islice(client.list_jobs(state=state, adapter=adapter, target=target), limit))
    out.write_json({"jobs": [job.model_dump(mode="json") for job in jobs]})
    out.show(build_jobs_table(jobs) if jobs else "No jobs.")
    return Exit.DONE


def cancel(
    job_id: options.JobId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Cancel a job; a running one stops at its worker's next heartbeat."""
    with open_client(url) as client:
        return _show_job(client.cancel(job_id), as_json)


def retry(
    job_id: options.JobId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Queue a failed, rejected or cancelled job again."""
    with open_client(url) as client:
        return _show_job(client.retry(job_id), as_json)


def _show_job(job: Job, as_json: bool) -> int:
    out = Output(as_json=as_json)
    out.write_json(job.model_dump(mode="json"))
    out.show(*format_job(job))
    return Exit.DONE
