"""Publishes a conversion with at most one commit per job, and builds the job's result."""

from __future__ import annotations

from typing import Any

from rebase.conversion.pipeline import ConversionResult
from rebase.errors import ParentMoved
from rebase.hub.base import Hub, PinnedRepo, Published
from rebase.report.schema import REPORT_FILE, Report
from rebase.schemas.conversions import OutputSpec


def make_commit_marker(job_id: str) -> str:
    """The line in the commit message that identifies the job."""
    return f"Rebase-Job: {job_id}"


def publish(hub: Hub, spec: OutputSpec, conversion: ConversionResult, marker: str) -> Published:
    """Commit the folder on top of the commit that was current when the job started.

    If a worker that lost its lease is stuck here, the second commit fails because the parent has changed.
    Then the commit with the marker is looked up before giving up. Raises ParentMoved if there is none.
    """
    if conversion.folder is None or conversion.output is None:
        raise ValueError("this conversion's plan does not publish")
    output, report = conversion.output, conversion.report
    if spec.create_pr:
        # A pull request does not move a branch, so the hub would accept a second one: check as late as
        # possible.
        published = hub.find_commit(output.repo_id, marker)
        if published is not None:
            return published
    adapter = report.adapter
    name = f"{adapter.repo_id}:{adapter.subfolder}" if adapter.subfolder else adapter.repo_id
    title = f"Transfer {name} to {report.target.repo_id} ({report.method_used['name']})"
    try:
        return hub.publish(
            output.repo_id,
            conversion.folder,
            message=f"{title}\n\n{marker}",
            parent=output.parent,
            private=spec.private,
            create_pr=spec.create_pr,
        )
    except ParentMoved:
        published = hub.find_commit(output.repo_id, marker)
        if published is None:
            raise
        return published


def build_result(hub: Hub, published: Published, report: Report | None) -> dict[str, Any]:
    """The job's `result`. Without `report` it is read from the commit of an earlier attempt, after checking
    that this job's token may read the repo, since the file cache is shared by all jobs."""
    if report is None:
        hub.check_read(published.repo_id)
        repo = PinnedRepo(published.repo_id, published.commit, {})
        report = Report.model_validate_json(hub.fetch(repo, REPORT_FILE).read_bytes())
    return {
        "output": {
            "repo_id": published.repo_id,
            "commit": published.commit,
            "url": published.url,
            "pull_request": published.pull_request,
        },
        **build_verdict(report),
    }


def build_verdict(report: Report) -> dict[str, Any]:
    """The part of the result that pre-checks and conversions share."""
    return {
        "verdict": report.precheck.verdict,
        "reasons": [reason.model_dump() for reason in report.precheck.reasons],
        "method": report.method_used,
        "measurements": report.precheck.measurements,
        "not_carried": report.not_carried,
        "warnings": report.warnings,
        "rank": report.output.get("rank"),
        "caveats": report.caveats,
        "selection": report.selection.model_dump(mode="json") if report.selection is not None else None,
        "evaluation": report.evaluation.summarize() if report.evaluation is not None else None,
    }
