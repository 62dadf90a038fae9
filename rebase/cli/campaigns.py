"""`rebase campaigns ls|show|report|pause|resume|cancel|retry|approve`."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import open_client
from rebase.cli.output import Output
from rebase.cli.tables import format_field, make_id_table
from rebase.client.endpoints import CampaignAction
from rebase.client.http import RebaseClient
from rebase.client.models import Campaign, CampaignReport
from rebase.errors import CommandFailed
from rebase.schemas.states import CampaignState

commands = typer.Typer(help="The conversions that subscriptions start for a release.", no_args_is_help=True)

CampaignId = Annotated[str, typer.Argument(metavar="ID", help="The campaign's id.")]
CampaignIdOrNewest = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="Default: the newest campaign.")
]
_POLL_S = 1.0
_STYLES = {"finished": "green", "refused": "red", "cancelled": "yellow", "awaiting_approval": "yellow"}
_OUTCOME_STYLES = {"moved": "green", "passed": "green", "retrain": "red", "failed": "red"}


@commands.command("ls")
def ls(
    state: Annotated[
        CampaignState | None, typer.Option("--state", help=("Only campaigns in this state."))
    ] = None,
    subscription: Annotated[
        str | None, typer.Option("--subscription", metavar="ID", help="Only campaigns of this subscription.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number to list, newest first.")] = 20,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until there is a campaign.")] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List campaigns, newest first."""
    out = Output(as_json=as_json)
    state_filter = state.value if state is not None else None
    with open_client(url) as client:
        campaigns = list(islice(client.list_campaigns(state=state_filter, subscription=subscription), limit))
        while wait and not campaigns:
            time.sleep(_POLL_S)
            campaigns = list(
                islice(client.list_campaigns(state=state_filter, subscription=subscription), limit)
            )
    out.write_json({"campaigns": [campaign.model_dump(mode="json") for campaign in campaigns]})
    if not campaigns:
        out.show("No campaigns.")
        return Exit.DONE
    table = make_id_table("state", "base", "jobs", "created (UTC)")
    for campaign in campaigns:
        cells = (campaign.base, _format_progress(campaign), str(campaign.created_at or "")[:19])
        table.add_row(campaign.id, _format_state(campaign), *map(Text, cells))
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(
    campaign_id: CampaignIdOrNewest = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it until it needs no further work or waits for approval.")
    ] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Show one campaign: state, progress, verdicts."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        campaign_id = campaign_id or _get_newest_id(client)
        if watch:
            campaign = client.wait_for_campaign(
                campaign_id,
                lambda seen: out.note(f"{seen.state.replace('_', ' ')}  {_format_progress(seen)}".rstrip()),
            )
        else:
            campaign = client.get_campaign(campaign_id)
    return _show_campaign(campaign, out)


@commands.command("report")
def report(
    campaign_id: CampaignIdOrNewest = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as an HTML file.")
    ] = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Show which adapters were transferred, which need retraining and why, and which failed."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        campaign_id = campaign_id or _get_newest_id(client)
        campaign_report = client.get_campaign_report(campaign_id)
        page = client.get_campaign_report_html(campaign_id) if html is not None else None
    if html is not None and page is not None:
        try:
            html.write_text(page, encoding="utf-8")
        except OSError as exc:
            raise CommandFailed(f"{html} cannot be written: {exc.strerror or exc}.") from exc
        out.note(f"Written to {html}.")
    out.write_json(campaign_report.model_dump(mode="json"))
    out.show(*_format_campaign(campaign_report.campaign), "", _build_report_table(campaign_report))
    return Exit.DONE


@commands.command("pause")
def pause(
    campaign_id: CampaignId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Start no more jobs of a campaign; running ones finish."""
    return _apply_action(campaign_id, "pause", url, as_json)


@commands.command("resume")
def resume(
    campaign_id: CampaignId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Resume a paused campaign."""
    return _apply_action(campaign_id, "resume", url, as_json)


@commands.command("cancel")
def cancel(
    campaign_id: CampaignId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Cancel every unfinished job."""
    return _apply_action(campaign_id, "cancel", url, as_json)


@commands.command("retry")
def retry(
    campaign_id: CampaignId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Queue failed and cancelled jobs again; check a refused or waiting release again."""
    return _apply_action(campaign_id, "retry", url, as_json)


@commands.command("approve")
def approve(
    campaign_id: CampaignId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """After a dry run: convert the adapters that passed the pre-check."""
    return _apply_action(campaign_id, "approve", url, as_json)


def _get_newest_id(client: RebaseClient) -> str:
    """The id of the newest campaign. Raises CommandFailed."""
    for campaign in client.list_campaigns():
        return campaign.id
    raise CommandFailed("There is no campaign yet.", hint="`rebase campaigns ls --wait` waits for one.")


def _apply_action(campaign_id: str, action: CampaignAction, url: str, as_json: bool) -> int:
    with open_client(url) as client:
        return _show_campaign(client.control_campaign(campaign_id, action), Output(as_json=as_json))


def _show_campaign(campaign: Campaign, out: Output) -> int:
    out.write_json(campaign.model_dump(mode="json"))
    out.show(*_format_campaign(campaign))
    return Exit.DONE


def _format_campaign(campaign: Campaign) -> list[RenderableType]:
    lines: list[RenderableType] = [format_field("campaign", campaign.id)]
    lines.append(Text.assemble(format_field("state", ""), _format_state(campaign)))
    lines.append(format_field("base", f"{campaign.base}@{campaign.revision[:12]}"))
    for name, stage in campaign.stages.items():
        counts = ", ".join(f"{count} {state}" for state, count in stage.states.items())
        lines.append(format_field(name, f"{stage.done} of {stage.total} done: {counts}"))
        if stage.verdicts:
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in stage.verdicts.items())
            lines.append(format_field("verdicts", verdicts))
    if campaign.left_out:
        lines.append(format_field("left out", f"{campaign.left_out} adapters"))
    return [*lines, *(format_field("why", reason.message) for reason in campaign.reasons)]


def _build_report_table(report: CampaignReport) -> Table:
    table = Table("outcome", "adapter", "verdict", "output", "why", box=None, pad_edge=False)
    for row in report.adapters:
        outcome = Text(row.outcome.replace("_", " "), style=_OUTCOME_STYLES.get(row.outcome, ""))
        output = f"{row.output.repo_id}@{row.output.commit[:12]}" if row.output is not None else ""
        adapter = f"{row.adapter}:{row.subfolder}" if row.subfolder else row.adapter
        table.add_row(
            outcome, *map(Text, (adapter, row.verdict or "", output, row.why[0] if row.why else ""))
        )
    return table


def _format_state(campaign: Campaign) -> Text:
    return Text(campaign.state.replace("_", " "), style=_STYLES.get(campaign.state, ""))


def _format_progress(campaign: Campaign) -> str:
    """Progress of the last stage that has jobs."""
    stage = campaign.stages.get("convert") or campaign.stages.get("precheck")
    return f"{stage.done}/{stage.total}" if stage is not None else ""
