"""A campaign's report, as data and as a self-contained HTML page without scripts or external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from rebase.errors import PublicError
from rebase.schemas.campaigns import AdapterOutcome, AdapterOutput, AdapterReport, CampaignOut, CampaignReport
from rebase.schemas.jobs import MetricOut
from rebase.schemas.states import JobState
from rebase.store.records import CampaignEntry, CampaignRecord, JobRecord

_OUTCOME_BY_STATE: dict[JobState, AdapterOutcome] = {
    JobState.SUCCEEDED: "moved",
    JobState.REJECTED: "retrain",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


def build_campaign_report(campaign: CampaignRecord, entries: Sequence[CampaignEntry]) -> CampaignReport:
    """Every adapter of the subscription, in order; shows its conversion if there is one, else its
    pre-check."""
    by_position: dict[int, CampaignEntry] = {}
    for entry in entries:  # pre-checks come before conversions
        by_position[entry.position] = entry
    left_out = {item["position"]: item for item in campaign.decision.get("left_out", [])}
    outputs = campaign.decision.get("outputs", {})
    adapters = []
    for position, adapter in enumerate(campaign.request["adapters"]):
        adapter_fields = {"adapter": adapter["repo_id"], "revision": adapter["revision"]}
        adapter_fields["subfolder"] = adapter.get("subfolder")
        adapter_fields["planned_output"] = outputs.get(str(position))
        matched_entry = by_position.get(position)
        adapters.append(
            _build_job_report(matched_entry, adapter_fields)
            if matched_entry is not None
            else _build_jobless_report(left_out.get(position), adapter_fields)
        )
    counts: dict[str, int] = {}
    for one in adapters:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    return CampaignReport.model_construct(
        campaign=CampaignOut.from_record(campaign), counts=dict(sorted(counts.items())), adapters=adapters
    )


def _build_job_report(entry: CampaignEntry, adapter_fields: Mapping[str, Any]) -> AdapterReport:
    job = entry.job
    result = job.result if job.state is JobState.SUCCEEDED and job.result is not None else {}
    output = result.get("output")
    return AdapterReport.model_construct(
        **adapter_fields,
        outcome=_derive_outcome(entry),
        state=job.state.value,
        job_id=job.id,
        verdict=job.verdict,
        why=_collect_reasons(job, result),
        method=result.get("method"),
        output=AdapterOutput.model_construct(**output) if output is not None else None,
        measurements=result.get("measurements") or {},
        figures=[MetricOut.model_construct(**asdict(figure)) for figure in entry.metrics],
        error=PublicError.model_construct(**job.error) if job.is_done and job.error else None,
    )


def _build_jobless_report(
    left_out: Mapping[str, Any] | None, adapter_fields: Mapping[str, Any]
) -> AdapterReport:
    """An adapter without a job: over the limit, of a release that was not converted, or deleted since."""
    had_job = left_out is None and adapter_fields["planned_output"] is not None
    return AdapterReport.model_construct(
        **adapter_fields,
        outcome="forgotten" if had_job else "left_out",
        state=None,
        job_id=None,
        verdict=None,
        why=[left_out["message"]] if left_out is not None else [],
        method=None,
        output=None,
        measurements={},
        figures=[],
        error=None,
    )


def _derive_outcome(entry: CampaignEntry) -> AdapterOutcome:
    job = entry.job
    outcome = _OUTCOME_BY_STATE.get(job.state, "open")
    if entry.stage == "precheck" and outcome == "moved":
        return "retrain" if job.verdict == "incompatible" else "passed"
    return outcome


def _collect_reasons(job: JobRecord, result: Mapping[str, Any]) -> list[str]:
    """The verdict's reasons, and the error that ended the job, if any."""
    measured = ((job.diagnostics or {}).get("precheck") or {}).get("reasons") or []
    messages = [str(reason.get("message", "")) for reason in result.get("reasons") or measured]
    error = (job.error or {}).get("message") if job.is_done else None
    return [*([str(error)] if error and error not in messages else []), *filter(None, messages)]


