"""`rebase status`, `jobs`, `cancel`, `retry`: look at jobs of a running service, and steer them."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.evaluation import evaluation_tables
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.cli.selection import selection_of, selection_tables
from rebase.cli.tables import diagnostics_table, job_lines, jobs_table
from rebase.cli.waiting import exit_of, follow, open_client, why
from rebase.client.models import Job


def status(
    job_id: options.JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="Also show what was measured, site by site.")
    ] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Show one job: state, progress, result or error."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        job = client.job(job_id)
        if wait and not job.done:
            job = follow(client, job, out)
        measured = client.diagnostics(job_id) if diagnostics else None
        reasons = measured or why(client, job)
    document = job.model_dump(mode="json")
    out.document(document if measured is None else {**document, "diagnostics": measured})
    out.show(*job_lines(job, reasons))
    if measured is not None:
        out.show(diagnostics_table(measured))
    out.show(*selection_tables(selection_of(job.result, reasons)))
    out.show(*evaluation_tables((measured or job.result or reasons or {}).get("evaluation")))
    return exit_of(job)


def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="REPO", help="Only of this adapter.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="REPO", help="Only to this base.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List jobs, newest first."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        found = list(islice(client.jobs(state=state, adapter=adapter, target=target), limit))
    out.document({"jobs": [job.model_dump(mode="json") for job in found]})
    out.show(jobs_table(found) if found else "No jobs.")
    return Exit.DONE


def cancel(
    job_id: options.JobId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Ask for a job to be cancelled; a running one stops at its worker's next heartbeat."""
    with open_client(url) as client:
        return _steered(client.cancel(job_id), as_json)


def retry(
    job_id: options.JobId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Queue a failed, rejected or cancelled job again."""
    with open_client(url) as client:
        return _steered(client.retry(job_id), as_json)


def _steered(job: Job, as_json: bool) -> int:
    out = Output(as_json=as_json)
    out.document(job.model_dump(mode="json"))
    out.show(*job_lines(job))
    return Exit.DONE
