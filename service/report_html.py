"""A campaign's report as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from service.campaign_report import AdapterOutcome, AdapterReport, CampaignReport

# Nothing may be loaded or run, whatever a stranger's repo name holds; escaping is the first line, this the
# second.
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
    """The page, as UTF-8 text."""
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
    cells = (
        f"<code>{escape(row.adapter + revision)}</code>",
        escape(row.verdict or ""),
        _render_output(row),
        _render_list([*row.why, *_format_figures(row)]),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _render_output(row: AdapterReport) -> str:
    if row.output is None:
        return f'<code class="dim">{escape(row.planned_output or "")}</code>'
    # Only web addresses become links: in a local hub folder an output's url is a path.
    url, name = row.output.pull_request or row.output.url, escape(row.output.repo_id)
    link = f'<a href="{escape(url)}">{name}</a>' if url.startswith(("https://", "http://")) else name
    method = str((row.method or {}).get("name", ""))
    commit = escape(row.output.commit[:12])
    return f'<code>{link}</code><br><span class="dim">commit {commit}, {escape(method)}</span>'


def _format_figures(row: AdapterReport) -> list[str]:
    """The evaluation's figures that say whether the move was worth it."""
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
