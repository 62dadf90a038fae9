"""`/campaigns`: what subscriptions made of releases; look, steer, read the report."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.states import IDLE_CAMPAIGN_STATES, CampaignState
from rebase.store.records import CampaignRecord
from rebase.store.repository import MAX_PAGE
from service.auth import CallerDep
from service.campaign_report import CampaignReport, report_of
from service.campaign_views import CampaignListView, CampaignView
from service.report_html import POLICY, page_of

router = APIRouter(prefix="/campaigns", tags=["releases"])

_LOOK_AGAIN_S = 5


class CampaignsQuery(BaseModel):
    """What `GET /campaigns` can be asked. A misspelt filter is refused: ignored, it would list all."""

    model_config = ConfigDict(extra="forbid")

    state: CampaignState | None = None
    subscription: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


@router.get("", response_model=CampaignListView)
def list_campaigns(caller: CallerDep, query: Annotated[CampaignsQuery, Query()]) -> Response:
    """Your campaigns, newest first; releases that guards refused are among them, with the reason."""
    page = caller.service.store.campaigns.list(
        caller.tenant,
        state=query.state,
        subscription=query.subscription,
        cursor=query.cursor,
        limit=query.limit,
    )
    return Response(CampaignListView.of(page).model_dump_json(), media_type="application/json")


@router.get("/{campaign_id}", response_model=CampaignView)
def get_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """One campaign: state, progress, verdicts."""
    return _answer(caller.service.store.campaigns.get(caller.tenant, campaign_id))


@router.get(
    "/{campaign_id}/report",
    response_model=CampaignReport,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_report(
    campaign_id: str,
    caller: CallerDep,
    format: Annotated[
        Literal["json", "html"] | None, Query(description="Default: by the header Accept.")
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Which adapters moved, which need retraining and why, which failed: JSON, or a page to read."""
    store = caller.service.store
    campaign = store.campaigns.get(caller.tenant, campaign_id)
    report = report_of(campaign, store.campaigns.list_entries(caller.tenant, campaign_id))
    headers = {"Vary": "Accept"}
    if format == "html" or (format is None and _prefers_html(accept)):
        headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(page_of(report), 200, headers, "text/html; charset=utf-8")
    return Response(report.model_dump_json(), 200, headers, "application/json")


@router.post("/{campaign_id}/pause", response_model=CampaignView)
def pause_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Take no further job of it; running ones finish."""
    return _answer(caller.service.store.campaign_control.pause(caller.tenant, campaign_id, caller.trail))


@router.post("/{campaign_id}/resume", response_model=CampaignView)
def resume_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Go on with a paused campaign."""
    return _rung(
        caller, caller.service.store.campaign_control.resume(caller.tenant, campaign_id, caller.trail)
    )


@router.post("/{campaign_id}/cancel", response_model=CampaignView)
def cancel_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Cancel every job that has not ended."""
    return _answer(caller.service.store.campaign_control.cancel(caller.tenant, campaign_id, caller.trail))


@router.post("/{campaign_id}/retry", status_code=202, response_model=CampaignView)
def retry_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """Queue failed and cancelled jobs again. Of one that is refused or waiting: look at the release again."""
    return _rung(
        caller, caller.service.store.campaign_control.retry(caller.tenant, campaign_id, caller.trail), 202
    )


@router.post("/{campaign_id}/approve", status_code=202, response_model=CampaignView)
def approve_campaign(campaign_id: str, caller: CallerDep) -> Response:
    """After a dry run: convert every adapter whose pre-check did not say incompatible."""
    return _rung(
        caller, caller.service.store.campaign_control.approve(caller.tenant, campaign_id, caller.trail), 202
    )


def _rung(caller: CallerDep, campaign: CampaignRecord, status: int = 200) -> Response:
    caller.service.keeper.wake()
    return _answer(campaign, status)


def _answer(campaign: CampaignRecord, status: int = 200) -> Response:
    headers = {} if campaign.state in IDLE_CAMPAIGN_STATES else {"Retry-After": str(_LOOK_AGAIN_S)}
    return Response(CampaignView.of(campaign).model_dump_json(), status, headers, "application/json")


def _prefers_html(accept: str) -> bool:
    """What a browser sends names HTML, and no JSON before it."""
    kinds = [part.split(";")[0].strip() for part in accept.lower().split(",")]
    html = kinds.index("text/html") if "text/html" in kinds else len(kinds)
    return html < (kinds.index("application/json") if "application/json" in kinds else len(kinds))
