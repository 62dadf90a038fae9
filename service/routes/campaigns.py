"""`/campaigns`: list, read, control, report."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.campaigns import CampaignListOut, CampaignOut, CampaignReport
from rebase.schemas.states import IDLE_CAMPAIGN_STATES, CampaignState
from rebase.store.records import CampaignRecord
from rebase.store.repository import MAX_PAGE
from service.auth import CallerDep
from service.campaign_report import CONTENT_SECURITY_POLICY, build_campaign_report, render_page

router = APIRouter(prefix="/campaigns", tags=["releases"])

_RETRY_AFTER_S = 5


class CampaignsQuery(BaseModel):
    """Parameters of `GET /campaigns`. Unknown ones are rejected: ignoring a typo would list everything."""

    model_config = ConfigDict(extra="forbid")

    state: CampaignState | None = None
    subscription: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


@router.get("", response_model=CampaignListOut)
def list_campaigns(caller: CallerDep, query: Annotated[CampaignsQuery, Query()]) -> Response:
    """Your campaigns, newest first, including releases refused by guards, with the reason."""
    page = caller.service.store.campaigns.list(
        caller.tenant,
        state=query.state,
        subscription=query.subscription,
        cursor=query.cursor,
        limit=query.limit,
    )
    return Response(CampaignListOut.from_page(page).model_dump_json(), media_type="application/json")


@router.get("/{campaign_id}", response_model=CampaignOut)
def get_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """One campaign: state, progress, verdicts."""
    return _build_response(caller.service.store.campaigns.get(caller.tenant, campaign_id))


@router.get(
    "/{campaign_id}/report",
    response_model=CampaignReport,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_report(
    campaign_id: str,
    caller: CallerDep,
    format: Annotated[
        Literal["json", "html"] | None, Query(description="Default: by the Accept header.")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Which adapters were transferred, which need retraining and why, which failed: JSON or an HTML page."""
    store = caller.service.store
    campaign = store.campaigns.get(caller.tenant, campaign_id)
    report = build_campaign_report(campaign, store.campaigns.list_entries(caller.tenant, campaign_id))
    headers = {"Vary": "Accept"}
    if format == "html" or (format is None and _prefers_html(accept)):
        headers |= {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(render_page(report), 200, headers, "text/html; charset=utf-8")
    return Response(report.model_dump_json(), 200, headers, "application/json")


@router.post("/{campaign_id}/pause", response_model=CampaignOut)
def pause_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Start no more of its jobs; running ones finish."""
    return _build_response(
        caller.service.store.campaign_control.pause(caller.tenant, campaign_id, caller.audit)
    )


@router.post("/{campaign_id}/resume", response_model=CampaignOut)
def resume_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Resume a paused campaign."""
    return _wake_and_respond(
        caller, caller.service.store.campaign_control.resume(caller.tenant, campaign_id, caller.audit)
    )


@router.post("/{campaign_id}/cancel", response_model=CampaignOut)
def cancel_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Cancel every unfinished job."""
    return _build_response(
        caller.service.store.campaign_control.cancel(caller.tenant, campaign_id, caller.audit)
    )


@router.post("/{campaign_id}/retry", status_code=202, response_model=CampaignOut)
def retry_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Queue failed and cancelled jobs again. If it is refused or waiting: check the release again."""
    return _wake_and_respond(
        caller, caller.service.store.campaign_control.retry(caller.tenant, campaign_id, caller.audit), 202
    )


@router.post("/{campaign_id}/approve", status_code=202, response_model=CampaignOut)
def approve_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """After a dry run: convert every adapter whose pre-check is not incompatible."""
    return _wake_and_respond(
        caller, caller.service.store.campaign_control.approve(caller.tenant, campaign_id, caller.audit), 202
    )


def _wake_and_respond(caller: CallerDep, campaign: CampaignRecord, status: int = 200) -> Response:
    caller.service.scheduler.wake()
    return _build_response(campaign, status)


def _build_response(campaign: CampaignRecord, status: int = 200) -> Response:
    headers = {} if campaign.state in IDLE_CAMPAIGN_STATES else {"Retry-After": str(_RETRY_AFTER_S)}
    return Response(CampaignOut.from_record(campaign).model_dump_json(), status, headers, "application/json")


def _prefers_html(accept: str) -> bool:
    """Browsers name HTML before any JSON."""
    media_types = [part.split(";")[0].strip() for part in accept.lower().split(",")]
    html = media_types.index("text/html") if "text/html" in media_types else len(media_types)
    return html < (
        media_types.index("application/json") if "application/json" in media_types else len(media_types)
    )