# Nothing is loaded or executed, whatever a repo name contains: escaping is the first line of defence, this
# the second.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_SECTIONS: tuple[tuple[AdapterOutcome, str, str], ...] = (
    ("moved", "Moved", "Published, each in one commit."),
    ("passed", "Passed the pre-check", "Approve the campaign to convert these."),
    ("retrain", "Need retraining", "What was found says that this skill does not come over."),
    ("failed", "Failed", "May be retried."),
    ("cancelled", "Cancelled", "May be retried."),
    ("open", "Not done yet", ""),
    ("left_out", "Left out", ""),
    ("forgotten", "Not known any more", "Their jobs were deleted when the time to keep them was over."),
)
_SHOWN_METRICS = frozenset({"score", "difference", "gap_recovered", "retention"})
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1d2329;background:#fff;margin:2rem auto;max-width:70rem;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.15rem;margin:2rem 0 .3rem}p{margin:.3rem 0}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem .6rem .4rem 0;border-bottom:1px solid #d8dde3}
th{font-weight:600}ul{margin:0;padding-left:1.1rem}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}.dim{color:#5a6570}
@media(prefers-color-scheme:dark){body{color:#e3e7eb;background:#14181c}th,td{border-color:#39424c}.dim{color:#9aa5b0}}
"""


def render_page(report: CampaignReport) -> str:
    """The HTML page."""
    campaign = report.campaign
    title = f"{campaign.base}: {len(report.adapters)} adapters"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{escape(campaign.base)}</h1>",
        f'<p class="dim">Release <code>{escape(campaign.revision)}</code>, campaign '
        f"<code>{escape(campaign.id)}</code>, {escape(campaign.state.replace('_', ' '))}, begun "
        f"{campaign.created_at:%Y-%m-%d %H:%M} UTC</p>",
        f"<p>{escape(_format_summary(report))}</p>",
        *(f"<p>{escape(reason.message)}</p>" for reason in campaign.reasons),
    ]
    for outcome, heading, sentence in _SECTIONS:
        rows = [one for one in report.adapters if one.outcome == outcome]
        if rows:
            parts += _render_section(f"{heading} ({len(rows)})", sentence, rows)
    return "\n".join([*parts, "</body></html>", ""])


def _format_summary(report: CampaignReport) -> str:
    names = {outcome: heading.lower() for outcome, heading, _ in _SECTIONS}
    phrases = [f"{count} {names[outcome]}" for outcome in names if (count := report.counts.get(outcome, 0))]
    return ", ".join(phrases) + "." if phrases else "No adapters."


def _render_section(heading: str, sentence: str, rows: Sequence[AdapterReport]) -> list[str]:
    header = "<tr><th>adapter</th><th>verdict</th><th>where, and by which method</th><th>why</th></tr>"
    introduction = f'<p class="dim">{escape(sentence)}</p>' if sentence else ""
    return [
        f"<h2>{escape(heading)}</h2>{introduction}",
        f"<table>{header}",
        *map(_render_row, rows),
        "</table>",
    ]


def _render_row(row: AdapterReport) -> str:
    revision = "" if row.revision == "main" else f"@{row.revision}"
    subfolder = f":{row.subfolder}" if row.subfolder else ""
    cells = (
        f"<code>{escape(row.adapter + revision + subfolder)}</code>",
        escape(row.verdict or ""),
        _render_output(row),
        _render_list([*row.why, *_format_figures(row)]),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _render_output(row: AdapterReport) -> str:
    if row.output is None:
        return f'<code class="dim">{escape(row.planned_output or "")}</code>'
    # Only web addresses become links: in a local hub folder, an output's url is a path.
    url, name = row.output.pull_request or row.output.url, escape(row.output.repo_id)
    link = f'<a href="{escape(url)}">{name}</a>' if url.startswith(("https://", "http://")) else name
    method = str((row.method or {}).get("name", ""))
    commit = escape(row.output.commit[:12])
    return f'<code>{link}</code><br><span class="dim">commit {commit}, {escape(method)}</span>'


def _format_figures(row: AdapterReport) -> list[str]:
    """The evaluation metrics that show whether the transfer was worthwhile."""
    lines = []
    for figure in row.figures:
        if figure.value is None or figure.metric not in _SHOWN_METRICS:
            continue
        has_interval = figure.low is not None and figure.high is not None
        interval = f" ({figure.low:.4g} to {figure.high:.4g})" if has_interval else ""
        lines.append(f"{figure.subject}, {figure.metric}: {figure.value:.4g}{interval}")
    return lines


def _render_list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""
